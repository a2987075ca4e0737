"""Whether features have collapsed: how many directions they use, and how much they differ at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ussl.evaluate.features import finite, unit

COMPLETE = 0.01  # relative_std below: every image gets almost the same features (mean cosine about 0.9999)
DIRECTIONS = 5.0  # effective_rank_centred below: the features differ in a handful of directions
ONE_DIRECTION = 0.99  # first_component above: they differ in one
_ROUNDING = 1e-6  # deviations below this share of the length are float32's


def spread(features: np.ndarray) -> dict[str, float]:
    """Numbers of (n, D) features that fall when an encoder collapses. They need no labels.

    Returns:
        effective_rank: of the features as they are (RankMe, Garrido et al. 2023, arXiv:2210.02885), at most
            min(n, D); a mean that all images share lowers it, also in healthy encoders.
        effective_rank_centred: the same of the features about their mean: in how many directions images differ.
        first_component: share of the variance in the first principal component; NaN when there is no variance.
        mean_cosine: mean cosine between the features of two different images.
        relative_std: standard deviation of l2-normalised features, mean over D, times sqrt(D): 1 when they are spread
            evenly over the sphere, 0 when all are equal (Chen & He 2021, arXiv:2011.10566, section 4.1).
        images, width: n and D.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    x = np.asarray(features)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise ValueError(f"features {x.shape}: the spread is measured on at least two images, one row each")
    x = finite(x)
    centred = x - x.mean(0)
    if np.linalg.norm(centred) <= _ROUNDING * np.linalg.norm(x):
        centred = np.zeros_like(x)
    directions = unit(x)
    return {
        "effective_rank": effective_rank(x),
        "effective_rank_centred": effective_rank(centred),
        "first_component": _first_component(centred),
        "mean_cosine": _mean_cosine(directions),
        "relative_std": float(directions.std(0).mean() * x.shape[1] ** 0.5),
        "images": float(len(x)),
        "width": float(x.shape[1]),
    }


def effective_rank(matrix: np.ndarray) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007, EUSIPCO); 0 of zeros."""
    from scipy.special import entr

    values = np.linalg.svd(matrix, compute_uv=False)
    if not values.any():
        return 0.0
    return float(np.exp(entr(values / values.sum()).sum()))


def verdict(numbers: Mapping[str, float]) -> str | None:
    """A sentence when an encoder with this `spread` has collapsed, else None.

    Collapsed completely: `relative_std` below 0.01. Collapsed to few directions (Jing et al. 2022, arXiv:2110.09348):
    `effective_rank_centred` below 5 (below a quarter of what n and D allow, where that is less), or more than 99 % of
    the variance in one. Untrained networks lie far from all three: about 0.1, 40 and 80 %.
    """
    if numbers["relative_std"] < COMPLETE:
        return (
            "collapsed: every image gets almost the same features "
            f"(spread {numbers['relative_std']:.2g} of 1, mean cosine {numbers['mean_cosine']:.4f})"
        )
    directions, share = numbers["effective_rank_centred"], numbers["first_component"]
    most = min(numbers["images"] - 1, numbers["width"])
    if directions < min(DIRECTIONS, most / 4) or share > ONE_DIRECTION:
        return (
            f"collapsed to few directions: the features of images differ in about {directions:.1f} of {most:.0f} "
            f"possible directions ({100 * share:.0f} % of the variance in one)"
        )
    return None


def _first_component(centred: np.ndarray) -> float:
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(variances[0] / variances.sum()) if variances.any() else float("nan")


def _mean_cosine(directions: np.ndarray) -> float:
    """Over all pairs of different rows of length 1, from the length of their sum."""
    count = len(directions)
    both = np.square(directions.sum(0)).sum() - np.square(directions).sum()
    return float(both / (count * (count - 1)))
