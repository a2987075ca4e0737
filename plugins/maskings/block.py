"""Rectangles of patches hidden together, so that a neighbour cannot give a hidden patch away."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ussl.draws import Draws
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Masking, View
from ussl_plugins.maskings.random import check_options, count_seen, hide, shows_scan

CANDIDATES = 16  # rectangles a mask: more than are needed, drawn at once, so that nobody has to ask for one more


class BlockMasking(Masking):
    """Hides rectangles of patches, as many patches in every image (BEiT's block-wise masking).

    Bao et al. 2022, arXiv:2106.08254, algorithm 1, without its rejections: rectangles of uniform area and log-uniform
    aspect are laid one after another until the count is reached, and the last one shrinks to fit.

    Args:
        ratio: fraction of the patches that is hidden.
        masks: independent masks K of every view; the target is computed once for all of them.
        decode: fraction of the hidden patches that is predicted, chosen at random; the rest is left out.
        min_patches: smallest area of a rectangle, in patches (BEiT: 16 of 14 x 14).
        aspect: smallest height / width of a rectangle; the largest is its inverse.
        how: hidden patches are left out (`drop`), or the encoder puts its mask token in their place (`token`).
        scan: blocks are laid until the count of patches of the scan is reached; black ones around it are hidden, and
            asked for, only where an image has fewer of the scan than that: then all of the scan is hidden, and the
            black ones that the blocks reach first.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.4,
        masks: int = 1,
        decode: float = 1.0,
        min_patches: int = 4,
        aspect: float = 0.3,
        how: Literal["drop", "token"] = "drop",
        scan: bool = False,
    ) -> None:
        super().__init__()
        check_options(ratio, masks, decode, how)
        if min_patches < 1:
            raise ValueError(f"min_patches is {min_patches}; a block has at least 1")
        if not 0 < aspect <= 1:
            raise ValueError(f"aspect is {aspect}; write the smallest height / width, above 0 and at most 1")
        self.ratio = ratio
        self.masks = masks
        self.decode = decode
        self.min_patches = min_patches
        self.aspect = aspect
        self.how = how
        self.scan = scan

    def forward(self, view: View, grid: tuple[int, int], draws: Draws) -> Mask | None:
        """A Mask (B, K, N) for a global view on a grid, None for a local one, which stays whole.

        ValueError when the options do not fit the grid.
        """
        if view.role == "local":
            return None
        seen = count_seen(grid, self.ratio)
        hidden = grid[0] * grid[1] - seen
        if self.min_patches > hidden:
            rows, columns = grid
            raise ValueError(
                f"min_patches {self.min_patches} is more than the {hidden} of {rows} x {columns} patches that ratio "
                f"{self.ratio} hides; write at most {hidden}"
            )
        first = shows_scan(view, grid) if self.scan else None
        return hide(-self._turn(grid, hidden, draws), seen, self.decode, draws, self.how, first)

    def _turn(self, grid: tuple[int, int], hidden: int, draws: Draws) -> Tensor:
        """(B, K, N) when each patch is hidden: the number of the first block over it, plus how far out it lies there.

        The distance is 0 in the middle of a block and 1 on its outline, so a block that is cut short keeps its form,
        and patches that no block covers come last, as the blocks would reach them by growing.
        """
        area, aspect, *place = draws.uniform("block", 4, self.masks, CANDIDATES, 1).unbind(1)  # each (B, K, M, 1)
        area = self.min_patches + area * (hidden - self.min_patches)
        stretch = torch.exp((aspect - 0.5) * math.log(self.aspect))  # square root of height / width
        far = torch.zeros(1, device=area.device)
        index = torch.arange(grid[0] * grid[1], device=area.device)
        position = (index // grid[1], index % grid[1])
        for at, size, side, u in zip(
            position, grid, (area.sqrt() * stretch, area.sqrt() / stretch), place, strict=True
        ):
            length = side.round().clamp(1, size)
            first = u * (size - length + 1)
            jitter = (first.frac() - 0.5) / 5  # of the middle, so that no side of a block always goes first
            middle = first.floor() + (length - 1) / 2 + jitter
            far = torch.maximum(far, (at - middle).abs() * 2 / length)  # (B, K, M, N)
        number = torch.arange(CANDIDATES, device=area.device)[:, None]
        return torch.where(far < 1, number, CANDIDATES).add(far).amin(dim=2)


@hookimpl
def ussl_maskings() -> dict[str, type[Masking]]:
    """Offer block masking."""
    return {"block": BlockMasking}
