"""Cutting boxes out of pictures and resampling them, on the device: Pillow's antialiased bicubic for a whole batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ussl.draws import Draws
from ussl.parts import Batch

_BLOCK = 16  # points of a row that the processor computes as one product
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
    with torch.autocast(pixels.device.type, enabled=False):  # in half precision pixels would be off by grey levels
        if pixels.device.type == "cpu":
            return _one_by_one(pixels, box, height, width, white=1.0)
        return _at_once(pixels, box, height, width).clamp_(0, 255).div_(255)


def _one_by_one(pixels: Tensor, box: Tensor, height: int, width: int, white: float = 255.0) -> Tensor:
    """For the processor, where few pixels have a weight: the same bits whatever the batch and canvas. 255 -> white."""
    image = torch.from_numpy(np.empty((*pixels.shape[:2], height, width), np.float32))  # numpy asks for huge pages
    given, rows_first = pixels.detach().numpy(), _rows_first(box, height, width).tolist()
    with torch.inference_mode():  # a tenth faster
        for i, (y, x, rows, columns) in enumerate(box.tolist()):
            for channel in range(len(given[i])):
                cut = given[i, channel, y : y + rows, x : x + columns]
                if rows_first[i]:
                    between = _down(torch.from_numpy(cut.astype(np.float32)), height).clamp_(0, 255)
                    result = _across(between.numpy(), width, white / 255)
                else:
                    result = _down(_across(cut, width).clamp_(0, 255), height, white / 255)
                torch.clamp(result, 0, white, out=image[i, channel])
    return image


def _down(image: Tensor, size: int, gain: float = 1.0) -> Tensor:
    """(size, m) of (n, m): its rows resampled. Sums of weighted rows are what torch calls bags of embeddings."""
    taps, starts, weights = _taps(len(image), size, gain)
    return embedding_bag(taps, image, starts, mode="sum", per_sample_weights=weights)


def _across(image: np.ndarray, size: int, gain: float = 1.0) -> Tensor:
    """(n, size) of (n, m): its columns resampled, `_BLOCK` points at a time as a product of small matrices."""
    (rows, columns), (weights, before, after, step) = image.shape, _blocks(image.shape[1], size, gain)
    padded = np.zeros((rows, before + columns + after), dtype=np.float32)
    padded[:, before : before + columns] = image
    down, across = padded.strides
    count, taps, _ = weights.shape
    windows = np.ndarray((count, rows, taps), np.float32, padded, 0, (step * across, down, across))
    result = np.empty((rows, count, _BLOCK), dtype=np.float32)
    np.matmul(windows, weights, out=result.swapaxes(0, 1))
    return torch.from_numpy(result.reshape(rows, -1))[:, :size]


@lru_cache(1024)  # boxes have whole sides, so there are few different ones
def _taps(length: int, size: int, gain: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which of `length` pixels give what to each of `size` points: pixels, where those of a point begin, weights."""
    pixel, weight = _kernels(length, size)
    used = weight != 0
    starts = used.sum(1).cumsum(0) - used.sum(1)
    return pixel[used].to(torch.int32), starts.to(torch.int32), (weight[used] * gain).to(torch.float32)


@lru_cache(1024)
def _blocks(length: int, size: int, gain: float) -> tuple[np.ndarray, int, int, int]:
    """The same in matrices (blocks, taps, _BLOCK), over windows that lie `step` pixels apart; zeros where none is.

    Also how many pixels the windows reach before and behind the picture, and the step.
    """
    pixel, weight = (x.numpy() for x in _kernels(length, size))
    block, point = np.divmod(np.arange(size), _BLOCK)
    step = round(_BLOCK * length / size)
    place = pixel - step * block[:, None]  # all windows begin at the least of these
    first, taps = int(place.min()), int(place.max() - place.min()) + 1
    matrices = np.zeros((block[-1] + 1, taps, _BLOCK), dtype=np.float32)
    matrices[block[:, None], place.astype(np.int64) - first, point[:, None]] = weight * gain
    before = max(0, -first)
    return matrices, before, max(0, first + step * int(block[-1]) + taps - length), step


def _kernels(length: int, size: int) -> tuple[Tensor, Tensor]:
    """(size, taps) float64: pixels around each of `size` points over `length`, some outside, and their weights."""
    step = length / size  # pixels a point
    stretch = max(1.0, step)
    centre = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * step
    pixel = (centre - 2 * stretch + 0.5).floor() + torch.arange(math.ceil(4 * stretch) + 1)
    inside = (pixel >= 0) & (pixel < length)
    weight = _bicubic((pixel + 0.5 - centre).abs() / stretch) * inside
    return pixel.to(torch.int64), weight / weight.sum(1, keepdim=True)


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
