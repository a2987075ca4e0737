"""One picture file, decoded safely to 8-bit grey or colour.

Pillow alone decodes. Of the fast decoders some kill the process on a damaged file and some return nothing.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 25_000_000  # refused above, from the header: a file of 1 MB can announce gigabytes
SPECIAL = "not a file: a pipe, a socket or a device, of which reading might never end"
_STARTS = (b"\x89PNG", b"\xff\xd8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_LEAST_LEVELS = 64  # of the upper byte, which is all that Pillow keeps of 16-bit colour
_ORIENTATION, _PHOTOMETRIC = 0x0112, 262
_STRIP = 1 << 20  # pixels that are converted at once, and bytes that are checked
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
    with _plain_words(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata: what matters here raises
        if is_special(path):
            raise _Unreadable(SPECIAL)
        with open(path, "rb") as file:
            return _decode(file, frame)


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether it is neither a file nor a folder. OSError: there is nothing."""
    mode = os.stat(path).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def fit(picture: np.ndarray, canvas: int) -> tuple[np.ndarray, float]:
    """`picture` with its longest side scaled down, antialiased, to `canvas` pixels; never up. Also that scale."""
    scale = canvas / max(picture.shape[:2])
    return (picture, 1.0) if scale >= 1 else (_scaled(picture, scale, 3.0), scale)


def shrink(picture: np.ndarray, short_side: int) -> tuple[np.ndarray, float]:
    """`picture` with its shortest side scaled down, antialiased, to `short_side` pixels; never up. Also that scale."""
    scale = short_side / min(picture.shape[:2])
    return (picture, 1.0) if scale >= 1 else (_scaled(picture, scale, None), scale)


def _scaled(picture: np.ndarray, scale: float, gap: float | None) -> np.ndarray:
    """`picture` in another size; `gap`: how much larger a first, rough reduction leaves it (None: there is none)."""
    height, width = picture.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC, reducing_gap=gap))


def window(values: np.ndarray) -> np.ndarray:
    """uint8 of `values`, the smallest as 0 and the largest as 255; 0 everywhere when they are all equal."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _Unreadable("holds values that are not finite, so its range cannot be scaled to 8 bits")
    scale = 255 / (high - low) if high > low else 0.0
    out = np.empty(values.shape, np.uint8)
    for rows in _strips(values.shape[0], values.shape[1]):
        out[rows] = np.rint((values[rows].astype(np.float64) - low) * scale)
    return out


def _strips(height: int, width: int) -> list[slice]:
    """Rows of a picture, a few at a time, so that no copy of it in floats is ever whole."""
    step = max(1, _STRIP // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


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
    if check := {"PNG": _check_sums, "JPEG": _check_end, "MPO": _check_end}.get(image.format or ""):
        check(file)
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


def _check_sums(file: BinaryIO) -> None:
    """Refuse a PNG whose pixels differ from their checksums, of which Pillow looks at none."""
    at = file.tell()
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name != b"IDAT":
            file.seek(length + 4, os.SEEK_CUR)
            continue
        found = zlib.crc32(name)
        while length > 0 and (block := file.read(min(length, _STRIP))):
            found, length = zlib.crc32(block, found), length - len(block)
        if file.read(4) != struct.pack(">I", found):
            raise _Unreadable("damaged or cut short (its pixels differ from their checksum)")
    file.seek(at)


def _check_end(file: BinaryIO) -> None:
    """Refuse a JPEG whose pixels, from where the file stands, never end: of zeros in their place Pillow makes grey."""
    at, last = file.tell(), b""
    while block := file.read(_STRIP):
        if b"\xff\xd9" in last + block:
            file.seek(at)
            return
        last = block[-1:]
    raise _Unreadable("damaged or cut short (its pixels have no end)")


def _eight_bits(image: Image.Image, deep: bool) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 of a loaded image; `deep`: stored with 16 bits a channel."""
    if image.mode.startswith(("I", "F")):
        pixels = window(_pixels(image, image.mode))
        inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
        return 255 - pixels if inverted else pixels
    if image.mode in ("1", "L", "LA"):
        return _pixels(image, "L")
    pixels = _pixels(image, "RGB")
    return _window_upper_bytes(pixels) if deep else pixels


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    """The pixels of a loaded image in another mode, a few rows at a time: at once Pillow holds three copies."""
    strips = _strips(image.height, image.width)
    if len(strips) == 1:
        return np.array(image.convert(mode))
    out: np.ndarray | None = None
    for rows in strips:
        part = np.asarray(image.crop((0, rows.start, image.width, rows.stop)).convert(mode))
        out = np.empty((image.height, *part.shape[1:]), part.dtype) if out is None else out
        out[rows] = part
    assert out is not None
    return out


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
