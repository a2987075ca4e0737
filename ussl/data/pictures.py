"""One picture file, decoded safely to 8-bit grey or colour.

Pillow alone decodes. Of the fast decoders some kill the process on a damaged file and some return nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 100_000_000  # refused above, from the header: a file of 1 MB can announce gigabytes
_STARTS = (b"\x89PNG", b"\xff\xd8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_LEAST_LEVELS = 64  # of the upper byte, which is all that Pillow keeps of 16-bit colour
_ORIENTATION, _PHOTOMETRIC = 0x0112, 262
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by the EXIF orientation of the stored picture
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


class _Unreadable(ValueError):
    """What is wrong with a file, without its name."""


def read(path: str | os.PathLike[str], frame: int = 0) -> np.ndarray:
    """The picture in a PNG, JPEG, TIFF or BMP file as uint8: (H, W) grey or (H, W, 3) RGB, upright.

    Transparency is dropped, palettes and CMYK become RGB, and RGB of three equal channels becomes grey.
    More than 8 bits (16-bit, 32-bit, float): the smallest value of the picture becomes 0 and its largest 255,
    so that nothing is clipped and 12-bit data are not dark; a picture of one value becomes 0.  A file of several
    frames gives `frame`, windowed by itself.

    Raises:
        ValueError: `<path>: <what is wrong>`: no such file, not one of the formats, damaged, cut short, more than
            `MAX_PIXELS` pixels (by its header, before decoding), no such frame.
    """
    with _plain_words(path), open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata: what matters here raises
        return _decode(file, frame)


def fit(picture: np.ndarray, canvas: int) -> tuple[np.ndarray, float]:
    """`picture` with its longest side scaled down, antialiased, to `canvas` pixels; never up. Also that scale."""
    height, width = picture.shape[:2]
    scale = canvas / max(height, width)
    if scale >= 1:
        return picture, 1.0
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(picture)
    return np.array(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)), scale


def window(values: np.ndarray) -> np.ndarray:
    """uint8 of `values`, the smallest as 0 and the largest as 255; 0 everywhere when they are all equal."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _Unreadable("holds values that are not finite, so its range cannot be scaled to 8 bits")
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint((values.astype(np.float64) - low) * scale).astype(np.uint8)


@contextmanager
def _plain_words(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong inside as one ValueError that names the file."""
    try:
        yield
    except _Unreadable as error:
        raise ValueError(f"{path}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{path}: {_too_large()}") from None
    except Exception as error:  # parsers raise anything on files from outside; OSError with errno is the system's
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"{path}: {error.strerror.lower()}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: damaged or cut short ({reason})") from error


def _decode(file: BinaryIO, frame: int) -> np.ndarray:
    image = _open(file)
    _seek(image, frame)
    if image.width * image.height > MAX_PIXELS:
        raise _Unreadable(f"{image.width} x {image.height} pixels: {_too_large()}")
    deep = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    image.load()
    pixels = _eight_bits(image, deep)
    upright = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return np.ascontiguousarray(_grey_if_equal(pixels if upright is None else upright(pixels)))


def _too_large() -> str:
    return f"its header announces more than {MAX_PIXELS // 10**6} megapixels; scale it down or leave it out"


def _open(file: BinaryIO) -> Image.Image:
    """The image by its header alone: Pillow decodes at `load`."""
    start = file.read(4)
    if not start:
        raise _Unreadable("the file is empty")
    if not start.startswith(_STARTS):
        raise _Unreadable("not a PNG, JPEG, TIFF or BMP picture, whatever its name says")
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise _Unreadable("its header is damaged, or says that the picture has no pixels") from None


def _seek(image: Image.Image, frame: int) -> None:
    if frame:
        try:
            image.seek(frame)
        except EOFError:
            raise _Unreadable(f"has no frame {frame}, counted from 0") from None


def _eight_bits(image: Image.Image, deep: bool) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 of a loaded image; `deep`: stored with 16 bits a channel."""
    if image.mode.startswith(("I", "F")):
        pixels = window(np.asarray(image))
        inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
        return 255 - pixels if inverted else pixels
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    pixels = np.array(image.convert("RGB"))
    return _window_upper_bytes(pixels) if deep else pixels


def _window_upper_bytes(pixels: np.ndarray) -> np.ndarray:
    levels = int(pixels.max()) - int(pixels.min()) + 1
    if 1 < levels < _LEAST_LEVELS:
        raise _Unreadable(f"16-bit colour in {levels} of its 256 upper levels; save it as 8-bit, or as 16-bit grey")
    return window(pixels)


def _grey_if_equal(pixels: np.ndarray) -> np.ndarray:
    """One channel where three are equal."""
    if pixels.ndim == 2:
        return pixels
    red, green, blue = (pixels[..., i] for i in range(3))
    return red if np.array_equal(red, green) and np.array_equal(red, blue) else pixels
