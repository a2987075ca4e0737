"""From the bytes of a DICOM frame to its samples.

imagecodecs decodes what is compressed: of its decoders only those that no damaged file has crashed. A stream's own
header is compared with the file's before it is decoded, since it may announce gigabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ussl.data.dicom import Header
from ussl.data.dicom_elements import Unusable
from ussl.data.dicom_frames import NATIVE

_UID = "1.2.840.10008.1.2."
_JPEG = {_UID + "4.50", _UID + "4.51"}  # baseline, extended
_JPEG_LOSSLESS = {_UID + "4.57", _UID + "4.70"}
_JPEG_LS = {_UID + "4.80", _UID + "4.81"}
_JPEG_2000 = {_UID + f"4.{number}" for number in (90, 91, 201, 202, 203)}  # the last three: high throughput
_RLE = {_UID + "5"}
_VIDEO = {_UID + f"4.{number}" for number in range(100, 109)} | {_UID + f"4.{number}.1" for number in range(100, 107)}
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # that give a JPEG's size; F7: JPEG-LS
_ADOBE = b"Adobe"
_CODE_STREAM, _CONTAINER = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "  # how JPEG 2000 starts, bare and in a file


@dataclass(frozen=True, slots=True)
class Stream:
    """What a compressed stream announces of itself."""

    rows: int
    columns: int
    samples: int
    transform: int | None = None  # of colours, by Adobe's marker: 0 none, 1 to YCbCr; None = no marker


def check_syntax(header: Header) -> None:
    """Refuse what cannot be decoded here, before any of it is read."""
    if header.syntax not in NATIVE and header.syntax not in _DECODERS:
        if header.syntax in _VIDEO:
            raise Unusable(f"compressed as {_name(header.syntax)}: save the video inside as a file, and index that")
        raise Unusable(f"compressed as {_name(header.syntax)}, which is not decoded here; save it as JPEG 2000 or RLE")
    if header.syntax in _DECODERS:
        _imagecodecs(header)


def decode(header: Header, data: bytes) -> tuple[np.ndarray, str]:
    """(rows, columns) or (rows, columns, 3) samples of a frame, and what they are (a photometric interpretation).

    Raises:
        Unusable: a stream that is damaged, cut short, of another size than the header says, or not supported.
    """
    if header.syntax in NATIVE:
        return _native(header, data), header.photometric
    samples, photometric = _DECODERS[header.syntax](header, data)
    if header.signed and samples.dtype.kind == "u":  # decoders leave the sign to the header
        unused = max(0, samples.dtype.itemsize * 8 - header.stored)
        samples = (samples.view(f"i{samples.dtype.itemsize}") << unused) >> unused
    if samples.shape[:2] != (header.rows, header.columns) or samples.size != _count(header):
        raise Unusable("damaged: its pixels have another size than its header says")
    return samples, photometric


def _count(header: Header) -> int:
    return header.rows * header.columns * header.samples


def _name(syntax: str) -> str:
    from pydicom.uid import UID, UID_dictionary

    return UID(syntax).name if syntax in UID_dictionary else "an unknown transfer syntax"


def _imagecodecs(header: Header) -> Any:
    try:
        import imagecodecs
    except ImportError:
        raise Unusable(
            f"decoding {_name(header.syntax)} needs a package: pip install 'ultrasound-ssl[dicom]'"
        ) from None
    return imagecodecs


def _attempt(decoder: Callable[..., Any], data: bytes, **options: Any) -> np.ndarray:
    try:
        return decoder(data, **options)
    except Exception:  # every decoder has its own
        raise Unusable("damaged: its compressed pixels cannot be decoded") from None


def _native(header: Header, data: bytes) -> np.ndarray:
    kind = f"{'<' if header.little else '>'}{'i' if header.signed else 'u'}{header.allocated // 8}"
    values = _stored_bits(np.frombuffer(data, kind), header)
    if header.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        return _unfolded(values, header)
    if header.samples == 1:
        return values.reshape(header.rows, header.columns)
    if header.planar:
        return values.reshape(header.samples, header.rows, header.columns).transpose(1, 2, 0)
    return values.reshape(header.rows, header.columns, header.samples)


def _stored_bits(values: np.ndarray, header: Header) -> np.ndarray:
    """`values` in native byte order without the bits that are not stored (old files keep overlays there)."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    unused = header.allocated - header.stored
    if unused == 0:
        return values
    return (values << (unused - header.shift)) >> unused  # the second shift extends the sign


def _unfolded(values: np.ndarray, header: Header) -> np.ndarray:
    """(rows, columns, 3) of pixels in pairs Y Y Cb Cr."""
    pairs = values.reshape(header.rows, -1, 4)
    out = np.empty((header.rows, pairs.shape[1], 2, 3), values.dtype)
    out[..., 0] = pairs[..., :2]
    out[..., 1:] = pairs[:, :, None, 2:]
    return out.reshape(header.rows, -1, 3)[:, : header.columns]


def _jpeg(header: Header, data: bytes) -> tuple[np.ndarray, str]:
    stream = _jpeg_header(data)
    _check(stream, header)
    _check_end(data)
    decoder = _imagecodecs(header).jpeg8_decode
    if header.samples == 1:
        return _attempt(decoder, data), header.photometric
    folded = header.photometric.startswith("YBR") if stream.transform is None else stream.transform == 1
    space = "YCBCR" if folded else "RGB"  # said to the decoder, which would guess
    return _attempt(decoder, data, colorspace=space, outcolorspace="RGB"), "RGB"


def _jpeg_lossless(header: Header, data: bytes) -> tuple[np.ndarray, str]:
    _check(_jpeg_header(data), header)
    _check_end(data)
    decoder = _imagecodecs(header).jpeg8_decode
    options = {"colorspace": "RGB", "outcolorspace": "RGB"} if header.samples == 3 else {}  # as they are
    return _attempt(decoder, data, **options), header.photometric


def _jpeg_ls(header: Header, data: bytes) -> tuple[np.ndarray, str]:
    _check(_jpeg_header(data), header)
    _check_end(data)
    samples = _attempt(_imagecodecs(header).jpegls_decode, data)
    planar = samples.ndim == 3 and samples.shape[0] == 3 and samples.shape[1:] == (header.rows, header.columns)
    return samples.transpose(1, 2, 0) if planar else samples, header.photometric


def _jpeg_2000(header: Header, data: bytes) -> tuple[np.ndarray, str]:
    _check(_jpeg_2000_header(data), header)
    samples = _attempt(_imagecodecs(header).jpeg2k_decode, data)
    undone = header.photometric in ("YBR_ICT", "YBR_RCT")  # by the decoder
    return samples, "RGB" if undone else header.photometric


def _rle(header: Header, data: bytes) -> tuple[np.ndarray, str]:
    """Byte planes of every sample, the most significant first, each run-length encoded (PS3.5, annex G)."""
    width, area = header.allocated // 8, header.rows * header.columns
    count = header.samples * width
    offsets = struct.unpack("<16I", data[:64]) if len(data) >= 64 else (0,)
    if offsets[0] != count:
        raise Unusable("damaged: its run-length encoded segments are not as many as its header asks for")
    ends = [*offsets[2 : count + 1], len(data)]
    if any(not 64 <= start < end <= len(data) for start, end in zip(offsets[1 : count + 1], ends, strict=True)):
        raise Unusable("damaged: its run-length encoded segments do not lie in its frame")
    planes = np.empty((header.samples, area, width), np.uint8)
    for i, (start, end) in enumerate(zip(offsets[1 : count + 1], ends, strict=True)):
        planes[i // width, :, i % width] = np.frombuffer(_unpacked(data[start:end], area), np.uint8)
    values = _stored_bits(
        planes.view(f">{'i' if header.signed else 'u'}{width}").reshape(header.samples, header.rows, header.columns),
        header,
    )
    return (values[0] if header.samples == 1 else values.transpose(1, 2, 0)), header.photometric


def _unpacked(data: bytes, count: int) -> bytes:
    """`count` bytes of a PackBits segment."""
    out, at = bytearray(), 0
    while len(out) < count and at < len(data):
        head = data[at]
        if head < 128:
            out += data[at + 1 : at + 2 + head]
            at += 2 + head
        else:
            if head > 128:
                out += data[at + 1 : at + 2] * (257 - head)
            at += 2 if head > 128 else 1
    if len(out) < count:
        raise Unusable("cut short: a run-length encoded segment ends before its last pixel")
    return bytes(out[:count])


def _check(stream: Stream, header: Header) -> None:
    if (stream.rows, stream.columns, stream.samples) != (header.rows, header.columns, header.samples):
        raise Unusable("damaged: its compressed pixels have another size than its header says")


def _check_end(data: bytes) -> None:
    if b"\xff\xd9" not in data[-64:].rstrip(b"\0\xff")[-4:]:
        raise Unusable("cut short: its compressed pixels have no end")


def _jpeg_header(data: bytes) -> Stream:
    """The size that a JPEG or JPEG-LS stream announces, from the markers before its first scan."""
    at, transform = 2, None
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 1:  # filling, and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        segment = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        if marker in _FRAME_MARKERS and len(segment) >= 6:
            _, rows, columns, samples = struct.unpack(">BHHB", segment[:6])
            return Stream(rows, columns, samples, transform)
        if marker == 0xEE and segment.startswith(_ADOBE) and len(segment) >= 12:
            transform = segment[11]
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    raise Unusable("damaged: its compressed pixels have no JPEG header")


def _jpeg_2000_header(data: bytes) -> Stream:
    """The size that a JPEG 2000 code stream announces (ISO 15444-1, A.5.1), be it in a container or not."""
    at = data.find(_CODE_STREAM, 0, 4096) if data.startswith(_CONTAINER) else 0
    data = data[max(at, 0) : at + 42]
    if not data.startswith(_CODE_STREAM) or len(data) < 42:
        raise Unusable("damaged: its compressed pixels have no JPEG 2000 header")
    right, lower, left, upper = struct.unpack(">4I", data[8:24])
    return Stream(lower - upper, right - left, int.from_bytes(data[40:42], "big"))


_Decoder = Callable[[Header, bytes], tuple[np.ndarray, str]]
_DECODERS: dict[str, _Decoder] = {
    syntax: decoder
    for syntaxes, decoder in (
        (_JPEG, _jpeg),
        (_JPEG_LOSSLESS, _jpeg_lossless),
        (_JPEG_LS, _jpeg_ls),
        (_JPEG_2000, _jpeg_2000),
        (_RLE, _rle),
    )
    for syntax in syntaxes
}
