"""Patches hidden at random, and what every masking shares: counts and the choice of what is decoded."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ussl.data.sector import BLACK, enclosed
from ussl.draws import Draws
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Masking, View


class RandomMasking(Masking):
    """Hides patches at random, each image its own; several masks a view and partial decoding are options (MAE).

    He et al. 2022, arXiv:2111.06377: of N patches the int(N (1 - ratio)) with the lowest noise are seen.

    Args:
        ratio: fraction of the patches that is hidden.
        masks: independent masks K of every view; the target is computed once for all of them.
        decode: fraction of the hidden patches that is predicted, chosen at random; the rest is left out.
        predict: `hidden` patches, or `all` of them (when the input is degraded, seen patches have a task too).
        how: hidden patches are left out (`drop`), or the encoder puts its mask token in their place (`token`).
        scan: hide, and ask for, patches of the scan first, and black ones around it only where an image has fewer of
            the scan than are to be hidden: then all of the scan is hidden, and as many black ones as are missing. With
            `predict: all` every patch is asked for all the same.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.75,
        masks: int = 1,
        decode: float = 1.0,
        predict: Literal["hidden", "all"] = "hidden",
        how: Literal["drop", "token"] = "drop",
        scan: bool = False,
    ) -> None:
        super().__init__()
        check_options(ratio, masks, decode, how)
        if predict not in ("hidden", "all"):
            raise ValueError(f"predict is {predict!r}; write hidden or all")
        if predict == "all" and decode != 1.0:
            raise ValueError("decode has no effect when predict is all; leave decode out or write predict: hidden")
        self.ratio = ratio
        self.masks = masks
        self.decode = decode
        self.predict = predict
        self.how = how
        self.scan = scan

    def forward(self, view: View, grid: tuple[int, int], draws: Draws) -> Mask | None:
        """A Mask (B, K, N) for a global view on a grid, None for a local one, which stays whole.

        ValueError when the ratio leaves nothing to see or to hide.
        """
        if view.role == "local":
            return None
        seen = count_seen(grid, self.ratio)
        noise = draws.uniform("mask", self.masks, grid[0] * grid[1])
        mask = hide(noise, seen, self.decode, draws, self.how, shows_scan(view, grid) if self.scan else None)
        if self.predict == "all":
            return Mask(mask.hidden, torch.ones_like(mask.predict), seen, mask.hidden.shape[-1], self.how)
        return mask


def check_options(ratio: float, masks: int, decode: float, how: str = "drop") -> None:
    """ValueError for options that no grid can meet."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio is {ratio}; write a fraction between 0 and 1, such as 0.75")
    if masks < 1:
        raise ValueError(f"masks is {masks}; every view needs at least 1")
    if not 0 < decode <= 1:
        raise ValueError(f"decode is {decode}; write a fraction above 0 and at most 1")
    if how not in ("drop", "token"):
        raise ValueError(f"how is {how!r}; write drop or token")


def count_seen(grid: tuple[int, int], ratio: float) -> int:
    """How many patches of a grid stay seen: int(N (1 - ratio)), as in MAE."""
    patches = grid[0] * grid[1]
    seen = int(patches * (1 - ratio))
    if not 0 < seen < patches:
        nothing = "see" if seen == 0 else "hide"
        raise ValueError(f"ratio {ratio} leaves nothing to {nothing} of {grid[0]} x {grid[1]} patches")
    return seen


def hide(
    score: Tensor, seen: int, decode: float, draws: Draws, how: str = "drop", first: Tensor | None = None
) -> Mask:
    """The Mask that leaves the `seen` lowest scores (B, K, N) of every row to see and predicts a part of the rest.

    first: (B, N) bool, patches that are hidden and predicted before all others.
    """
    if first is not None:
        rank = score.argsort(dim=-1, stable=True).argsort(dim=-1)
        score = rank + first[:, None] * score.shape[-1]
    hidden = ~lowest(score, seen)
    count = score.shape[-1] - seen
    asked = max(1, round(decode * count))
    if asked == count:
        return Mask(hidden, hidden[:, :, None], seen, asked, how)
    noise = draws.uniform("decode", *score.shape[1:])
    if first is not None:
        noise = noise + ~first[:, None]
    chosen = lowest(noise.masked_fill(~hidden, 2.0), asked)  # noise is below 1, and below 2 of what is not first
    return Mask(hidden, chosen[:, :, None], seen, asked, how)


def shows_scan(view: View, grid: tuple[int, int]) -> Tensor:
    """(B, N) bool: patches in which something is brighter than the darkest of the view, and what these enclose.

    A black patch between some of the scan in its row and between some in its column is a cyst or a shadow.
    """
    light = view.clean.amax(1, keepdim=True)
    light = light - light.amin((2, 3), keepdim=True)
    return enclosed(adaptive_max_pool2d(light, grid)[:, 0] > BLACK / 255).flatten(1)


def lowest(score: Tensor, count: int) -> Tensor:
    """Bool, true for the `count` lowest scores of every row; the first of equals."""
    order = score.argsort(dim=-1, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, order[..., :count], True)


@hookimpl
def ussl_maskings() -> dict[str, type[Masking]]:
    """Offer random masking."""
    return {"random": RandomMasking}
