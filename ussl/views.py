"""Several views of every picture, each a crop and a change of its own: what augmentations of siamese methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ussl.data.resample import random_boxes, resample
from ussl.data.sector import Sector
from ussl.parts import Augmentation, Batch, Draws, View

WHOLE_BLUR = 17  # taps that hold a Gaussian of sigma 2 up to 4 sigma: Pillow's blur does not cut it off either


@dataclass(frozen=True, slots=True)
class Crop:
    """A random part of a picture, square, antialiased bicubic, perhaps mirrored."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    horizontal_flip: float

    def __call__(self, batch: Batch, draws: Draws, share: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(B, C, size, size) in [0, 1]; `share` as random_boxes takes it."""
        image = resample(batch.pixels, random_boxes(batch.box, draws, self.scale, self.ratio, share), self.size)
        if not self.horizontal_flip:
            return image
        flipped = draws.uniform("flip") < self.horizontal_flip
        return torch.where(flipped[:, None, None, None], image.flip(-1), image)


@dataclass(frozen=True, slots=True)
class Look:
    """How one view comes about: its crop, then its change."""

    crop: Crop
    change: Callable[[Tensor, Draws], Tensor]
    role: str = "global"


class Looks(Augmentation):
    """One view a look, from streams of its own; in fp32, whatever surrounds it.

    Args:
        looks: in the order of the views.
        in_sector: prefer crops at least half of which is scan, not the black around it.
    """

    def __init__(self, looks: Sequence[Look], in_sector: bool) -> None:
        super().__init__()
        self.looks = tuple(looks)
        self.size = self.looks[0].crop.size  # of the first view, a global one
        self.in_sector = in_sector

    def forward(self, batch: Batch, draws: Draws) -> list[View]:
        """(B, C, h, w) in [0, 1] of every look."""
        with torch.autocast(batch.pixels.device.type, enabled=False):
            share = Sector(batch).share if self.in_sector else None
            return [self._view(look, batch, draws.view(i), share) for i, look in enumerate(self.looks)]

    def _view(self, look: Look, batch: Batch, draws: Draws, share: Callable[[Tensor], Tensor] | None) -> View:
        image = look.change(look.crop(batch, draws, share), draws)
        return View(image, clean=image, role=look.role)


def for_ultrasound(preset: str) -> bool:
    """Whether the preset is "us"; ValueError when it is neither that nor "official"."""
    if preset not in ("official", "us"):
        raise ValueError(f'preset is {preset!r}; write "official" or "us"')
    return preset == "us"


def crop(
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    horizontal_flip: float,
    prefix: str = "",
) -> Crop:
    """A crop from an augmentation's options; those of size and scale are called `prefix` + that.

    ValueError says which is wrong and what to write.
    """
    if size < 1:
        raise ValueError(f"{prefix}size is {size}; write a number of pixels, at least 1")
    if not 0 < scale[0] <= scale[1] <= 1:
        shares = "write shares of the area as [low, high], 0 < low <= high <= 1"
        raise ValueError(f"{prefix}scale is {list(scale)}; {shares}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio is {list(ratio)}; write width / height as [low, high], 0 < low <= high")
    if not 0 <= horizontal_flip <= 1:
        raise ValueError(f"horizontal_flip is {horizontal_flip}; write a probability, 0 to 1")
    return Crop(size, scale, ratio, horizontal_flip)
