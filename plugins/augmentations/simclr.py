"""SimCLR's two views of a picture."""

from __future__ import annotations

from typing import Literal

from ussl.hookspecs import hookimpl
from ussl.parts import Augmentation
from ussl.photometric import Distortion
from ussl.sonographic import rescan
from ussl.views import Look, Looks, crop, for_ultrasound


class SimCLR(Looks):
    """Two crops distorted alike, with strong jitter (SimCLR, Chen et al. 2020, arXiv:2002.05709).

    Preset `official`: the published pipeline with the multiplicative brightness of its second version
    (arXiv:2006.10029). Mirrored with probability 0.5; jitter of brightness, contrast, saturation by 0.8 s and hue by
    0.2 s in a random order, probability 0.8; greyscale 0.2; Gaussian blur 0.5, sigma 0.1 to 2 pixels over a tenth of
    the view's side (23 taps at 224, at least 3). Contrast is about the grey picture's mean, as in Pillow; TensorFlow's
    is about each channel's, the same on grey.

    Preset `us`: crops of at least 0.2 of the picture, at least half scan where that can be had, unmirrored; then gain,
    contrast, gamma, speckle, attenuation with depth and a mild blur in the ranges of `ussl.sonographic.CHANGES`.

    Args:
        preset: `official` as published for photographs, `us` for ultrasound.
        size: rows and columns of the views, in pixels.
        scale: share of the picture's area that a crop takes; by default 0.08 to 1, with `us` 0.2 to 1, since two
            crops of 8 % of a scan seldom show the same anatomy.
        ratio: width / height of a crop before it is made square.
        horizontal_flip: probability; by default 0.5, with `us` 0: left and right mean something in ultrasound.
        jitter_strength: s above, of the preset `official` only; 1 by default, 0.5 for small pictures in the paper.
    """

    def __init__(
        self,
        *,
        preset: Literal["official", "us"] = "official",
        size: int = 224,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float | None = None,
        jitter_strength: float | None = None,
    ) -> None:
        us = for_ultrasound(preset)
        if us and jitter_strength is not None:
            raise ValueError(
                "jitter_strength has no effect with preset us, whose ranges are fixed; remove it, or write "
                "preset: official"
            )
        strength = 1.0 if jitter_strength is None else jitter_strength
        if not 0 <= strength <= 2.5:
            raise ValueError(f"jitter_strength is {strength}; write 0 to 2.5, beyond which hues go round twice")
        scale = scale or ((0.2, 1.0) if us else (0.08, 1.0))
        flip = (0.0 if us else 0.5) if horizontal_flip is None else horizontal_flip
        strengths = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        taps = max(3, size // 10 // 2 * 2 + 1)
        change = rescan if us else Distortion(strengths, blur=0.5, taps=taps)
        super().__init__([Look(crop(size, scale, ratio, flip), change)] * 2, in_sector=us)


@hookimpl
def ussl_augmentations() -> dict[str, type[Augmentation]]:
    """Offer SimCLR's views."""
    return {"simclr": SimCLR}
