"""Numbers of every step by which a collapse can be seen; `ussl.health` judges them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ussl.parts import Tokens
from ussl.precision import precise

ROWS = 256  # images of a pass that are compared


@torch.no_grad()
def signs(encoded: list[Tokens], targets: list[Tokens | None]) -> dict[str, Tensor]:
    """Numbers that fall when a method collapses, of the first view; none of a pass with a single image.

    Returns:
        feature_spread, target_spread: standard deviation of the l2-normalised features (targets) of images, mean over
            channels, times sqrt(D): 1 = spread evenly over the sphere, 0 = all equal (Chen & He 2021,
            arXiv:2011.10566, section 4.1). A target of patches only is compared patch by patch.
        feature_rank: participation ratio of the centred features, (sum of variances)^2 / sum of squared variances
            over principal components: in about how many directions images differ, at most min(B - 1, D).
    """
    features = _vectors(encoded[0])
    if len(features) < 2:
        return {}
    with torch.autocast(features.device.type, enabled=False):
        found = {"feature_spread": _spread(features), "feature_rank": _rank(features)}
        target = next((tokens for tokens in targets if tokens is not None), None)
        if target is not None:
            found["target_spread"] = _spread(_vectors(target))
    return found


def _vectors(tokens: Tokens) -> Tensor:
    """(n, D) of the first mask of each image: pooled, else the tokens of the patches."""
    if tokens.pooled is not None:
        return precise(tokens.pooled[:ROWS, 0].detach())
    assert tokens.patches is not None
    return precise(tokens.patches[:ROWS, 0].detach().flatten(0, 1))


def _spread(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1).std(0, correction=0).mean() * x.shape[-1] ** 0.5


def _rank(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    x = x / x.norm().clamp(min=1e-20)  # small numbers would vanish when squared twice
    products = x @ x.T
    return products.diagonal().sum().square() / products.square().sum().clamp(min=1e-20)


def deviation(tokens: Tensor) -> Tensor:
    """Standard deviation over tokens (..., D), averaged over channels, without gradient; 0-dim."""
    return tokens.detach().flatten(0, -2).std(0, correction=0).mean()
