"""Cutting boxes out of pictures and resampling them, on the device: Pillow's antialiased bicubic for a whole batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ussl.draws import Draws
from ussl.parts import Batch

_ATTEMPTS = 10  # before a box falls back to the middle of the picture
ENOUGH = 0.5  # of a box is worth seeing: with less, most of a view would be black, yet edges of a fan stay in reach


def resample(pixels: Tensor, box: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The boxes of a batch at one size, as Pillow's `crop(...).resize(size, BICUBIC)` makes them.

    Antialiased when shrinking; pixels outside a box have no weight; clipped after each of the two passes, columns
    before rows unless rows shrink by much more, as in Pillow 13. Pillow also rounds to 8 bits after each pass, so
    the two differ by up to 1.2/255.

    Args:
        pixels: (B, C, H, W) uint8, or float on the same scale of 0 to 255.
        box: (B, 4) y, x, height, width, inside the canvas, at least one pixel.
        size: rows and columns to come out, or one number for both.

    Returns:
        (B, C, h, w) float32 in [0, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    how = _one_by_one if pixels.device.type == "cpu" else _at_once
    with torch.autocast(pixels.device.type, enabled=False):  # in half precision pixels would be off by grey levels
        return how(pixels, box, height, width).clamp_(0, 255).div_(255)


def _one_by_one(pixels: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """For the processor: seven times faster there than matrices, and the same bits whatever the batch and canvas."""
    image = pixels.new_empty(*pixels.shape[:2], height, width, dtype=torch.float32)
    rows_first = _rows_first(box, height, width).tolist()
    for i, (y, x, rows, columns) in enumerate(box.tolist()):
        crop = pixels[i : i + 1, :, y : y + rows, x : x + columns].to(torch.float32)
        between = (height, columns) if rows_first[i] else (rows, width)
        crop = interpolate(crop, between, mode="bicubic", antialias=True).clamp_(0, 255)
        image[i] = interpolate(crop, (height, width), mode="bicubic", antialias=True)[0]
    return image


def _at_once(pixels: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """For an accelerator: a resampling matrix a picture and axis, so that the device is never waited for."""
    y, x, rows, columns = box.to(torch.float32).unbind(1)
    down = _weights(y, rows, pixels.shape[2], height)[:, None]  # (B, 1, h, H)
    across = _weights(x, columns, pixels.shape[3], width)[:, None].transpose(2, 3)  # (B, 1, W, w)
    image = pixels.to(torch.float32)
    columns_first = down @ (image @ across).clamp(0, 255)
    rows_first = (down @ image).clamp(0, 255) @ across
    return torch.where(_rows_first(box, height, width)[:, None, None, None], rows_first, columns_first)


def _rows_first(box: Tensor, height: int, width: int) -> Tensor:
    """(B,) bool: whether Pillow 13 resamples the rows of a box before its columns."""
    rows, columns = box[:, 2], box[:, 3]
    return (rows > height) & (rows - height > 2 * (columns - width))


def resize(batch: Batch, size: int | tuple[int, int]) -> Tensor:
    """(B, C, h, w) in [0, 1]: the whole pictures of a batch at one size, aspect not kept."""
    return resample(batch.pixels, batch.box, size)


def random_boxes(
    box: Tensor,
    draws: Draws,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    share: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, 4) y, x, height, width: one random box inside each of `box`, distributed as torchvision's RandomResizedCrop.

    Area uniform in `scale` times the picture's, width / height log-uniform in `ratio`; the first of ten attempts that
    fits, else the largest middle box of an allowed ratio. From the streams "crop" and "crop/position" of `draws`.

    Args:
        box: (B, 4) the pictures on their canvases.
        draws: of the view.
        scale: least and largest share of the picture's area.
        ratio: least and largest width / height.
        share: how much of boxes (B, n, 4) is worth seeing, (B, n) in 0 to 1; the first attempt that fits and has
            `ENOUGH` of it is then taken, else the one that has most. Each attempt has its own place in the picture.
    """
    height, width = box[:, 2:3].to(torch.float32), box[:, 3:4].to(torch.float32)  # (B, 1)
    rows, columns = _sides(height * width, draws, scale, ratio)
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    place = (
        draws.uniform("crop/position", 2)[:, None] if share is None else draws.uniform("crop/position", _ATTEMPTS, 2)
    )
    corner = (place * (torch.stack([height - rows, width - columns], 2) + 1)).floor()
    attempts = torch.cat([corner + box[:, None, :2], torch.stack([rows, columns], 2)], 2)  # (B, 10, 4)
    worth = torch.ones_like(rows) if share is None else share(attempts).clamp(max=ENOUGH)
    best = torch.where(fits, worth, -1.0).argmax(1)  # of equal maxima the first
    picked = attempts.gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]
    return torch.where(fits.any(1, keepdim=True), picked, _middle(box, ratio)).to(box.dtype)


def _sides(
    area: Tensor, draws: Draws, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Rows and columns, (B, 10) each, of every attempt at a box inside a picture of `area` (B, 1)."""
    part, aspect = draws.uniform("crop", _ATTEMPTS, 2).unbind(2)
    area = area * (scale[0] + (scale[1] - scale[0]) * part)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * aspect)
    return (area / aspect).sqrt().round(), (area * aspect).sqrt().round()


def _middle(box: Tensor, ratio: tuple[float, float]) -> Tensor:
    """(B, 4) float: the largest box of an allowed ratio in the middle of each picture."""
    whole = box[:, 2:].to(torch.float32)
    most = torch.stack([whole[:, 1] / ratio[0], whole[:, 0] * ratio[1]], 1).round()
    sides = torch.minimum(whole, most)
    return torch.cat([box[:, :2] + ((whole - sides) / 2).floor(), sides], 1)


def _weights(start: Tensor, length: Tensor, extent: int, size: int) -> Tensor:
    """(B, size, extent): what each pixel of an axis gives to each of `size` points over [start, start + length).

    Only the few pixels under the kernel are computed, at most as many as it covers when the box is the whole axis.
    """
    taps = min(extent, 2 * math.ceil(2 * max(1.0, extent / size)) + 1)
    start, length = start[:, None], length[:, None]
    step = length / size  # pixels a point
    stretch = step.clamp(min=1)
    centre = (torch.arange(size, device=start.device) + 0.5) * step  # (B, size), in the box
    first = (start + (centre - 2 * stretch + 0.5).floor()).clamp(0, extent - taps)
    tap = first[..., None] + torch.arange(taps, device=start.device)  # (B, size, taps), on the canvas
    place = tap - start[..., None]
    weight = _bicubic((place + 0.5 - centre[..., None]).abs() / stretch[..., None])
    weight = weight * ((place >= 0) & (place < length[..., None]))
    weight = weight / weight.sum(-1, keepdim=True)
    dense = weight.new_zeros(len(start), size, extent)
    return dense.scatter_(2, tap.to(torch.int64), weight)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2, of a distance >= 0 (Keys 1981, doi 10.1109/TASSP.1981.1163711)."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
