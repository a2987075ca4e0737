"""Changes that make two scans out of one: those an operator, a machine or a deeper layer of tissue would make.

Safe for grey: nothing is inverted, turned upside down or coloured, and only a lower contrast lifts the black around a
scan, by at most 0.3 of the mean grey. Images are float (B, C, h, w) in [0, 1]; channels change alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ussl.draws import Draws
from ussl.photometric import between, blur, brightness, contrast, gamma, sometimes


def attenuate(image: Tensor, rate: Tensor) -> Tensor:
    """Darker with depth: exp(-rate * depth), depth from 0 in the first row to 1 in the last; rate (B,) >= 0."""
    rows = image.shape[2]
    depth = torch.arange(rows, dtype=image.dtype, device=image.device) / max(rows - 1, 1)
    return image * torch.exp(-rate.to(image.dtype)[:, None, None, None] * depth[:, None])


def speckle(image: Tensor, strength: Tensor, numbers: Tensor) -> Tensor:
    """Multiplied by 1 + strength * (r - 1), r of a Rayleigh distribution of mean 1 and deviation 0.52, then clipped.

    Args:
        image: (B, C, h, w).
        strength: (B,), 0 to 1.
        numbers: (B, h * w) uniform in [0, 1), one a pixel.
    """
    rayleigh = (-4 / math.pi * torch.log1p(-numbers)).sqrt().view(-1, 1, *image.shape[2:])
    return (image * (1 + strength[:, None, None, None] * (rayleigh - 1))).clamp(0, 1)


def smooth(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of `sigma` (B,) up to one pixel."""
    return blur(image, sigma, taps=7)


@dataclass(frozen=True, slots=True)
class Change:
    """One change: how, with a number from which range, and of which share of the views."""

    name: str
    apply: Callable[..., Tensor]
    low: float
    high: float
    probability: float
    noisy: bool = False  # also takes a number a pixel

    def __call__(self, image: Tensor, draws: Draws) -> Tensor:
        """The image, changed where its picture's number says so."""
        chance, place = draws.uniform(self.name, 2).unbind(1)
        numbers = [between(self.low, self.high, place)]
        if self.noisy:
            numbers.append(draws.uniform(f"{self.name}/pixels", image.shape[2] * image.shape[3]))
        return sometimes(chance < self.probability, self.apply, image, *numbers)


# In the order in which a scan comes about: tissue, echoes, the machine's smoothing, then its knobs. The ranges are
# choices, not measurements; each is meant to leave every structure visible that a reader would report.
CHANGES = (
    # at most to 37 % in the last row; the published augmentation goes to 5 % (rate 3: Ostvik et al. 2021, doi
    # 10.1109/TMI.2021.3054566, as Tupper & Gagne 2025, arXiv:2501.13193, put it in numbers), where depth is lost
    Change("attenuation", attenuate, 0.0, 1.0, 0.5),
    # amplitudes of fully developed speckle are Rayleigh distributed (Burckhardt 1978, doi 10.1109/T-SU.1978.30978);
    # pictures hold speckle already, so at most half as much again
    Change("speckle", speckle, 0.0, 0.5, 0.5, noisy=True),
    # speckle is signal, which blur destroys: rarely, and half of the sigma for photographs
    Change("smoothing", smooth, 0.3, 1.0, 0.3),
    # the gain and dynamic-range knobs: the jitter of MoCo-v3 and DINO, a little less
    Change("gain", brightness, 0.7, 1.3, 0.8),
    Change("contrast", contrast, 0.7, 1.3, 0.8),
    # grey maps of machines: exponents about which scanners differ
    Change("gamma", gamma, 0.7, 1.4, 0.5),
)


def rescan(image: Tensor, draws: Draws) -> Tensor:
    """As another scan of the same anatomy might show it (B, C, h, w)."""
    for change in CHANGES:
        image = change(image, draws)
    return image
