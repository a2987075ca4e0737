"""The cells in which the scan of every picture of a batch is looked for, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ussl.data.surround import CELLS, SAMPLES


class Grid:
    """The cells of pictures (B, C, H, W) uint8 that lie in boxes (B, 4) of their canvases.

    Every picture has as many cells as `ussl.data.surround` gives it, whatever the batch and the canvas: `count` (B, 2)
    rows and columns of the R x R, R = CELLS, that there are room for; the others repeat the last ones.
    """

    def __init__(self, pixels: Tensor, box: Tensor) -> None:
        self.canvas = pixels.shape[2:]
        self.start, size = box[:, :2], box[:, 2:]  # (B, 2) y, x
        self.size = size
        longest = size.amax(1).to(torch.float64)
        self.side = longest / ((longest / 2).ceil().clamp(max=CELLS))  # (B,) pixels
        self.count = (size / self.side[:, None] - 1e-9).ceil().to(torch.int64)  # (B, 2) rows, columns
        cell = torch.arange(CELLS, device=size.device)
        self.cell = cell.minimum(self.count[..., None] - 1)  # (B, 2, R) the cell that a place of the grid shows
        inside = cell < self.count[..., None]
        self.inside = inside[:, 0, :, None] & inside[:, 1, None]  # (B, R, R)
        self.samples = self._sampled(pixels)

    def _sampled(self, pixels: Tensor) -> Tensor:
        """(B, R, SAMPLES, R, SAMPLES) uint8: the brightest channel at the samples of every cell."""
        part = torch.arange(SAMPLES, device=pixels.device)
        at = (self.cell[..., None] * SAMPLES + part).flatten(2).to(torch.float64)
        at = ((at + 0.5) / SAMPLES * self.side[:, None, None]).to(torch.int64)
        at = at.minimum(self.size[..., None] - 1) + self.start[..., None]
        picture = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        samples = pixels.amax(1)[picture, at[:, 0, :, None], at[:, 1, None]]
        return samples.unflatten(2, (CELLS, SAMPLES)).unflatten(1, (CELLS, SAMPLES))

    def repeated(self, cells: Tensor) -> Tensor:
        """(B, R, R) the same inside of every picture, and its last row and column outside."""
        picture = torch.arange(len(cells), device=cells.device)[:, None, None]
        return cells[picture, self.cell[:, 0, :, None], self.cell[:, 1, None]]

    def to_pixels(self, cells: Tensor) -> Tensor:
        """(B, H, W) bool of cells (B, R, R): the picture's own, none outside of it."""
        places, known = [], []
        for axis, length in enumerate(self.canvas):
            at = torch.arange(length, device=cells.device) - self.start[:, axis : axis + 1]
            place = ((at + 0.5) / self.side[:, None]).to(torch.int64)
            places.append(place.clamp(min=0).minimum(self.count[:, axis : axis + 1] - 1))
            known.append((at >= 0) & (at < self.size[:, axis : axis + 1]))
        picture = torch.arange(len(cells), device=cells.device)[:, None, None]
        found = cells[picture, places[0][:, :, None], places[1][:, None]]
        return found & known[0][:, :, None] & known[1][:, None]

    def box_of(self, cells: Tensor) -> Tensor:
        """(B, 4) int64 y, x, height, width of the pixels that cells (B, R, R) reach; there is at least one."""
        edges = []
        for axis in (2, 1):
            some = cells.any(axis).to(torch.int64)
            first, behind = some.argmax(1), CELLS - some.flip(1).argmax(1)
            edges.append(((first * self.side).floor(), (behind * self.side).ceil()))
        (top, bottom), (left, right) = edges
        bottom, right = bottom.minimum(self.size[:, 0]), right.minimum(self.size[:, 1])
        box = torch.stack([top, left, bottom - top, right - left], 1).to(torch.int64)
        return torch.cat([box[:, :2] + self.start, box[:, 2:]], 1)
