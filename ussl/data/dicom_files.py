"""Which files are DICOM, and which files a DICOMDIR lists."""

from __future__ import annotations

import os
import struct
from typing import Literal

from ussl.data.dicom_elements import LONG, Unusable, items, plain_words, text

_DIRECTORY = b"1.2.840.10008.1.3.10"  # the SOP class of a DICOMDIR
_SHORT = frozenset(  # value representations with 2 bytes of length
    (
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS"),
        *("LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
    )
)


def kind(path: str | os.PathLike[str]) -> Literal["directory", "picture"] | None:
    """What a file is by its content: a DICOMDIR, another DICOM file (by prefix or first element), or neither."""
    with open(path, "rb") as file:
        start = file.read(1024)
        size = os.fstat(file.fileno()).st_size
    if start[128:132] != b"DICM":
        return "picture" if _first_element(start, size) else None
    return "directory" if _DIRECTORY + b"\2\0" in start or _DIRECTORY + b"\0" in start else "picture"


def directory(path: str | os.PathLike[str]) -> list[tuple[str, list[str]]]:
    """The files that a DICOMDIR lists: the type of each record, and its file's path below the DICOMDIR in pieces.

    Raises:
        ValueError: it cannot be read.
    """
    with plain_words(path):
        import pydicom

        found = pydicom.dcmread(path, force=True, specific_tags=["DirectoryRecordSequence"])
        records = items(found, "DirectoryRecordSequence")
        if not records:
            raise Unusable("damaged: a DICOMDIR without records")
        listed = [(text(record, "DirectoryRecordType").upper(), record.get("ReferencedFileID")) for record in records]
    return [(name, [file] if isinstance(file, str) else list(file)) for name, file in listed if file]


def _first_element(start: bytes, size: int) -> bool:
    """Whether `start` is an element of group 2 or 8 in one of the three encodings, and fits into the file."""
    if len(start) < 12:
        return False
    for order in "<>":
        group, element = struct.unpack(order + "HH", start[:4])
        if group not in (2, 8) or element > 0x1200:
            continue
        name = start[4:6].decode("latin-1")
        if name in _SHORT:
            return struct.unpack(order + "H", start[6:8])[0] <= size
        if name in LONG:
            return True
        if order == "<" and group == 8 and struct.unpack("<I", start[4:8])[0] <= min(size, 1024):
            return True
    return False
