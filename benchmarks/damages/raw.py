"""PNG and TIFF files put together byte by byte, as no library would write them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, chunks: bytes, bits: int = 8, interlace: int = 0) -> bytes:
    """A grey PNG file of the chunks between its header and its end."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IEND", b"")


def interlaced(picture: np.ndarray) -> bytes:
    """A grey PNG file in seven passes (ISO 15948, 8.1)."""
    passes = [picture[row::down, column::right] for row, column, down, right in _ADAM7]
    rows = b"".join(np.pad(part, ((0, 0), (1, 0))).tobytes() for part in passes if part.size)
    return png(picture.shape[1], picture.shape[0], chunk(b"IDAT", zlib.compress(rows)), interlace=1)


def tiff(picture: np.ndarray, tags: Mapping[int, int] = {}, data: bytes | None = None, following: int = 0) -> bytes:
    """A grey TIFF file of one strip.

    tags: values (32 bits) that replace or extend what describes the picture.
    data: of the strip, in place of the pixels.
    following: offset of the next page; 0 = there is none.
    """
    data = picture.tobytes() if data is None else data
    height, width = picture.shape
    plain = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted({**plain, **tags}.items()))
    count = struct.pack("<H", len({**plain, **tags}))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + count + entries + struct.pack("<I", following)


def ifd_loop(picture: np.ndarray) -> bytes:
    """A TIFF file whose page is followed by itself."""
    return tiff(picture, following=8 + picture.size)
