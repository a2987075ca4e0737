"""Gaussian blur of 8-bit pictures, on the device: OpenCV's for a whole batch, each picture with a sigma of its own."""

from __future__ import annotations

import torch
from torch import Tensor

_ONE = 256  # weights are whole numbers of 1/256, so that both passes are exact and one rounding ends them


def gaussian_blur(pixels: Tensor, box: Tensor, sigma: Tensor, largest: float | None = None) -> Tensor:
    """The pictures blurred as OpenCV blurs 8-bit ones with `ksize=(0, 0)`, bit for bit; each channel by itself.

    A picture is reflected at the edges of its box (the outermost pixel once), not at the canvas'.

    Args:
        pixels: (B, C, H, W) uint8.
        box: (B, 4) y, x, height, width of the pictures on their canvas; what lies outside stays.
        sigma: (B,) of each picture, in pixels of the canvas, above 0.
        largest: no sigma is above it. Without it an accelerator is asked, and so waited for.

    Returns:
        (B, C, H, W) uint8.
    """
    sigma = sigma.to(torch.float64)
    if largest is None or pixels.device.type == "cpu":
        largest = sigma.amax().item()
    else:
        torch._assert_async((sigma <= largest).all())
    taps = kernels(sigma, largest)
    return _one_by_one(pixels, box, taps) if pixels.device.type == "cpu" else _at_once(pixels, box, taps)


def blur_image(image: Tensor, sigma: float) -> Tensor:
    """Whole images (B, C, h, w) in [0, 1], rounded to 8 bits and blurred with `sigma` in their own pixels."""
    count, _, height, width = image.shape
    box = torch.tensor([0, 0, height, width], device=image.device).expand(count, 4)
    pixels = image.mul(255).round().to(torch.uint8)
    blurred = gaussian_blur(pixels, box, torch.full((count,), sigma, device=image.device, dtype=torch.float64), sigma)
    return blurred.to(image.dtype).div_(255)


def kernels(sigma: Tensor, largest: float) -> Tensor:
    """(B, R + 1) int32: weights of 1/256 at distances 0 to R of the pixel, of each `sigma` (B,), float64.

    OpenCV's for 8-bit pictures: round(6 sigma + 1) | 1 taps, whose Gaussian is rounded from the outermost inwards,
    what each rounding loses handed to the next, and the middle makes the sum one. R is that of `largest`.
    """
    reach = _reach(torch.tensor(largest, dtype=torch.float64)).long().item()
    distance = torch.arange(reach + 1, device=sigma.device, dtype=torch.float64)
    weight = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2) * (distance <= _reach(sigma)[:, None])
    weight = _ONE * weight / (2 * weight.sum(1, keepdim=True) - 1)  # the middle is there once
    lost = torch.zeros_like(sigma)
    side: list[Tensor] = []
    for exact in weight[:, 1:].flip(1).unbind(1):
        lost = exact + lost
        side.insert(0, lost.round())
        lost = lost - side[0]
    middle = _ONE - 2 * sum(side, torch.zeros_like(sigma))
    return torch.stack([middle, *side], 1).to(torch.int32)


def _reach(sigma: Tensor) -> Tensor:
    """How many pixels to each side a blur of `sigma` reaches."""
    return ((6 * sigma + 1).round() / 2).floor()


def _one_by_one(pixels: Tensor, box: Tensor, taps: Tensor) -> Tensor:
    """For the processor."""
    blurred = pixels.clone()
    for canvas, (y, x, rows, columns), weights in zip(blurred, box.tolist(), taps.tolist(), strict=True):
        picture = canvas[:, y : y + rows, x : x + columns]
        both = _pass(_pass(picture.to(torch.int32), weights, 2), weights, 1)
        picture.copy_(_rounded(both))
    return blurred


def _pass(picture: Tensor, weights: list[int], axis: int) -> Tensor:
    """256 times an int32 picture (C, h, w) blurred along one axis."""
    size, reach = picture.shape[axis], len(weights) - 1
    before, after = torch.arange(-reach, 0), torch.arange(size, size + reach)
    edges = [picture.index_select(axis, _reflected(place, size)) for place in (before, after)]
    wide = torch.cat([edges[0], picture, edges[1]], axis)
    total = wide.narrow(axis, reach, size) * weights[0]
    for distance, weight in enumerate(weights[1:], 1):
        if weight:
            pair = wide.narrow(axis, reach - distance, size) + wide.narrow(axis, reach + distance, size)
            total.add_(pair, alpha=weight)
    return total


def _at_once(pixels: Tensor, box: Tensor, taps: Tensor) -> Tensor:
    """For an accelerator, which is never waited for."""
    total, inside = pixels.to(torch.int32), torch.ones((), dtype=torch.bool, device=pixels.device)
    for axis, start, length in ((3, box[:, 1], box[:, 3]), (2, box[:, 0], box[:, 2])):
        shape = [len(box), 1, 1, 1]
        shape[axis] = pixels.shape[axis]
        place = torch.arange(pixels.shape[axis], device=pixels.device) - start[:, None]  # (B, size), in the box
        inside = inside & ((place >= 0) & (place < length[:, None])).view(shape)
        total = _pass_of_each(total, taps, axis, place, start[:, None], length[:, None], shape)
    return torch.where(inside, _rounded(total).to(torch.uint8), pixels)


def _pass_of_each(
    x: Tensor, taps: Tensor, axis: int, place: Tensor, start: Tensor, length: Tensor, shape: list[int]
) -> Tensor:
    """256 times int32 canvases (B, C, H, W) blurred along one axis; `place` (B, size) of its pixels in the boxes."""

    def at(shift: int) -> Tensor:
        return x.gather(axis, (start + _reflected(place + shift, length)).view(shape).expand_as(x))

    total = x * taps[:, 0].view(-1, 1, 1, 1)
    for distance, weight in enumerate(taps.unbind(1)[1:], 1):
        total.addcmul_(weight.view(-1, 1, 1, 1), at(-distance) + at(distance))
    return total


def _reflected(place: Tensor, length: Tensor | int) -> Tensor:
    """Positions in [0, length) of any `place`: 2 1 | 0 1 2 3 | 2 1, as often as it takes."""
    period = (2 * torch.as_tensor(length) - 2).clamp(min=1)
    place = place % period
    return torch.minimum(place, period - place).clamp(max=torch.as_tensor(length) - 1)


def _rounded(total: Tensor) -> Tensor:
    """Grey levels of 65536 times themselves."""
    return (total + (1 << 15)) >> 16
