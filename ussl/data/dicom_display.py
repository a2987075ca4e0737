"""From the samples of a DICOM frame to the 8-bit picture that a screen shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ussl.data.dicom import Header
from ussl.data.dicom_elements import Unusable, items, numbers, text

_GREY = ("MONOCHROME1", "MONOCHROME2", "")
_COLOURS = ("Red", "Green", "Blue")
_MOST_ENTRIES = 65536  # of a lookup table
_STRIP = 1 << 20  # pixels that are converted at once
Show = Callable[[np.ndarray], np.ndarray]  # from values to what is shown of them
_FULL = np.array([[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]], np.float32)
_PARTIAL = _FULL * np.array([255 / 219, 255 / 224, 255 / 224], np.float32)  # of Y 16..235, Cb and Cr 16..240


def display(header: Header, samples: np.ndarray, photometric: str) -> np.ndarray:
    """uint8 (H, W) grey or (H, W, 3) RGB of samples as `dicom_decode.decode` gives them.

    8 unsigned bits stay as they are. Other depths go through the file's VOI lookup table or window where it has one,
    else the smallest value of the frame becomes 0 and its largest 255; MONOCHROME1 is inverted. RGB of three equal
    channels becomes grey.
    """
    if photometric == "PALETTE COLOR":
        return grey_if_equal(_palette(header, samples))
    if samples.ndim == 2:
        if photometric not in _GREY:
            raise Unusable("damaged: its photometric interpretation is one of colours, and it has one sample a pixel")
        grey = _grey(header, samples)
        return 255 - grey if photometric == "MONOCHROME1" else grey
    if photometric.startswith("YBR_"):
        return grey_if_equal(_rgb(_bytes(header, samples), photometric))
    if photometric not in ("RGB", ""):
        raise Unusable("its photometric interpretation is not one that can be read")
    return grey_if_equal(_bytes(header, samples))


def grey_if_equal(picture: np.ndarray) -> np.ndarray:
    """One channel where three are equal."""
    if picture.ndim == 2:
        return picture
    red, green, blue = (picture[..., i] for i in range(3))
    equal = np.array_equal(red, green) and np.array_equal(red, blue)
    return np.ascontiguousarray(red if equal else picture)


def _plain(header: Header, samples: np.ndarray) -> bool:
    """Whether samples are 8 unsigned bits, to be shown as they are."""
    return header.stored == 8 and samples.dtype.kind == "u" and (samples.dtype.itemsize == 1 or samples.max() < 256)


def _bytes(header: Header, samples: np.ndarray) -> np.ndarray:
    if _plain(header, samples):
        return samples.astype(np.uint8, copy=False)
    return _in_strips(samples, samples.shape, _stretch(samples))


def _grey(header: Header, samples: np.ndarray) -> np.ndarray:
    if _plain(header, samples):
        return samples.astype(np.uint8, copy=False)
    shown = _voi(header)
    return _in_strips(samples, samples.shape, _stretch(samples) if shown is None else shown)


def _in_strips(samples: np.ndarray, shape: tuple[int, ...], show: Show) -> np.ndarray:
    """uint8 of all samples, a few rows at a time, so that no copy in floats is ever as large as the picture."""
    out = np.empty(shape, np.uint8)
    step = max(1, _STRIP // samples.shape[1])
    for top in range(0, len(samples), step):
        out[top : top + step] = show(samples[top : top + step])
    return out


def _stretch(samples: np.ndarray) -> Show:
    """The smallest value as 0 and the largest as 255; 0 everywhere when they are equal."""
    low, high = int(samples.min()), int(samples.max())
    scale = 255 / (high - low) if high > low else 0.0
    return lambda strip: np.rint((strip.astype(np.float64) - low) * scale)


def _voi(header: Header) -> Show | None:
    """How the first lookup table or window of the file shows values; None = it has none that is sound."""
    slope, intercept = numbers(header.tags, "RescaleSlope"), numbers(header.tags, "RescaleIntercept")
    factor, constant = (slope[0] if slope else 1.0), (intercept[0] if intercept else 0.0)
    show = _voi_table(header) or _voi_window(header.tags)
    return None if show is None else lambda strip: np.rint(255 * show(strip.astype(np.float64) * factor + constant))


def _voi_table(header: Header) -> Show | None:
    for item in items(header.tags, "VOILUTSequence")[:1]:
        descriptor = numbers(item, "LUTDescriptor")
        found = _lookup(descriptor, item.get("LUTData"), header.little)
        if found is not None and 1 <= descriptor[2] <= 16:
            first, table = found
            if header.signed and first >= 32768:
                first -= 65536
            levels = np.clip(table / (2 ** descriptor[2] - 1), 0, 1)
            return lambda values: levels[np.clip(values - first, 0, len(levels) - 1).astype(np.int64)]
    return None


def _voi_window(tags: Any) -> Show | None:
    centre, width = numbers(tags, "WindowCenter"), numbers(tags, "WindowWidth")
    if not (centre and width and width[0] > 0 and np.isfinite([centre[0], width[0]]).all()):
        return None
    function = text(tags, "VOILUTFunction").upper()
    return lambda values: _windowed(values, centre[0], width[0], function)


def _windowed(levels: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Levels as 0..1 (PS3.3, C.11.2.1.2)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (levels - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((levels - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (levels > centre - 0.5).astype(np.float64)
    return np.clip((levels - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _palette(header: Header, samples: np.ndarray) -> np.ndarray:
    if samples.ndim != 2:
        raise Unusable("damaged: it has a palette, and more than one sample a pixel")
    tables = [_colour(header, colour) for colour in _COLOURS]

    def show(strip: np.ndarray) -> np.ndarray:
        values = strip.astype(np.int64)
        return np.stack([table[np.clip(values - first, 0, len(table) - 1)] for first, table in tables], axis=-1)

    return _in_strips(samples, (*samples.shape, 3), show)


def _colour(header: Header, colour: str) -> tuple[int, np.ndarray]:
    """The first value of a palette's table, and its entries as uint8."""
    descriptor = numbers(header.tags, f"{colour}PaletteColorLookupTableDescriptor")
    data = header.tags.get(f"{colour}PaletteColorLookupTableData")
    if data is None:
        data = _expanded(header.tags.get(f"Segmented{colour}PaletteColorLookupTableData"), descriptor, header.little)
    found = _lookup(descriptor, data, header.little)
    if found is None:
        raise Unusable("damaged: its palette is missing or not as long as it says")
    first, table = found
    if header.signed and first >= 32768:
        first -= 65536
    wide = descriptor[2] > 8 and table.max() > 255  # some scanners say 16 bits and write 8
    return first, (table >> 8 if wide else table).astype(np.uint8)


def _lookup(descriptor: Sequence[float], data: Any, little: bool = True) -> tuple[int, np.ndarray] | None:
    """The first value that a table maps, and its entries; None where it is not sound."""
    if len(descriptor) != 3 or data is None:
        return None
    count = int(descriptor[0]) & 0xFFFF or _MOST_ENTRIES
    first = int(descriptor[1])
    if isinstance(data, bytes):
        wide = len(data) >= 2 * count
        values = np.frombuffer(
            data[: 2 * count if wide else count], ("<u2" if little else ">u2") if wide else np.uint8
        )
    else:
        values = np.array(data if isinstance(data, list | tuple) else list(data), np.int64) & 0xFFFF
    return (first, values[:count].astype(np.int64)) if len(values) >= count else None


def _expanded(data: Any, descriptor: Sequence[float], little: bool) -> list[int] | None:
    """A segmented table in full (PS3.3, C.7.9.2): runs as they are, straight lines, repetitions of earlier ones."""
    if not isinstance(data, bytes) or len(descriptor) != 3:
        return None
    wide = descriptor[2] > 8
    words = np.frombuffer(
        data[: len(data) // 2 * 2] if wide else data, ("<u2" if little else ">u2") if wide else np.uint8
    )
    out: list[int] = []
    _segments([int(word) for word in words], 0, len(words), wide, out, depth=0)
    return out


def _segments(words: list[int], at: int, count: int, wide: bool, out: list[int], depth: int) -> None:
    """Append the entries of at most `count` segments from `at` on."""
    for _ in range(count):
        if at + 2 > len(words) or len(out) >= _MOST_ENTRIES:
            return
        code, length = words[at], words[at + 1]
        if code == 0:
            out += words[at + 2 : at + 2 + length]
            at += 2 + length
        elif code == 1 and out and at + 2 < len(words):
            out += [round(value) for value in np.linspace(out[-1], words[at + 2], length + 1)[1:]]
            at += 3
        elif code == 2 and depth == 0:
            place = words[at + 2 : at + (4 if wide else 6)]
            offset = sum(word << (16 if wide else 8) * i for i, word in enumerate(place))
            _segments(words, offset // (2 if wide else 1), length, wide, out, depth=1)
            at += 4 if wide else 6
        else:
            raise Unusable("damaged: its palette has segments of an unknown kind")


def _rgb(samples: np.ndarray, photometric: str) -> np.ndarray:
    """uint8 RGB of luminance and two colour differences."""
    partial = photometric.startswith("YBR_PARTIAL")
    matrix = (_PARTIAL if partial else _FULL).T
    offset = np.array([16 if partial else 0, 128, 128], np.float32)

    def show(strip: np.ndarray) -> np.ndarray:
        return np.clip(np.rint((strip.astype(np.float32) - offset) @ matrix), 0, 255)

    return _in_strips(samples, samples.shape, show)
