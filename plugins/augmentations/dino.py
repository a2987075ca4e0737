"""DINO's multi-crop: two large views of a picture and several small ones."""

from __future__ import annotations

from typing import Literal

from ussl.hookspecs import hookimpl
from ussl.parts import Augmentation
from ussl.photometric import Distortion
from ussl.sonographic import rescan
from ussl.views import WHOLE_BLUR, Look, Looks, crop, for_ultrasound

JITTER = (0.4, 0.4, 0.2, 0.1)
LOCAL_SIZE, LOCAL_SCALE = 96, (0.05, 0.4)


class DINO(Looks):
    """Two global crops and several small local ones, each distorted (DINO, Caron et al. 2021, arXiv:2104.14294).

    Preset `official`: the published pipeline. Mirrored with probability 0.5; jitter of brightness and contrast by
    0.4, saturation by 0.2, hue by 0.1 in a random order, probability 0.8; greyscale 0.2; Gaussian blur of sigma 0.1
    to 2 pixels, in the first global view always, in the second 0.1, in local views 0.5; the second solarized 0.2.

    Preset `us`: crops that are at least half scan where that can be had, unmirrored; then gain, contrast, gamma,
    speckle, attenuation with depth and a mild blur in the ranges of `ussl.sonographic.CHANGES`.

    Args:
        preset: `official` as published for photographs, `us` for ultrasound.
        size: rows and columns of the global views, in pixels.
        scale: share of the picture's area that a global crop takes (published for ViT-B/16: 0.25 to 1).
        local_views: how many local views; their role is "local".
        local_size: rows and columns of the local views, in pixels; 96 by default.
        local_scale: share of the picture's area that a local crop takes; by default 0.05 to 0.4 (published for
            ViT-B/16: 0.05 to 0.25).
        ratio: width / height of a crop before it is made square.
        horizontal_flip: probability; by default 0.5, with `us` 0: left and right mean something in ultrasound.
    """

    def __init__(
        self,
        *,
        preset: Literal["official", "us"] = "official",
        size: int = 224,
        scale: tuple[float, float] = (0.4, 1.0),
        local_views: int = 8,
        local_size: int | None = None,
        local_scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float | None = None,
    ) -> None:
        us = for_ultrasound(preset)
        if local_views < 0:
            raise ValueError(f"local_views is {local_views}; write how many small views a picture has, 0 for none")
        if local_views == 0 and (local_size, local_scale) != (None, None):
            raise ValueError("local_size and local_scale have no effect with local_views: 0; write null for both")
        local_size = LOCAL_SIZE if local_size is None else local_size
        flip = (0.0 if us else 0.5) if horizontal_flip is None else horizontal_flip
        large = crop(size, scale, ratio, flip)
        small = crop(local_size, local_scale or LOCAL_SCALE, ratio, flip, prefix="local_")
        first, second, local = (
            rescan if us else Distortion(JITTER, blur=blur, taps=WHOLE_BLUR, solarize=solarize)
            for blur, solarize in ((1.0, 0.0), (0.1, 0.2), (0.5, 0.0))
        )
        looks = [Look(large, first), Look(large, second), *[Look(small, local, role="local")] * local_views]
        super().__init__(looks, in_sector=us)


@hookimpl
def ussl_augmentations() -> dict[str, type[Augmentation]]:
    """Offer DINO's multi-crop."""
    return {"dino": DINO}
