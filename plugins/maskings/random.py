"""Patches hidden at random, and what every masking shares: counts and the choice of what is decoded."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

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
    """

    def __init__(
        self,
        *,
        ratio: float = 0.75,
        masks: int = 1,
        decode: float = 1.0,
        predict: Literal["hidden", "all"] = "hidden",
        how: Literal["drop", "token"] = "drop",
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

    def forward(self, view: View, grid: tuple[int, int], draws: Draws) -> Mask | None:
        """A Mask (B, K, N) for a global view on a grid, None for a local one, which stays whole.

        ValueError when the ratio leaves nothing to see or to hide.
        """
        if view.role == "local":
            return None
        seen = count_seen(grid, self.ratio)
        noise = draws.uniform("mask", self.masks, grid[0] * grid[1])
        mask = hide(noise, seen, self.decode, draws, self.how)
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


def hide(score: Tensor, seen: int, decode: float, draws: Draws, how: str = "drop") -> Mask:
    """The Mask that leaves the `seen` lowest scores (B, K, N) of every row to see and predicts a part of the rest."""
    hidden = ~lowest(score, seen)
    count = score.shape[-1] - seen
    asked = max(1, round(decode * count))
    if asked == count:
        return Mask(hidden, hidden[:, :, None], seen, asked, how)
    noise = draws.uniform("decode", *score.shape[1:])
    chosen = lowest(noise.masked_fill(~hidden, 2.0), asked)  # noise is below 1
    return Mask(hidden, chosen[:, :, None], seen, asked, how)


def lowest(score: Tensor, count: int) -> Tensor:
    """Bool, true for the `count` lowest scores of every row; the first of equals."""
    order = score.argsort(dim=-1, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, order[..., :count], True)


@hookimpl
def ussl_maskings() -> dict[str, type[Masking]]:
    """Offer random masking."""
    return {"random": RandomMasking}
