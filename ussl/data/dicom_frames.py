"""Where the frames of a DICOM file lie in it, and the bytes of one of them: a long loop is never read as a whole."""

from __future__ import annotations

import itertools
import struct
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from ussl.data.dicom import Header
from ussl.data.dicom_elements import Unusable

NATIVE = frozenset(
    ["", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]
)  # pixels as they are; no syntax is said where there is no meta information
_MOST_FRAGMENTS = 4_000_000
_ITEM, _END = 0xE000, 0xE0DD
_STREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # of JPEG and JPEG-LS, of JPEG 2000
Piece = tuple[int, int]  # offset and length in bytes


@dataclass(frozen=True, slots=True)
class Fragments:
    """The pieces that compressed frames are cut into."""

    table: bytes  # the basic offset table, four bytes a frame, or empty
    pieces: list[Piece]
    complete: bool  # the last piece is whole


def frame_size(header: Header) -> int:
    """Bytes of a frame that is not compressed."""
    if header.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        return header.rows * (header.columns + header.columns % 2) * 2 * header.allocated // 8
    return header.rows * header.columns * header.samples * header.allocated // 8


def frames_there(header: Header) -> int:
    """How many of the header's frames are in the file, without a gap from the first."""
    if header.syntax in NATIVE:
        return min(header.frames, _native_bytes(header) // frame_size(header))
    return len(_located(header))


def frame_bytes(header: Header, frame: int) -> bytes:
    """A frame's pixels, or the stream that they were compressed into. ValueError: it is not there."""
    if not 0 <= frame < header.frames:
        raise Unusable(f"has no frame {frame}, counted from 0: it has {header.frames}")
    if header.syntax not in NATIVE:
        located = _located(header)
        if frame >= len(located):
            raise Unusable(f"cut short: frame {frame} of {header.frames} is not there")
        with header.open() as file:
            return b"".join(_piece(file, piece) for piece in located[frame])
    size = frame_size(header)
    if (frame + 1) * size > _native_bytes(header):
        raise Unusable(f"cut short: frame {frame} of {header.frames} is not there")
    with header.open() as file:
        return _native(file, header, frame * size, size)


def _native_bytes(header: Header) -> int:
    if header.length is None:
        raise Unusable("damaged: its pixels lie in fragments, which its transfer syntax rules out")
    return max(0, min(header.length, header.size - header.start))


def _native(file: BinaryIO, header: Header, offset: int, size: int) -> bytes:
    if not (header.words and header.allocated == 8):
        return _piece(file, (header.start + offset, size))
    before = offset % 2  # bytes of a word lie the other way round, so that whole words must be read
    length = before + size + (before + size) % 2
    data = bytearray(_piece(file, (header.start + offset - before, length)).ljust(length, b"\0"))
    data[::2], data[1::2] = data[1::2], data[::2]
    return bytes(data[before : before + size])


def _piece(file: BinaryIO, piece: Piece) -> bytes:
    file.seek(piece[0])
    return file.read(piece[1])


@lru_cache(maxsize=1)
def _located(header: Header) -> list[list[Piece]]:
    """The pieces of every frame that is whole."""
    if header.length is not None:
        raise Unusable("damaged: its pixels do not lie in the fragments that its transfer syntax asks for")
    with header.open() as file:
        found = _fragments(file, header)
        pieces = found.pieces
        if not pieces:
            raise Unusable("cut short: its header is there and its pixels are not")
        if header.frames == 1:
            return [pieces] if found.complete else []
        starts = _by_table(header, found) or _by_count(file, header, found)
    groups = [pieces[a:b] for a, b in zip(starts, [*starts[1:], len(pieces)], strict=True)]
    return groups if found.complete else groups[:-1]


def _fragments(file: BinaryIO, header: Header) -> Fragments:
    at = header.start
    pieces: list[Piece] = []
    table: bytes | None = None
    while len(pieces) < _MOST_FRAGMENTS:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:  # the end marker may be missing
            return Fragments(table or b"", pieces, True)
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, _END):
            return Fragments(table or b"", pieces, True)
        if (group, element) != (0xFFFE, _ITEM) or length == 0xFFFFFFFF:
            raise Unusable("damaged: its pixels do not lie in the fragments that its transfer syntax asks for")
        if at + 8 + length > header.size:
            return Fragments(table or b"", [*pieces, (at + 8, header.size - at - 8)], False)
        if table is None:
            table = file.read(length)
        else:
            pieces.append((at + 8, length))
        at += 8 + length
    raise Unusable(f"its pixels lie in more than {_MOST_FRAGMENTS} fragments")


def _by_table(header: Header, found: Fragments) -> list[int]:
    """The first piece of each frame by one of the offset tables; empty where there is none that fits the pieces."""
    basic = struct.unpack(f"<{len(found.table) // 4}I", found.table[: len(found.table) // 4 * 4])
    long = header.tags.get("ExtendedOffsetTable") or b""
    extended = struct.unpack(f"<{len(long) // 8}Q", long[: len(long) // 8 * 8])
    return next((starts for table in (extended, basic) if (starts := _starts(table, header.frames, found))), [])


def _starts(table: Iterable[int], frames: int, found: Fragments) -> list[int]:
    first = found.pieces[0][0] - 8
    offsets = [piece[0] - 8 - first for piece in found.pieces]
    wanted = list(table)
    if len(wanted) != frames or wanted[0] != 0 or any(a >= b for a, b in itertools.pairwise(wanted)):
        return []
    wanted = [offset for offset in wanted if offset <= offsets[-1]]  # the file may be cut short
    starts = [bisect_left(offsets, offset) for offset in wanted]
    return starts if all(offsets[i] == offset for i, offset in zip(starts, wanted, strict=True)) else []


def _by_count(file: BinaryIO, header: Header, found: Fragments) -> list[int]:
    """The first piece of each frame where no table says it: each piece, or each that a stream starts in."""
    count = len(found.pieces)
    streams = [i for i, piece in enumerate(found.pieces) if _piece(file, (piece[0], 4)).startswith(_STREAM_STARTS)]
    if streams and streams[0] == 0 and len(streams) <= header.frames:
        return streams
    if count <= header.frames:
        return list(range(count))
    raise Unusable(f"its {count} fragments cannot be divided into {header.frames} frames")
