"""MoCo-v3's two views of a picture."""

from __future__ import annotations

from typing import Literal

from ussl.hookspecs import hookimpl
from ussl.parts import Augmentation
from ussl.photometric import Distortion
from ussl.sonographic import rescan
from ussl.views import WHOLE_BLUR, Look, Looks, crop, for_ultrasound

JITTER = (0.4, 0.4, 0.2, 0.1)


class MoCoV3(Looks):
    """Two crops distorted unalike, one always blurred (MoCo-v3, Chen et al. 2021, arXiv:2104.02057).

    Preset `official`: the published pipeline. Mirrored with probability 0.5; jitter of brightness and contrast by
    0.4, saturation by 0.2, hue by 0.1 in a random order, probability 0.8; greyscale 0.2; Gaussian blur of sigma 0.1
    to 2 pixels, in the first view always, in the second 0.1; there solarized 0.2.

    Preset `us`: crops of at least 0.2 of the picture, at least half scan where that can be had, unmirrored; then gain,
    contrast, gamma, speckle, attenuation with depth and a mild blur in the ranges of `ussl.sonographic.CHANGES`.

    Args:
        preset: `official` as published for photographs, `us` for ultrasound.
        size: rows and columns of the views, in pixels.
        scale: share of the picture's area that a crop takes; by default 0.08 to 1 as published for vision
            transformers (0.2 to 1 for a ResNet-50), with `us` 0.2 to 1, since two crops of 8 % of a scan seldom show
            the same anatomy.
        ratio: width / height of a crop before it is made square.
        horizontal_flip: probability; by default 0.5, with `us` 0: left and right mean something in ultrasound.
    """

    def __init__(
        self,
        *,
        preset: Literal["official", "us"] = "official",
        size: int = 224,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float | None = None,
    ) -> None:
        us = for_ultrasound(preset)
        scale = scale or ((0.2, 1.0) if us else (0.08, 1.0))
        flip = (0.0 if us else 0.5) if horizontal_flip is None else horizontal_flip
        first = Distortion(JITTER, blur=1.0, taps=WHOLE_BLUR)
        second = Distortion(JITTER, blur=0.1, taps=WHOLE_BLUR, solarize=0.2)
        part = crop(size, scale, ratio, flip)
        super().__init__([Look(part, rescan if us else change) for change in (first, second)], in_sector=us)


@hookimpl
def ussl_augmentations() -> dict[str, type[Augmentation]]:
    """Offer MoCo-v3's views."""
    return {"mocov3": MoCoV3}
