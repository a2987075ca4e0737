"""Batches without what a display shows around the scan: text, logos, rulers, tints of grey; done on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ussl.data.colour import FEW, STRAY, TINT
from ussl.data.finding import scan_cells
from ussl.data.grid import Grid
from ussl.parts import Augmentation, Batch, Draws, View

CHUNK = 32  # pictures at once: they take a few MB each
Scan = Literal["keep", "mask", "crop"]


class Cleaning:
    """What a batch undergoes before its augmentation: `scan` and `grey` as `ussl.data.scan.cleaned` has them.

    Colourless pictures keep three channels, which are then equal. Nothing is random, and a picture comes out the same
    in any batch.
    """

    def __init__(self, scan: Scan = "keep", grey: bool = False) -> None:
        self.scan, self.grey = scan, grey

    @classmethod
    def undergone(cls, preprocess: Mapping[str, float]) -> Cleaning:
        """The one that `preprocess` of an encoder tells of."""
        scan: Scan = "crop" if preprocess.get("scan_crop") else "mask" if preprocess.get("scan_mask") else "keep"
        return cls(scan, bool(preprocess.get("grey")))

    @property
    def preprocess(self) -> dict[str, float]:
        """What is to be done ever after for an encoder trained on such batches."""
        told: dict[str, float] = {} if self.scan == "keep" else {f"scan_{self.scan}": 1}
        return told | ({"grey": 1} if self.grey else {})

    def __call__(self, batch: Batch) -> Batch:
        """The batch, cleaned; with `crop`, each box is that of its scan."""
        pixels, box = self.clean(batch.pixels, batch.box)
        return replace(batch, pixels=pixels, box=box)

    def clean(self, pixels: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """The same of pixels (B, C, H, W) uint8 and boxes (B, 4); themselves where there is nothing to do."""
        if self.scan != "keep":
            parts = zip(pixels.split(CHUNK), box.split(CHUNK), strict=True)
            pixels, box = (torch.cat(done) for done in zip(*(self._masked(*part) for part in parts), strict=True))
        if self.grey and pixels.shape[1] == 3:
            pixels = _grey_where_colourless(pixels, box)
        return pixels, box

    def _masked(self, pixels: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels, black outside of the scan, and the boxes, of the scan where they are to be."""
        grid = Grid(pixels, box)
        region = scan_cells(grid)
        return pixels * grid.to_pixels(region)[:, None], grid.box_of(region) if self.scan == "crop" else box


class Cleaned(Augmentation):
    """Another augmentation, given cleaned batches. Its `preprocess` tells of both."""

    def __init__(self, cleaning: Cleaning, augmentation: Augmentation) -> None:
        super().__init__()
        self.cleaning, self.augmentation = cleaning, augmentation
        self.preprocess = {**cleaning.preprocess, **augmentation.preprocess}

    def forward(self, batch: Batch, draws: Draws) -> list[View]:
        """The views of every image, each (B, C, h, w) in [0, 1]."""
        return self.augmentation(self.cleaning(batch), draws)


def _grey_where_colourless(pixels: Tensor, box: Tensor) -> Tensor:
    """(B, 3, H, W) with equal channels where a picture has no colour within its box."""
    y, x, height, width = box[:, :, None].unbind(1)
    down, across = (torch.arange(n, device=pixels.device) for n in pixels.shape[2:])
    inside = ((down >= y) & (down < y + height))[:, :, None] & ((across >= x) & (across < x + width))[:, None]
    coloured = ((pixels.amax(1) - pixels.amin(1) > TINT) & inside).sum((1, 2))
    plain = coloured <= (STRAY * box[:, 2] * box[:, 3]).clamp(min=FEW)
    red, green, blue = pixels.to(torch.int32).unbind(1)
    grey = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)
    return torch.where(plain[:, None, None, None], grey[:, None], pixels)
