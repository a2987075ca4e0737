"""A random part of the picture, at one size."""

from __future__ import annotations

import torch
from torch import Tensor

from ussl.data.resample import random_boxes, resample
from ussl.hookspecs import hookimpl
from ussl.parts import Augmentation, Batch, Draws, View


class Crop(Augmentation):
    """One random resized crop inside each picture, antialiased bicubic, as masked image modelling uses it.

    torchvision's RandomResizedCrop on Pillow images, on the device: `size` pixels square, of an area uniform in
    `scale` times the picture's, its width / height log-uniform in `ratio`. `horizontal_flip` is the probability of
    a mirrored view; 0 by default, since left and right mean something in ultrasound.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}; write a number of pixels, at least 1")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale is {list(scale)}; write shares of the area as [low, high], 0 < low <= high <= 1")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio is {list(ratio)}; write width / height as [low, high], 0 < low <= high")
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {horizontal_flip}; write a probability, 0 to 1")
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.horizontal_flip = horizontal_flip

    def forward(self, batch: Batch, draws: Draws) -> list[View]:
        image = self.cut(batch.pixels, batch.box, draws)
        return [View(image, clean=image, role="global")]

    def cut(self, pixels: Tensor, box: Tensor, draws: Draws) -> Tensor:
        """(B, C, h, w) in [0, 1]: a crop of pictures (B, C, H, W), uint8, in `box`; the same crop for equal draws."""
        image = resample(pixels, random_boxes(box, draws, self.scale, self.ratio), self.size)
        if not self.horizontal_flip:
            return image
        flipped = draws.uniform("flip") < self.horizontal_flip
        return torch.where(flipped[:, None, None, None], image.flip(-1), image)


@hookimpl
def ussl_augmentations() -> dict[str, type[Augmentation]]:
    """Offer the random resized crop."""
    return {"crop": Crop}
