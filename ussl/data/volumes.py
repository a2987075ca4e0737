"""Volumes and sequences in NIfTI (.nii, .nii.gz) and MetaImage (.mhd, .mha) files as arrays of frames."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ussl.data import folders, pictures

MOST_BYTES = 256 * 2**20  # of a file's values; refused above, from its header
_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


class _Unusable(ValueError):
    """What is wrong with a file, without its name."""


def load(path: str | os.PathLike[str]) -> np.ndarray:
    """(T, H, W) of a file of T frames, as stored; the first axis of the file runs to the right, the second down.

    The last file is kept, since frames are read one after the other; do not change what is returned.

    Raises:
        ValueError: `<path>: <what is wrong>`: no such file, not of the formats, damaged, more than `MOST_BYTES`.
    """
    try:
        status = os.stat(path)
        return _load(os.fspath(path), status.st_size, status.st_mtime_ns)
    except _Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # parsers raise anything on files from outside; OSError with errno is the system's
        system = isinstance(error, OSError) and error.strerror
        reason = error.strerror.lower() if system else "damaged or cut short"  # type: ignore[attr-defined]
        raise ValueError(f"{path}: {reason}") from None


def eight_bits(frames: np.ndarray, frame: int) -> np.ndarray:
    """uint8 (H, W) of one frame: whole numbers from 0 to 255 as they are, else the file's range as 0 to 255."""
    values = frames[frame]
    if frames.dtype == np.uint8:
        return np.ascontiguousarray(values)
    low, high = float(frames.min()), float(frames.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("holds values that are not finite, so its range cannot be scaled to 8 bits")
    if low >= 0 and high <= 255 and np.array_equal(frames, np.rint(frames)):
        return values.astype(np.uint8)
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint((values.astype(np.float64) - low) * scale).astype(np.uint8)


@lru_cache(maxsize=1)
def _load(path: str, size: int, modified: int) -> np.ndarray:
    if not size:
        raise _Unusable("the file is empty")
    if folders.extension(path) in (".mhd", ".mha"):
        return _meta_image(Path(path))
    return _nifti(path)


def _nifti(path: str) -> np.ndarray:
    try:
        import nibabel
    except ImportError:
        raise _Unusable("reading NIfTI needs a package: pip install 'ultrasound-ssl[nifti]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on metadata: what matters here raises
        image: Any = nibabel.load(path)
        scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0  # in 64 bits
        _check(image.shape, 8 if scaled else image.get_data_dtype().itemsize)
        values = np.asanyarray(image.dataobj)
    if values.dtype.kind not in "uif":
        raise _Unusable(f"holds {values.dtype} values, and pictures in grey can be read")
    return _frames(values.transpose())


def _frames(values: np.ndarray) -> np.ndarray:
    """(T, H, W) of (..., H, W)."""
    return values.reshape(-1, *values.shape[-2:])


def _check(shape: tuple[int, ...], width: int) -> None:
    """Refuse shapes (W, H, ...) of values of `width` bytes that no picture or sequence has."""
    if len(shape) < 2 or min(shape) < 1 or sum(side > 1 for side in shape[2:]) > 1:
        raise _Unusable(f"its shape is {' x '.join(map(str, shape))}, and a picture or a sequence of them can be read")
    if shape[0] * shape[1] > pictures.MAX_PIXELS or math.prod(shape) * width > MOST_BYTES:
        raise _Unusable(f"its header announces {' x '.join(map(str, shape))} values, more than can be read")


def _meta_image(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        fields = _fields(file)
        start = file.tell()
    try:
        shape = tuple(int(side) for side in fields["dimsize"].split())
        kind = np.dtype(_TYPES[fields["elementtype"].upper()])
    except (KeyError, ValueError):
        raise _Unusable("not a MetaImage: its header lacks DimSize, or an ElementType that can be read") from None
    _check(shape, kind.itemsize)
    if fields.get("elementnumberofchannels", "1") != "1":
        raise _Unusable("has more than one channel, and pictures in grey can be read")
    order = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "False"))
    kind = kind.newbyteorder(">" if order.lower() in ("true", "1") else "<")
    data = _data(path, fields, start, math.prod(shape) * kind.itemsize)
    return _frames(np.frombuffer(data, kind).reshape(shape[::-1]))


def _fields(file: BinaryIO) -> dict[str, str]:
    """`Key = value` lines up to ElementDataFile, with which a header ends; keys in small letters."""
    fields: dict[str, str] = {}
    for _ in range(200):
        key, found, value = file.readline(4096).decode("utf-8", "replace").partition("=")
        if not found:
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            return fields
    raise _Unusable("not a MetaImage: its header has no ElementDataFile")


def _data(path: Path, fields: dict[str, str], start: int, size: int) -> bytes:
    """`size` bytes of values, inflated where they are compressed."""
    name = fields["elementdatafile"]
    place: Path | None = path
    if name.upper() != "LOCAL":
        if name != os.path.basename(name):
            raise _Unusable("its values lie in another folder; put them beside it")
        place, start = folders.inside(path.parent, name), int(fields.get("headersize", "0"))
    if place is None:
        raise _Unusable(f"its values should lie in {name}, which is not there")
    with place.open("rb") as file:
        file.seek(start if start >= 0 else max(0, os.fstat(file.fileno()).st_size - size))  # -1: as much as there is
        if fields.get("compresseddata", "False").lower() in ("true", "1"):
            data = zlib.decompressobj().decompress(file.read(), size)
        else:
            data = file.read(size)
    if len(data) < size:
        raise _Unusable("cut short: it holds fewer values than its header announces")
    return data
