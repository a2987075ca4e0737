"""What the header of a DICOM file says of the pictures inside; nothing but the elements of `_WANTED` is looked at."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, BinaryIO

from ussl.data import pictures
from ussl.data.dicom_elements import LONG, Unusable, text, whole
from ussl.data.dicom_identity import NAMING

DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_FRAMES = 1_000_000
_MOST_INFLATED = 256 * 2**20  # bytes: a deflated file of 1 MB can announce a gigabyte
_PIXELS, _FLOATS = 0x7FE00010, (0x7FE00008, 0x7FE00009)
_FORM = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PixelRepresentation", "PlanarConfiguration")
_BITS = ("BitsAllocated", "BitsStored", "HighBit")
_SHOWN = ("PhotometricInterpretation", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
_UNITS = ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "SequenceOfUltrasoundRegions", "ExtendedOffsetTable")
_SCANNER = ("Modality", "ManufacturerModelName", "TransducerType")
_GROUPS = ("IssuerOfPatientID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_PALETTE = [
    name.format(colour)
    for name in (
        "{}PaletteColorLookupTableDescriptor",
        "{}PaletteColorLookupTableData",
        "Segmented{}PaletteColorLookupTableData",
    )
    for colour in ("Red", "Green", "Blue")
]
_WANTED = [*_FORM, *_BITS, *_SHOWN, *_UNITS, *_SCANNER, *_GROUPS, *NAMING, *_PALETTE]


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What is known of a file before any of its pixels is decoded."""

    path: str
    size: int  # bytes of the data that `start` counts in
    syntax: str  # the transfer syntax, a UID; empty = the file does not say
    little: bool  # byte order of numbers
    start: int  # of the value of Pixel Data; what the file lacks is 0
    length: int | None  # of it in bytes; None = in fragments
    words: bool  # 8-bit pixels were stored as 16-bit words
    body: bytes | None = field(repr=False)  # the inflated data of a deflated file
    tags: Any = field(repr=False)  # the elements of `_WANTED` that are there
    rows: int = 0
    columns: int = 0
    samples: int = 1
    frames: int = 1
    allocated: int = 8
    stored: int = 8
    shift: int = 0  # of the lowest bit that is stored
    signed: bool = False
    planar: bool = False
    photometric: str = ""

    def open(self) -> BinaryIO:
        """The data that `start` and the offsets of frames count in."""
        return open(self.path, "rb") if self.body is None else io.BytesIO(self.body)


def header(path: str | os.PathLike[str]) -> Header:
    """The checked header of a file; the last one is kept, since frames are read one after the other.

    Raises:
        Unusable: it is no picture, or not a plausible one. Others, of pydicom, which `plain_words` hides.
    """
    status = os.stat(path)
    return _header(os.fspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _header(path: str, size: int, modified: int) -> Header:
    with open(path, "rb") as file:
        found = _parsed(path, file, size)
    if not found.start:
        raise Unusable("holds no pixels: not every DICOM file is a picture")
    return _checked(found)


def _parsed(path: str, file: BinaryIO, size: int) -> Header:
    """The elements before the pixels, and where those are."""
    from pydicom.filereader import read_dataset, read_partial
    from pydicom.tag import Tag

    wanted: list[Any] = [Tag(keyword) for keyword in _WANTED]
    place: dict[str, Any] = {}
    body = None
    stop = _pixel_stop(place)
    meta = _meta(file)
    if meta.get("TransferSyntaxUID") == DEFLATED:
        body = _inflated(file.read())
        stream: BinaryIO = io.BytesIO(body)
        tags: Any = read_dataset(stream, False, True, stop_when=stop, specific_tags=wanted)
        little, size = True, len(body)
    else:
        file.seek(0)
        stream = file
        tags = read_partial(file, stop_when=stop, force=True, specific_tags=wanted)
        little = tags.original_encoding[1] is not False
    start = 0
    if place:
        implicit = place["vr"] is None
        start = stream.tell() + (8 if implicit or place["vr"] not in LONG else 12)
    length = None if place.get("length") == 0xFFFFFFFF else place.get("length", 0)
    words = place.get("vr") == "OW" and not little
    syntax = str(meta.get("TransferSyntaxUID") or "").strip()
    return Header(path, size, syntax, little, start, length, words, body, tags)


def _pixel_stop(place: dict[str, Any]) -> Any:
    """A condition that ends parsing at the pixels, and notes what their element says."""

    def stop(tag: Any, vr: str | None, length: int) -> bool:
        if tag in _FLOATS:
            raise Unusable("holds numbers in floating point, no picture that is displayed as it is")
        if tag == _PIXELS:
            place.update(vr=vr, length=length)
        return tag >= _PIXELS

    return stop


def _meta(file: BinaryIO) -> Any:
    """The file's meta information, empty where it has none; `file` is then at the end of it."""
    from pydicom.dataset import Dataset
    from pydicom.filereader import read_dataset

    prefixed = file.read(132)[128:] == b"DICM"
    if not prefixed:
        file.seek(0)
    if not prefixed and file.read(2) != b"\2\0":
        return Dataset()
    file.seek(132 if prefixed else 0)
    return read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = stream.decompress(data, _MOST_INFLATED)
    except zlib.error:
        raise Unusable("damaged: its deflated data cannot be inflated") from None
    if stream.unconsumed_tail:
        raise Unusable(f"inflates to more than {_MOST_INFLATED // 2**20} MB; save it without deflation")
    return body


def _checked(found: Header) -> Header:
    """The header with the form of its pixels, which must be plausible."""
    say = {keyword: whole(found.tags, keyword) for keyword in (*_FORM, *_BITS)}
    rows, columns = say["Rows"] or 0, say["Columns"] or 0
    if not (0 < rows <= 65535 and 0 < columns <= 65535):
        raise Unusable("its header has no plausible number of rows and columns")
    samples = say["SamplesPerPixel"] or 1
    if samples not in (1, 3):
        raise Unusable(f"has {samples} samples a pixel, and 1 or 3 can be read")
    if rows * columns > pictures.MAX_PIXELS:
        most = f"{pictures.MAX_PIXELS // 10**6} megapixels"
        raise Unusable(f"{columns} x {rows} pixels: its header announces more than {most}; leave it out")
    frames = say["NumberOfFrames"] or 1
    if not 0 < frames <= _MOST_FRAMES:
        raise Unusable("its header has no plausible number of frames")
    allocated = say["BitsAllocated"] or 0
    stored = say["BitsStored"] or allocated
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise Unusable(f"has {stored} of {allocated} bits a sample, and 8, 16 or 32 can be read")
    shift = min(max((say["HighBit"] or stored - 1) + 1 - stored, 0), allocated - stored)
    return replace(
        found,
        rows=rows,
        columns=columns,
        samples=samples,
        frames=frames,
        allocated=allocated,
        stored=stored,
        shift=shift,
        signed=say["PixelRepresentation"] == 1,
        planar=say["PlanarConfiguration"] == 1,
        photometric=text(found.tags, "PhotometricInterpretation").upper(),
    )
