"""What frozen features know of labels: a linear probe and nearest neighbours, cross-validated by patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ussl.evaluate.features import finite, unit
from ussl.evaluate.metrics import metrics
from ussl.evaluate.pictures import missing

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression, from strong to weak regularisation
_INNER_FOLDS = 3
_ITERATIONS = 100_000  # never reached: a few hundred are usual at C = 1, fewer below
_ROWS = 1024  # test images whose similarities are in memory at once

Predictor = Callable[[np.ndarray], np.ndarray]  # features (n, D) to probabilities (n, classes)


def linear(
    features: np.ndarray, labels: Sequence[Any], groups: Sequence[Any] | None, folds: int = 5, seed: int = 0
) -> dict[str, float]:
    """How well a linear classifier reads the labels from frozen features, on patients it was not trained on.

    Args:
        features: (n, D).
        labels: n classes; images whose label is None, "" or NaN are left out, and counted.
        groups: n patients: none has images on both sides of a split. None says that every image is its own.
        folds: of the cross-validation, stratified by class.
        seed: of the splits.

    Returns:
        `accuracy`, `macro_f1`, `auc` of the predictions for all images, each made by the fold that did not see it;
        the standard deviation of each over folds (`accuracy_sd`, ...; NaN when a fold lacks a class and its area is
        undefined); `images` and `unlabelled`.

    Raises:
        ValueError: fewer than two classes, a class with fewer patients than folds, features that are not finite.
    """
    data = _checked(features, labels, groups)

    def fit(train: np.ndarray) -> Predictor:
        return fit_linear(data.features[train], data.codes[train], data.groups[train], data.classes, seed)

    return _cross_validated(data, folds, seed, fit)


def knn(
    features: np.ndarray,
    labels: Sequence[Any],
    groups: Sequence[Any] | None,
    k: int = 20,
    folds: int = 5,
    seed: int = 0,
    temperature: float = 0.07,
) -> dict[str, float]:
    """How well the `k` nearest neighbours tell the labels; folds, numbers and errors are those of `linear`.

    Nearness is the cosine, and a neighbour votes with exp(cosine / temperature) (Wu et al. 2018, arXiv:1805.01978,
    as Caron et al. 2021, arXiv:2104.14294, evaluate DINO: temperature 0.07, k 20).
    """
    data = _checked(features, labels, groups)
    if k < 1 or temperature <= 0:
        raise ValueError(f"k is {k} and temperature {temperature}: k must be at least 1, temperature above 0")

    def fit(train: np.ndarray) -> Predictor:
        return fit_knn(data.features[train], data.codes[train], data.classes, k, temperature)

    return _cross_validated(data, folds, seed, fit)


def fit_linear(x: np.ndarray, y: np.ndarray, groups: np.ndarray, classes: int, seed: int = 0) -> Predictor:
    """Multinomial logistic regression on features standardised by their own mean and deviation.

    The strength of the regularisation is the one of `STRENGTHS` with the least log loss in a three-fold
    cross-validation by patient within these images: features of different widths need different strengths, and a
    fixed one would favour one encoder over another.

    Args:
        x: (n, D) features to learn from.
        y: (n,) classes as 0, 1, ..., each at least once.
        groups: (n,) patients.
        classes: how many there are.
        seed: of the inner splits.
    """
    splits = _inner_splits(y, groups, classes, seed)
    if not splits:  # a class of one patient: nothing to choose by, so the middle
        return _logistic(x, y, STRENGTHS[len(STRENGTHS) // 2])
    losses = [sum(_loss(_logistic(x[a], y[a], c)(x[b]), y[b]) for a, b in splits) for c in STRENGTHS]
    return _logistic(x, y, STRENGTHS[int(np.argmin(losses))])


def fit_knn(x: np.ndarray, y: np.ndarray, classes: int, k: int = 20, temperature: float = 0.07) -> Predictor:
    """Votes of the k nearest of `x` (n, D), whose classes are `y` (n,), as shares. ValueError: fewer than k images."""
    if len(x) < k:
        raise ValueError(f"k is {k}, but there are only {len(x)} images to be neighbours: write k: {len(x)} or less")
    known, votes = unit(x), np.eye(classes)[y]

    def predict(some: np.ndarray) -> np.ndarray:
        cosine = unit(some) @ known.T
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        weight = np.exp(np.take_along_axis(cosine, nearest, 1) / temperature)
        shares = np.einsum("nk,nkc->nc", weight, votes[nearest])
        return shares / shares.sum(1, keepdims=True)

    return lambda test: np.concatenate([predict(test[i : i + _ROWS]) for i in range(0, len(test), _ROWS)])


def assign(
    codes: np.ndarray, groups: np.ndarray, folds: int, seed: int = 0, names: Sequence[str] | None = None
) -> np.ndarray:
    """(n,) the fold that tests each image: all images of a group in one fold, classes as even as can be.

    Args:
        codes: (n,) classes as 0, 1, ...
        groups: (n,) patients.
        folds: how many.
        seed: of the random order in which groups are dealt.
        names: of the classes, for errors.

    Raises:
        ValueError: fewer than two folds, a class with fewer groups than folds, or groups that cannot be divided so
            that something of every class is left to learn from.
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}, and must be at least 2")
    _check_patients(codes, groups, folds, [str(c) for c in range(codes.max() + 1)] if names is None else names)
    fold = np.full(len(codes), -1)
    for i, (train, test) in enumerate(_splits(codes, groups, folds, seed)):
        if not len(test) or len(np.unique(codes[train])) < len(np.unique(codes)):
            raise ValueError(f"the patients cannot be divided into {folds} folds that each see every class: use fewer")
        fold[test] = i
    return fold


@dataclass(frozen=True)
class _Data:
    features: np.ndarray  # (n, D) float64
    codes: np.ndarray  # (n,) positions in names
    groups: np.ndarray  # (n,) int64
    names: list[str]
    unlabelled: int

    @property
    def classes(self) -> int:
        return len(self.names)


def _checked(features: np.ndarray, labels: Sequence[Any], groups: Sequence[Any] | None) -> _Data:
    """The labelled images, with classes and groups as numbers. ValueError: what is missing."""
    features = np.asarray(features)
    sizes = {len(labels), len(features), len(labels if groups is None else groups)}
    if features.ndim != 2 or len(sizes) > 1:
        many = "no" if groups is None else len(groups)
        raise ValueError(f"features {features.shape}, {len(labels)} labels, {many} groups: one row of each an image")
    kept = [i for i, label in enumerate(labels) if not missing(label)]
    x = finite(features[kept])
    names, codes = np.unique([str(labels[i]) for i in kept], return_inverse=True)
    numbers = _numbered(None if groups is None else [groups[i] for i in kept], len(kept))
    if len(names) < 2:
        have = f"only the class {str(names[0])!r}" if len(names) else "no label at all"
        raise ValueError(f"{len(kept)} labelled images with {have}: a probe needs at least two classes")
    return _Data(x, codes, numbers, names.tolist(), len(labels) - len(kept))


def _numbered(groups: list[Any] | None, count: int) -> np.ndarray:
    """(n,) groups as numbers. ValueError: an image without one."""
    if groups is None:
        return np.arange(count)
    if empty := sum(map(missing, groups)):
        raise ValueError(
            f"{empty} of {count} labelled images have no patient: fill them in, or write group: null when no patient "
            "has two images"
        )
    return np.unique([str(group) for group in groups], return_inverse=True)[1]


def _check_patients(codes: np.ndarray, groups: np.ndarray, folds: int, names: Sequence[str]) -> None:
    """ValueError: a class has fewer patients than there are folds."""
    for code in np.unique(codes):
        patients = len(np.unique(groups[codes == code]))
        if patients < folds:
            fewer = f"write folds: {patients}, or leave" if patients > 1 else "leave"
            raise ValueError(
                f"class {names[code]!r} has {patients} {'patient' if patients == 1 else 'patients'}, too few for "
                f"{folds} folds: {fewer} its label empty"
            )


def _cross_validated(data: _Data, folds: int, seed: int, fit: Callable[[np.ndarray], Predictor]) -> dict[str, float]:
    """The metrics of all predictions, each from the fold that did not train on it, and their deviation over folds."""
    fold = assign(data.codes, data.groups, folds, seed, data.names)
    probabilities = np.empty((len(fold), data.classes))
    for i in range(folds):
        probabilities[fold == i] = fit(fold != i)(data.features[fold == i])
    numbers = metrics(data.codes, probabilities)
    each = [metrics(data.codes[fold == i], probabilities[fold == i]) for i in range(folds)]
    deviations = {f"{name}_sd": float(np.std([one[name] for one in each], ddof=1)) for name in numbers}
    return numbers | deviations | {"images": float(len(fold)), "unlabelled": float(data.unlabelled)}


def _splits(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and to test on, `folds` times: no group on both sides, classes as even as can be."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if len(np.unique(groups)) == len(groups):  # grouping changes nothing, and takes long for many groups
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(y, y))
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, groups))


def _inner_splits(y: np.ndarray, groups: np.ndarray, classes: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits by patient to choose by; those whose training part lacks a class teach nothing and are left out."""
    folds = min(_INNER_FOLDS, *(len(np.unique(groups[y == c])) for c in range(classes)))
    if folds < 2:
        return []
    return [(a, b) for a, b in _splits(y, groups, folds, seed) if len(b) and len(np.unique(y[a])) == classes]


def _logistic(x: np.ndarray, y: np.ndarray, strength: float) -> Predictor:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_ITERATIONS))
    return model.fit(x, y).predict_proba


def _loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Log loss, summed over images."""
    return float(-np.log(probabilities[np.arange(len(truth)), truth].clip(1e-15)).sum())
