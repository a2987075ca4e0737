"""Damage to restore: cells of the picture filled with its mean, and rings of its frequencies removed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ussl.draws import Draws
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Masking, View
from ussl.precision import precise
from ussl_plugins.maskings.random import lowest

CELL = 32  # pixels
BASE, INCREASE, MAX_INCREASE = 4, 0.3, 20  # the authors do not say theirs


class UsfmMasking(Masking):
    """Fills cells of 32 pixels with the picture's mean and removes rings of frequencies, each image its own (USFM).

    Jiao et al. 2024, doi 10.1016/j.media.2024.103202. Of the cells ceil(spatial_ratio x cells) are filled, after the
    frequencies were removed. Radii of the rings, in cycles over the shorter side of the view: `base`, then each larger
    than the one before by int(increase x radius), at most by `max_increase`, below half the side. A ring reaches from
    above one radius to the next; of n radii int(frequency_ratio x n) rings, at least one, are removed, as in the
    authors' code, whose list of rings begins with an empty one. The disc within `base` stays, so the mean of a picture
    does. The result is not clamped to [0, 1], which would put frequencies back.

    Args:
        spatial_ratio: fraction of the cells that is filled and to be predicted; 0 = none, then all is predicted.
        frequency_ratio: fraction of the rings that is removed; 0 = none.
        masks: independent masks K of every view; the target is computed once for all of them.
        cell: side of a cell in pixels, a multiple of the patch that divides the view; by default 32, or where that
            does not fit, the largest below it that does.
        base: smallest radius; 4 unless given.
        increase: by which share of it a radius is smaller than the next; 0.3 unless given.
        max_increase: widest ring; 20 unless given.
    """

    def __init__(
        self,
        *,
        spatial_ratio: float = 0.6,
        frequency_ratio: float = 0.4,
        masks: int = 1,
        cell: int | None = None,
        base: int | None = None,
        increase: float | None = None,
        max_increase: int | None = None,
    ) -> None:
        super().__init__()
        rings = {"base": base, "increase": increase, "max_increase": max_increase}
        _check_ratios(spatial_ratio, frequency_ratio, masks)
        _check_effect(spatial_ratio, frequency_ratio, cell, rings)
        self.spatial_ratio, self.frequency_ratio, self.masks, self.cell = spatial_ratio, frequency_ratio, masks, cell
        self.base = BASE if base is None else base
        self.increase = INCREASE if increase is None else increase
        self.max_increase = MAX_INCREASE if max_increase is None else max_increase
        if frequency_ratio:
            _check_rings(self.base, self.increase, self.max_increase)
        self._rings: dict[Any, tuple[Tensor, int]] = {}  # by size and device: fixed, so not saved

    def forward(self, view: View, grid: tuple[int, int], draws: Draws) -> Mask | None:
        """A Mask (B, K, N) with `image` for a global view, None for a local one, which stays whole.

        `bands` (B, K, h, w) is centred: frequency 0 at (h // 2, w // 2). ValueError when the options do not fit.
        """
        if view.role == "local":
            return None
        image, bands = view.image[:, None].expand(-1, self.masks, -1, -1, -1), None
        if self.frequency_ratio:
            bands = self._bands(view.image, draws)
            image = without(image, bands)
        hidden, count = self._hidden(view.image, grid, draws)
        image = torch.where(_pixels(hidden, grid, view.image), view.image.mean((-2, -1), keepdim=True)[:, None], image)
        patches = grid[0] * grid[1]
        predict = hidden if count else torch.ones_like(hidden)  # removed frequencies are missing everywhere
        return Mask(hidden, predict[:, :, None], patches - count, count or patches, "fill", image, bands)

    def _hidden(self, image: Tensor, grid: tuple[int, int], draws: Draws) -> tuple[Tensor, int]:
        """(B, K, N) the patches of filled cells, and how many these are."""
        if not self.spatial_ratio:
            return torch.zeros(len(image), self.masks, grid[0] * grid[1], dtype=torch.bool, device=image.device), 0
        height, width = image.shape[-2:]
        patch = height // grid[0]
        cell = self._cell(height, width, patch)
        rows, columns, side = height // cell, width // cell, cell // patch
        filled = math.ceil(self.spatial_ratio * rows * columns)
        chosen = lowest(draws.uniform("mask", self.masks, rows * columns), filled).unflatten(-1, (rows, columns))
        hidden = chosen.repeat_interleave(side, -2).repeat_interleave(side, -1).flatten(-2)
        return hidden, filled * side**2

    def _cell(self, height: int, width: int, patch: int) -> int:
        """The side of a cell of this view."""
        fits = [
            side
            for side in range(patch, max(min(height, width), patch) + 1, patch)
            if height % side == 0 and width % side == 0 and self._leaves(height // side * (width // side))
        ]
        if self.cell in fits:
            return self.cell
        if not fits:
            view = f"a view of {height} x {width} with patches of {patch}"
            raise ValueError(f"spatial_ratio {self.spatial_ratio} leaves nothing to see of {view}; write a lower one")
        usual = [side for side in fits if side <= max(CELL, patch)][-1]
        if self.cell is None:
            return usual
        raise ValueError(f"cell is {self.cell}, which {self._misfit(height, width, patch)}; write cell: {usual}")

    def _misfit(self, height: int, width: int, patch: int) -> str:
        """Why cells of the side that was asked for cannot be filled."""
        if self.cell % patch:
            return f"is no multiple of the patch, {patch} pixels"
        if height % self.cell or width % self.cell:
            return f"does not divide a view of {height} x {width}"
        return f"leaves nothing to see of a view of {height} x {width} at spatial_ratio {self.spatial_ratio}"

    def _leaves(self, cells: int) -> bool:
        return math.ceil(self.spatial_ratio * cells) < cells

    def _bands(self, image: Tensor, draws: Draws) -> Tensor:
        """(B, K, h, w) the frequencies removed, centred."""
        number, count = self._numbered(image.shape[-2], image.shape[-1], image.device)
        if not count:
            size = f"{image.shape[-2]} x {image.shape[-1]}"
            raise ValueError(
                f"a view of {size} has no rings of frequencies from base {self.base} on: write a lower base"
            )
        removed = max(int(self.frequency_ratio * (count + 1)), 1)
        chosen = lowest(draws.uniform("frequency", self.masks, count), removed)
        never = torch.zeros_like(chosen[..., :1])
        return torch.cat([never, chosen, never], -1)[..., number]

    def _numbered(self, height: int, width: int, device: torch.device) -> tuple[Tensor, int]:
        """(h, w) in which ring each frequency lies, 1, 2, ...; 0 = the disc within. And how many rings there are."""
        key = (height, width, device)
        if key not in self._rings:
            side = min(height, width)
            bounds = radii(side, self.base, self.increase, self.max_increase)
            y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) * side / n for n in (height, width))
            distance = (y[:, None] ** 2 + x**2).sqrt()
            number = torch.bucketize(distance, torch.tensor(bounds, dtype=torch.float64))
            self._rings[key] = (number.to(device), max(len(bounds) - 1, 0))
        return self._rings[key]


def radii(side: int, base: int, increase: float, max_increase: int) -> list[int]:
    """Between which radii the rings of a picture of `side` x `side` lie, ascending, less than half of it."""
    found, radius = [], base
    while 2 * radius < side:
        found.append(radius)
        radius += min(int(radius * increase), max_increase)
    return found


def without(image: Tensor, bands: Tensor) -> Tensor:
    """Images (B, K, C, h, w) less the frequencies `bands` (B, K, h, w), centred, in every channel."""
    spectrum = torch.fft.fft2(precise(image))
    gone = torch.fft.ifftshift(bands, dim=(-2, -1))[:, :, None]
    return torch.fft.ifft2(spectrum.masked_fill(gone, 0)).real.to(image.dtype)


def _pixels(hidden: Tensor, grid: tuple[int, int], image: Tensor) -> Tensor:
    """(B, K, 1, h, w) the pixels of hidden patches."""
    cells = hidden.unflatten(-1, grid)[:, :, None]
    height, width = image.shape[-2] // grid[0], image.shape[-1] // grid[1]
    return cells.repeat_interleave(height, -2).repeat_interleave(width, -1)


def _check_ratios(spatial: float, frequency: float, masks: int) -> None:
    for name, ratio in (("spatial_ratio", spatial), ("frequency_ratio", frequency)):
        if not 0 <= ratio < 1:
            raise ValueError(f"{name} is {ratio}; write a fraction below 1, such as 0.5, or 0 for none")
    if not spatial and not frequency:
        raise ValueError("spatial_ratio and frequency_ratio are both 0, so nothing is masked; write one above 0")
    if masks < 1:
        raise ValueError(f"masks is {masks}; every view needs at least 1")


def _check_effect(spatial: float, frequency: float, cell: int | None, rings: dict[str, float | None]) -> None:
    if cell is not None and not spatial:
        raise ValueError("cell has no effect when spatial_ratio is 0; leave cell out")
    if cell is not None and cell < 1:
        raise ValueError(f"cell is {cell}; write a number of pixels, such as 32")
    given = [name for name, value in rings.items() if value is not None]
    if given and not frequency:
        raise ValueError(f"{given[0]} has no effect when frequency_ratio is 0; leave {given[0]} out")


def _check_rings(base: int, increase: float, max_increase: int) -> None:
    if base < 1 or max_increase < 1:
        raise ValueError(f"base is {base}, max_increase {max_increase}; write at least 1 of each")
    if not 0 < increase < math.inf or int(base * increase) < 1:
        enough = f"write increase: {math.ceil(100 / base) / 100:g} or more"
        raise ValueError(f"increase {increase} of base {base} is less than 1, so radii would not grow; {enough}")


@hookimpl
def ussl_maskings() -> dict[str, type[Masking]]:
    """Offer masking in space and in frequency."""
    return {"usfm": UsfmMasking}
