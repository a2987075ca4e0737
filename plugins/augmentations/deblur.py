"""A blurred picture to look at and the sharp one to predict."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ussl.data.blur import blur_image, gaussian_blur
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Augmentation, Batch, Draws, Progress, View
from ussl_plugins.augmentations.crop import Crop


class Deblur(Crop):
    """A random crop, blurred for the student and sharp for the target (Deblur-MIM); the blur stays with the encoder.

    Kang et al. 2023, arXiv:2306.08249. The blur is OpenCV's of 8-bit pictures, in pixels of the picture as it was
    read: where the loader has scaled it down, sigma shrinks alike. Below one pixel of the canvas little of it is left
    to undo, and below half a pixel next to nothing; a note says so once, and that a larger `loader.canvas` helps. What
    a crop larger than `size` loses when it shrinks to that is not noted: it did so for the authors too.

    An encoder so trained expects blurred pictures ever after; its export says so, and `ussl` blurs them for it.

    Args:
        size: rows and columns of the view.
        scale: least and largest share of the picture's area.
        ratio: least and largest width / height of the crop.
        horizontal_flip: probability of a mirrored view.
        sigma: of the Gaussian blur, in pixels.
        blur_at: whose pixels these are: of the `source`, before the crop as published, or of the resized `crop`.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        sigma: float = 1.1,
        blur_at: Literal["source", "crop"] = "source",
    ) -> None:
        super().__init__(size=size, scale=scale, ratio=ratio, horizontal_flip=horizontal_flip)
        if not 1 / 12 < sigma <= 100:  # below, OpenCV's kernel is a single 1
            raise ValueError(f"sigma is {sigma}; write the blur in pixels, such as 1.1")
        if blur_at not in ("source", "crop"):
            raise ValueError(f"blur_at is {blur_at!r}; write source or crop")
        self.sigma = sigma
        self.blur_at = blur_at
        self.preprocess = {"gaussian_blur" if blur_at == "source" else "gaussian_blur_resized": sigma}
        self.watching = True

    def after_step(self, at: Progress) -> None:
        self.watching = False

    def forward(self, batch: Batch, draws: Draws) -> list[View]:
        clean = self.cut(batch.pixels, batch.box, draws)
        if self.blur_at == "crop":
            return [View(blur_image(clean, self.sigma), clean)]
        sigma = self.sigma * batch.scale.to(torch.float64)  # in pixels of the canvas
        self._watch(sigma)
        blurred = gaussian_blur(batch.pixels, batch.box, sigma, self.sigma)  # a loader never enlarges
        return [View(self.cut(blurred, batch.box, draws), clean)]

    def _watch(self, sigma: Tensor) -> None:
        """Say once that the blur is below a pixel; an accelerator, which would be waited for, is asked in one step."""
        if (self.watching or sigma.device.type == "cpu") and bool((sigma < 1).any()):
            once(
                f"deblur: sigma {self.sigma}, in pixels of the pictures as they are read, is below one pixel of the "
                "canvas that some of them were scaled down to, so little of the blur is left to undo: raise "
                "loader.canvas to the size of the pictures, or augmentation.sigma"
            )


@hookimpl
def ussl_augmentations() -> dict[str, type[Augmentation]]:
    """Offer the blurred crop with the sharp one as its target."""
    return {"deblur": Deblur}
