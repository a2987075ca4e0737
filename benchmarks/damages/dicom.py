"""Damaged DICOM files, and DICOMDIRs that list what is not there."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from damages.kinds import EMPTY, INDEXED, Sample, damage

NOT_DICOM = "rejected: named as DICOM, and its content is not"
DAMAGED = r"rejected: damaged: .+"
CUT = r"rejected: cut short: .+"
NO_PIXELS = "rejected: holds no pixels: .+"
UNLISTED = "rejected: listed in the DICOMDIR, and not there"
ANY = (r"indexed.*", "rejected: .+")
SYNTAXES = (uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless, uid.JPEGLosslessSV1)


def data_set(picture: np.ndarray, **elements: Any) -> Dataset:
    """An ultrasound picture of (H, W) uint8, or several of (frames, H, W); `elements` replace and extend others."""
    found = Dataset()
    found.SOPClassUID, found.SOPInstanceUID = uid.UltrasoundMultiFrameImageStorage, "1.2.3.4"
    found.Modality, found.PatientID, found.StudyInstanceUID = "US", "1", "1.2.3"
    found.Rows, found.Columns, found.SamplesPerPixel = *picture.shape[-2:], 1
    found.PhotometricInterpretation, found.PixelRepresentation = "MONOCHROME2", 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    if picture.ndim == 3:
        found.NumberOfFrames = len(picture)
    found.PixelData = picture.tobytes() + bytes(picture.size % 2)
    found["PixelData"].VR = "OB"
    for name, value in elements.items():
        setattr(found, name, value)
    return found


def file(found: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """The bytes of a DICOM file."""
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    if "PixelData" in found:
        found["PixelData"].is_undefined_length = uid.UID(syntax).is_encapsulated
    stream = io.BytesIO()
    found.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def stream(some: Sample, syntax: str) -> bytes:
    """The picture, compressed."""
    if syntax == uid.RLELossless:
        whole = data_set(some.picture)
        whole.file_meta = FileMetaDataset()
        whole.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        whole.compress(uid.RLELossless, generate_instance_uid=False)
        return whole.PixelData[16:]  # after the offset table and the head of the one fragment
    import imagecodecs

    encode = {
        uid.JPEGBaseline8Bit: imagecodecs.jpeg8_encode,
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode,
        uid.JPEGLSLossless: imagecodecs.jpegls_encode,
        uid.JPEGLosslessSV1: imagecodecs.ljpeg_encode,
    }[syntax]
    return encode(some.picture)


def compressed(data: bytes, some: Sample, syntax: str) -> bytes:
    """A file whose one frame is the stream `data`."""
    whole = data_set(some.picture, PixelData=encapsulate([data + bytes(len(data) % 2)]))
    return file(whole, syntax)


@damage("dicom", NO_PIXELS, DAMAGED, CUT, NOT_DICOM, EMPTY, "rejected: its header has no plausible .+", end=".dcm")
def header_cut_short(some: Sample) -> bytes:
    return some.cut(file(data_set(some.picture)), 0, some.picture.size + 14)


@damage("dicom", CUT, end=".dcm")
def pixels_cut_short(some: Sample) -> bytes:
    whole = file(data_set(some.picture))
    return some.cut(whole, len(whole) - some.picture.size)


@damage("dicom", INDEXED, CUT, end=".dcm")
def loop_cut_short(some: Sample) -> bytes:
    """The whole frames are taken, and the others counted."""
    whole = file(data_set(np.stack([some.picture] * 4)))
    some.shown = some.picture
    return some.cut(whole, len(whole) - 4 * some.picture.size)


@damage("dicom", CUT, DAMAGED, end=".dcm")
def compressed_pixels_cut_short(some: Sample) -> bytes:
    syntax = some.one_of(*SYNTAXES)
    data = stream(some, syntax)
    whole = compressed(data, some, syntax)
    return some.cut(whole, len(whole) - len(data), len(data) // 10 + 24)


@damage("dicom", *ANY, end=".dcm")
def flipped_bytes_in_a_dicom_header(some: Sample) -> bytes:
    whole = file(data_set(some.picture))
    return some.flip(whole, 128, len(whole) - some.picture.size, most=4)


@damage("dicom", INDEXED, "indexed altered", CUT, DAMAGED, end=".dcm")
def flipped_bytes_in_compressed_pixels(some: Sample) -> bytes:
    """Of every codec: none may take the process with it."""
    syntax = some.one_of(*SYNTAXES)
    return compressed(some.flip(stream(some, syntax)), some, syntax)


@damage("dicom", CUT, DAMAGED, end=".dcm")
def garbage_in_fragments(some: Sample) -> bytes:
    syntax = some.one_of(*SYNTAXES)
    start = some.one_of(b"", stream(some, syntax)[:20])
    return compressed(start + some.noise(2000), some, syntax)


@damage("dicom", CUT, DAMAGED, end=".dcm")
def compressed_pixels_of_another_size(some: Sample) -> bytes:
    """Than the header says, up to gigapixels."""
    syntax = some.one_of(uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.JPEGLSLossless)
    data = bytearray(stream(some, syntax))
    side = some.one_of(16, 60_000)
    if syntax == uid.JPEG2000Lossless:
        data[8:16] = struct.pack(">II", side, side)
    else:
        at = data.index(b"\xff\xc0" if syntax == uid.JPEGBaseline8Bit else b"\xff\xf7") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    return compressed(bytes(data), some, syntax)


@damage("dicom", INDEXED, CUT, end=".dcm")
def wrong_length_of_the_pixels(some: Sample) -> bytes:
    """Too short a length is a picture cut short; too long a one is not used."""
    some.shown = some.picture
    size = some.picture.size
    whole = file(data_set(some.picture))
    length = some.one_of(size // 2, size * 2, 0xFFFFFFF0, 0)
    return whole[: -size - 4] + struct.pack("<I", length) + whole[-size:]


@damage("dicom", r"rejected: .+", end=".dcm")
def absurd_size_of_the_picture(some: Sample) -> bytes:
    rows, columns = some.one_of((65535, 65535), (0, 100), (100, 0), (20_000, 20_000), (9_000, 100))
    return file(data_set(some.picture, Rows=rows, Columns=columns))


@damage("dicom", INDEXED, CUT, "rejected: its header has no plausible number of frames", end=".dcm")
def absurd_number_of_frames(some: Sample) -> bytes:
    some.shown = some.picture
    return file(data_set(some.picture, NumberOfFrames=some.one_of("2147483647", "-1", "999999", "12")))


@damage("dicom", r"rejected: has \d+ of \d+ bits a sample, .+", "rejected: has \\d+ samples a pixel, .+", end=".dcm")
def absurd_bits(some: Sample) -> bytes:
    return file(
        data_set(some.picture, **some.one_of({"BitsAllocated": 7}, {"BitsStored": 99}, {"SamplesPerPixel": 2}))
    )


@damage("dicom", NO_PIXELS, end=".dcm")
def no_pixels(some: Sample) -> bytes:
    whole = data_set(some.picture)
    del whole.PixelData
    return file(whole)


@damage("dicom", DAMAGED, end=".dcm")
def palette_that_is_missing(some: Sample) -> bytes:
    found = data_set(some.picture, PhotometricInterpretation="PALETTE COLOR")
    if some.number % 2:
        for colour in ("Red", "Green", "Blue"):
            setattr(found, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 8])
            setattr(found, f"{colour}PaletteColorLookupTableData", bytes(10))
    return file(found)


@damage("dicom", r"rejected: compressed as .+", end=".dcm")
def compression_that_is_not_known(some: Sample) -> bytes:
    syntax = some.one_of("1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.66", "1.2.3.4.5")
    return compressed(some.noise(500), some, uid.JPEGBaseline8Bit).replace(
        b"1.2.840.10008.1.2.4.50", syntax.ljust(22, "\0").encode()[:22]
    )


@damage("dicom", r"rejected: inflates to more than \d+ MB; .+", end=".dcm")
def deflated_data_that_swell(some: Sample) -> bytes:
    """A gigabyte of zeros in a megabyte."""
    whole = file(data_set(some.picture))
    start = whole.index(b"\x08\x00\x16\x00")  # the first element after the meta information
    meta = whole[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    meta = meta.replace(b"UI\x14\x001.2.840.10008.1.2.1.99", b"UI\x16\x001.2.840.10008.1.2.1.99")
    return meta + _gigabyte()


@damage("dicom", *ANY, end=".dcm")
def elements_without_end(some: Sample) -> bytes:
    """Lengths of gigabytes, and sequences in sequences in sequences."""
    whole = file(data_set(some.picture))
    at = whole.index(b"\x10\x00\x20\x00LO")  # Patient ID
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    nested = (b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + item) * 5000
    long = b"\x09\x00\x10\x10UN\0\0" + struct.pack("<I", some.one_of(0xFFFFFFF0, 0xFFFFFFFF))
    return whole[:at] + some.one_of(long, nested, long, nested[:40]) + whole[at:]


@damage("dicom", EMPTY, NOT_DICOM, end=".dcm")
def no_dicom_inside(some: Sample) -> bytes:
    return some.one_of(b"", b"patient,diagnosis\n1,benign\n", some.file("PNG"), bytes(4096), some.noise(500) + b"\0")


@damage("dicom", DAMAGED, UNLISTED, end="")
def damaged_dicomdir(some: Sample) -> None:
    """A folder with it, whose records are cut off or are not there; a first one may be whole."""
    whole = directory([["IM1"], ["IM2"]])
    start = whole.index(b"\x04\x00\x20\x12")  # of the records
    data = some.one_of(whole[:start], some.cut(whole, start, 20), directory([]))
    some.path.mkdir()
    (some.path / "DICOMDIR").write_bytes(data)


@damage("dicom", UNLISTED, "rejected: lists a file outside of its folder", end="")
def dicomdir_of_files_that_are_not_there(some: Sample) -> None:
    some.path.mkdir()
    (some.path / "DICOMDIR").write_bytes(directory([some.one_of(["IM1"], ["..", "IM1"], ["A", "B", "C"])]))


def directory(files: list[list[str]]) -> bytes:
    """A DICOMDIR that lists pictures."""
    found = Dataset()
    found.FileSetID, found.DirectoryRecordSequence = "SET", []
    for pieces in files:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        with disable_value_validation():  # `..` is not a name
            record.ReferencedFileID = pieces
        found.DirectoryRecordSequence.append(record)
    found.file_meta = FileMetaDataset()
    found.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    found.file_meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    found.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    stream = io.BytesIO()
    found.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@cache
def _gigabyte() -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()
