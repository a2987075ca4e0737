"""Masks of a picture's regions, from the files they are published in: pictures, polygons, drawn outlines."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ussl.data import manifest
from ussl.data.outline import filled
from ussl.data.pictures import FORMATS

_JPEG_BLACK = 64  # a JPEG's largest value below which its mask is empty: compression leaves some noise in black
_MANY = 100_000  # points of all polygons: more are no contour that was drawn


class _Unusable(ValueError):
    """What is wrong with a file, without its name."""


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """The files of the regions that a row names, by their columns (mask_lesion, outline_head, ...)."""
    return {name: str(value) for name, value in row.items() if name.startswith(manifest.FILES) and value}


def read(path: str | os.PathLike[str], size: tuple[int, int], outline: bool = False) -> np.ndarray:
    """The region in a file as (H, W) bool, of a picture of `size` (H, W).

    A grey picture: more than half of its largest value (0/1, 0/255, 16 bits, a JPEG's noise). A coloured one: all that
    is not black. One with a transparency that varies: where it is opaque. JSON: a polygon [[x, y], ...] in pixels, or
    a list of such, which unite. `outline`: the file has the closed line around the region (columns outline_...), which
    is filled with the line itself; small gaps are closed, and an ellipse is fitted where it stays open.

    Raises:
        ValueError: `<path>: <what is wrong>`: unreadable, of another size, no polygon, a line that encloses nothing.
    """
    with _plain_words(path):
        if os.fspath(path).lower().endswith(".json"):
            region = _polygons(path, size)
        else:
            region = _picture(path, size)
            region = filled(region) if outline else region
    return region


@contextmanager
def _plain_words(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong inside as one ValueError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata: what matters here raises
            yield
    except _Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # parsers raise anything on files from outside; OSError with errno is the system's
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"{path}: {error.strerror.lower()}") from None
        raise ValueError(f"{path}: not a mask that can be read ({' '.join(str(error).split())})") from None


def _picture(path: str | os.PathLike[str], size: tuple[int, int]) -> np.ndarray:
    with open(path, "rb") as file:
        image: Image.Image = Image.open(file, formats=FORMATS)
        if image.width * image.height != size[0] * size[1]:  # before decoding, whatever its header announces
            raise _wrong_size(image, size)
        jpeg = image.format == "JPEG"
        image = ImageOps.exif_transpose(image)
    if (image.height, image.width) != tuple(size):
        raise _wrong_size(image, size)
    return _region(image, jpeg)


def _wrong_size(image: Image.Image, size: tuple[int, int]) -> ValueError:
    return _Unusable(f"is {image.width} x {image.height} pixels, its picture {size[1]} x {size[0]}")


def _region(image: Image.Image, jpeg: bool) -> np.ndarray:
    """(H, W) bool of a loaded mask."""
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        if np.ptp(pixels[..., 3]) or not (pixels[..., 3].any() or np.ptp(pixels[..., :3], (0, 1)).any()):
            return _upper_half(pixels[..., 3])
        image = image.convert("RGB")
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return _upper_half(np.asarray(image), jpeg)
    colours = np.asarray(image.convert("RGB"))
    if jpeg or (colours == colours[..., :1]).all():
        return _upper_half(colours.max(-1), jpeg)
    return np.any(colours, axis=-1)


def _upper_half(values: np.ndarray, jpeg: bool = False) -> np.ndarray:
    """Where values are more than half of the largest."""
    if not np.isfinite(values).all():
        raise _Unusable("holds values that are not finite")
    largest = float(values.max())
    return np.greater(values, max(largest, _JPEG_BLACK if jpeg else 0.0) / 2)


def _polygons(path: str | os.PathLike[str], size: tuple[int, int]) -> np.ndarray:
    with open(path, encoding="utf-8-sig") as file:
        shapes = _shapes(json.load(file))
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    for shape in shapes:
        _check_shape(shape, size)
        draw.polygon([(float(x), float(y)) for x, y in shape], fill=1, outline=1)
    return np.array(canvas)


def _shapes(value: Any) -> list[np.ndarray]:
    """(n, 2) float64 x, y of each polygon."""
    if not isinstance(value, list):
        raise _Unusable("not a polygon: a list of points [x, y], or a list of such lists")
    lists = [item for item in value if item] if _depth(value) == 3 else [value] if value else []
    if sum(map(len, lists)) > _MANY:
        raise _Unusable(f"polygons of more than {_MANY} points")
    try:
        shapes = [np.array(item, dtype=np.float64) for item in lists]
    except (TypeError, ValueError):
        shapes = [np.zeros(())]
    if any(shape.ndim != 2 or shape.shape[1] != 2 for shape in shapes):
        raise _Unusable("not a polygon: a list of points [x, y], or a list of such lists")
    return shapes


def _depth(value: Any) -> int:
    """How many lists the first number is in."""
    first = next((item for item in value if item != []), None) if isinstance(value, list) else None
    return 1 + _depth(first) if isinstance(value, list) else 0


def _check_shape(shape: np.ndarray, size: tuple[int, int]) -> None:
    if len(shape) < 3:
        raise _Unusable(f"a polygon of {len(shape)} points encloses nothing")
    if not np.isfinite(shape).all():
        raise _Unusable("a polygon with a point that is not finite")
    (left, top), (right, bottom) = shape.min(0), shape.max(0)
    if right < 0 or bottom < 0 or left > size[1] or top > size[0]:
        where = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}"
        raise _Unusable(f"a polygon outside of its picture of {size[1]} x {size[0]} pixels: {where}")
