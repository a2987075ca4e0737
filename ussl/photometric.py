"""Changes of brightness, colour and sharpness of a batch of views, each picture by numbers of its own.

The operations are kornia's functions, given numbers from `Draws`: kornia's classes would draw from the global random
state. Images are float (B, C, h, w) in [0, 1], C 1 or 3, numbers (B,); results stay in [0, 1] and keep the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ussl import notice
from ussl.draws import Draws

SIGMA = (0.1, 2.0)  # pixels of a view: the blur of SimCLR, MoCo-v3 and DINO alike
_COLOURLESS = 2  # brightness and contrast come first in a jitter; the rest does nothing to grey
_GREY = "the pictures are grey: the preset's hue, saturation and greyscale would change nothing and are left out"


def brightness(image: Tensor, factor: Tensor) -> Tensor:
    """The image times `factor` >= 0 (Pillow's ImageEnhance.Brightness)."""
    from kornia.enhance import adjust_brightness_accumulative

    return adjust_brightness_accumulative(image, factor)


def contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of the grey picture by `factor` >= 0 (Pillow's ImageEnhance.Contrast)."""
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    return adjust_contrast_with_mean_subtraction(image, factor)


def saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Away from the grey picture by `factor` >= 0 (Pillow's ImageEnhance.Color); grey images stay."""
    from kornia.enhance import adjust_saturation_with_gray_subtraction

    return adjust_saturation_with_gray_subtraction(image, factor)


def hue(image: Tensor, turn: Tensor) -> Tensor:
    """Colours turned by `turn` of the circle of hues, in -0.5 to 0.5; grey images stay."""
    from kornia.enhance import adjust_hue

    return image if image.shape[1] == 1 else adjust_hue(image, 2 * math.pi * turn).clamp(0, 1)


def greyscale(image: Tensor) -> Tensor:
    """0.299 red + 0.587 green + 0.114 blue in every channel (ITU-R BT.601, as Pillow); grey images stay."""
    from kornia.color import rgb_to_grayscale

    return image if image.shape[1] == 1 else rgb_to_grayscale(image).expand_as(image)


def blur(image: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Gaussian blur of `sigma` pixels, cut off after `taps` (odd) each way; the picture goes on mirrored at its edges.

    Fewer taps where mirrored edges would reach beyond the picture.
    """
    from kornia.filters import filter2d_separable, get_gaussian_kernel1d  # gaussian_blur2d would read sigma: a wait

    taps = min(taps, 2 * min(image.shape[2:]) - 1)
    kernel = get_gaussian_kernel1d(taps, sigma.to(image.dtype)[:, None])
    return filter2d_separable(image, kernel, kernel, "reflect").clamp(0, 1)


def gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """The image to the power of `exponent` > 0: above 1 dark grows darker."""
    from kornia.enhance import adjust_gamma

    return adjust_gamma(image, exponent)


def solarize(image: Tensor) -> Tensor:
    """What is at least half bright inverted: of 8 bits, 128 and more (Pillow's ImageOps.solarize)."""
    from kornia.enhance import solarize

    return solarize(image, 0.5)


def sometimes(chosen: Tensor, change: Callable[..., Tensor], image: Tensor, *numbers: Tensor) -> Tensor:
    """`change(image, *numbers)` of the `chosen` (B,) pictures, the others as they are."""
    how = _one_by_one if image.device.type == "cpu" else _at_once
    return how(chosen, change, image, *numbers)


def _one_by_one(chosen: Tensor, change: Callable[..., Tensor], image: Tensor, *numbers: Tensor) -> Tensor:
    """For the processor: pictures not chosen cost nothing, and the bits do not depend on the rest of the batch."""
    rows = chosen.nonzero()[:, 0].tolist()
    image = image.clone() if rows else image
    for i in rows:
        image[i : i + 1] = change(image[i : i + 1], *(x[i : i + 1] for x in numbers))
    return image


def _at_once(chosen: Tensor, change: Callable[..., Tensor], image: Tensor, *numbers: Tensor) -> Tensor:
    """For an accelerator: all are changed and some taken, so that the device is never waited for."""
    return torch.where(chosen[:, None, None, None], change(image, *numbers), image)


def between(low: float, high: float, place: Tensor) -> Tensor:
    """From `place` in 0 to 1 to `low` to `high`."""
    return low + (high - low) * place


@dataclass(frozen=True, slots=True)
class Distortion:
    """Colour jitter, greyscale, blur and solarization, each of a picture with a probability, in this order.

    As SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A) began it and MoCo-v3 and DINO went on with it.

    Args:
        strengths: of the jitter: brightness, contrast and saturation by a factor uniform in max(0, 1 - s) to 1 + s,
            hue turned by -s to s of its circle; in an order of the picture's own.
        blur: probability of a Gaussian blur whose sigma is uniform in 0.1 to 2 pixels.
        taps: of that blur.
        solarize: probability.
        jitter: probability.
        greyscale: probability.
    """

    strengths: tuple[float, float, float, float]
    blur: float
    taps: int
    solarize: float = 0.0
    jitter: float = 0.8
    greyscale: float = 0.2

    def __call__(self, image: Tensor, draws: Draws) -> Tensor:
        """Distorted (B, C, h, w)."""
        image = self._jittered(image, draws)
        if image.shape[1] == 1 and (self.greyscale or any(self.strengths[_COLOURLESS:])):
            notice.once(_GREY)
        elif self.greyscale:
            image = sometimes(draws.uniform("greyscale") < self.greyscale, greyscale, image)
        if self.blur:
            chance, place = draws.uniform("blur", 2).unbind(1)
            image = sometimes(chance < self.blur, partial(blur, taps=self.taps), image, between(*SIGMA, place))
        if self.solarize:
            image = sometimes(draws.uniform("solarize") < self.solarize, solarize, image)
        return image

    def _jittered(self, image: Tensor, draws: Draws) -> Tensor:
        """Brightness, contrast, saturation and hue changed, in an order drawn for each picture."""
        kinds = range(_COLOURLESS if image.shape[1] == 1 else len(self.strengths))
        present = [kind for kind in kinds if self.strengths[kind]]
        chosen = draws.uniform("jitter") < self.jitter
        numbers = draws.uniform("jitter/strength", len(self.strengths)).unbind(1)
        keys = draws.uniform("jitter/order", len(self.strengths)).unbind(1)
        for place in range(len(present)):
            for kind in present:
                before = sum((keys[other] < keys[kind]).int() for other in present)  # (B,) kinds whose turn is earlier
                now = chosen & (before == place)
                image = sometimes(now, _JITTER[kind], image, self._number(kind, numbers[kind]))
        return image

    def _number(self, kind: int, place: Tensor) -> Tensor:
        """The factor, or the turn of hue, at `place` in 0 to 1 of its range."""
        strength = self.strengths[kind]
        if _JITTER[kind] is hue:
            return between(-strength, strength, place)
        return between(max(0.0, 1 - strength), 1 + strength, place)


_JITTER = (brightness, contrast, saturation, hue)
