"""DICOM: which files, whose, and exactly which pixels."""

from __future__ import annotations

import logging
import os
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
imagecodecs = pytest.importorskip("imagecodecs")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate, encapsulate_extended  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import UID, generate_uid  # noqa: E402

from ussl.data import dicom_identity  # noqa: E402
from ussl_plugins.sources.dicom import Dicom  # noqa: E402

_S = "1.2.840.10008.1.2"
IMPLICIT, EXPLICIT, DEFLATED, BIG = _S, f"{_S}.1", f"{_S}.1.99", f"{_S}.2"
JPEG, JPEG_12, LOSSLESS, LOSSLESS_1 = f"{_S}.4.50", f"{_S}.4.51", f"{_S}.4.57", f"{_S}.4.70"
LS, J2K_LOSSLESS, J2K, HTJ2K, RLE = f"{_S}.4.80", f"{_S}.4.90", f"{_S}.4.91", f"{_S}.4.201", f"{_S}.5"
H264 = f"{_S}.4.102"
GREY = np.random.default_rng(0).integers(0, 256, (12, 18)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 18, 3)).astype(np.uint8)
DEEP = np.random.default_rng(2).integers(100, 4000, (12, 18)).astype(np.uint16)
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"


@pytest.fixture(autouse=True)
def key(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("key") / "patient.key"
    path.write_text("0123456789abcdef" * 2)
    monkeypatch.setenv("USSL_KEY_FILE", str(path))
    return path


def data_set(pixels, syntax=EXPLICIT, frames=None, **tags):
    """A DICOM data set around the bytes of its pixels, or around an array of one frame."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = US_MULTIFRAME
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = tags.pop("SOPInstanceUID", generate_uid())
    shape = tags.pop("shape", None) or pixels.shape
    data.Rows, data.Columns = shape[:2]
    data.SamplesPerPixel = 3 if len(shape) == 3 else 1
    data.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize if isinstance(pixels, np.ndarray) else 8
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation, data.Modality = bits - 1, 0, "US"
    if frames:
        data.NumberOfFrames = frames
    for name, value in tags.items():
        setattr(data, name, value)
    raw = (
        pixels
        if isinstance(pixels, bytes)
        else pixels.astype(pixels.dtype.newbyteorder("<>"[syntax == BIG])).tobytes()
    )
    data.PixelData = raw if len(raw) % 2 == 0 else raw + b"\0"
    data["PixelData"].VR = "OB" if data.BitsAllocated == 8 else "OW"
    data["PixelData"].is_undefined_length = UID(syntax).is_encapsulated
    return data


def save(path, pixels, syntax=EXPLICIT, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pixels if isinstance(pixels, Dataset) else data_set(pixels, syntax, **tags)
    data.save_as(path, enforce_file_format=True)
    return path


def streams(*codes):
    """Compressed frames as the value of Pixel Data."""
    return encapsulate(list(codes))


def items(path, **options):
    return list(Dicom(path=path, **options).listing())


def rows(path, **options):
    source = Dicom(path=path, **options)
    return [row for item in source.listing() for row in ([item] if "rejected" in item else source.expand(item))]


def read(path, frame=0, **options):
    return Dicom(path=path, **options).read({"path": str(path), "frame": frame})


def refusal(path, **options):
    """The one line with which the file is refused, at its header or at its first frame."""
    source = Dicom(path=path, **options)
    (item,) = source.listing()
    with pytest.raises(ValueError) as caught:
        [source.read(row) for row in source.expand(item)]
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert caught.value.__suppress_context__
    return line.removeprefix(f"{path}: ")


def region(x0, y0, x1, y1, form=1, delta=0.02, units=3):
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = form, 1
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1, y1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX = item.PhysicalDeltaY = delta
    return item


# Pixels.


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize("picture", [GREY, COLOUR, GREY[:11, :17]], ids=["grey", "colour", "odd"])
def test_pixels_that_are_not_compressed_are_as_written(tmp_path, syntax, picture):
    np.testing.assert_array_equal(read(save(tmp_path / "a", picture, syntax)), picture)


def test_planes_are_put_together(tmp_path):
    data = data_set(COLOUR.transpose(2, 0, 1).tobytes(), shape=COLOUR.shape, PlanarConfiguration=1)
    np.testing.assert_array_equal(read(save(tmp_path / "a", data)), COLOUR)


def test_words_of_a_big_endian_file_are_turned_round(tmp_path):
    picture = GREY[:3, :7]  # 21 bytes a frame, so that the second frame starts inside a word
    raw = np.frombuffer(picture.tobytes() + (picture + 1).tobytes(), np.uint8)
    data = data_set(raw.view("<u2").astype(">u2").tobytes(), BIG, shape=(3, 7), frames=2)
    data["PixelData"].VR = "OW"
    path = save(tmp_path / "a", data)
    np.testing.assert_array_equal(read(path, 0), picture)
    np.testing.assert_array_equal(read(path, 1), picture + 1)


def test_monochrome_1_is_inverted(tmp_path):
    path = save(tmp_path / "a", GREY, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(path), 255 - GREY)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (LOSSLESS, lambda x: imagecodecs.jpeg8_encode(x, lossless=True, predictor=4)),
        (LOSSLESS_1, lambda x: imagecodecs.jpeg8_encode(x, lossless=True, predictor=1)),
        (LS, imagecodecs.jpegls_encode),
        (J2K_LOSSLESS, lambda x: imagecodecs.jpeg2k_encode(x, reversible=True, level=0, codecformat="J2K", mct=False)),
        (HTJ2K, lambda x: imagecodecs.htj2k_encode(x)),
    ],
    ids=["lossless", "lossless-1", "ls", "2000", "high-throughput"],
)
@pytest.mark.parametrize("picture", [GREY, COLOUR], ids=["grey", "colour"])
def test_what_was_compressed_without_loss_comes_back(tmp_path, syntax, encode, picture):
    path = save(tmp_path / "a", streams(encode(picture)), syntax, shape=picture.shape)
    np.testing.assert_array_equal(read(path), picture)


def test_the_colours_of_jpeg_2000_are_turned_back_by_its_own_transform(tmp_path):
    code = imagecodecs.jpeg2k_encode(COLOUR, reversible=True, level=0, codecformat="J2K", mct=True)
    path = save(tmp_path / "a", streams(code), J2K_LOSSLESS, shape=COLOUR.shape, PhotometricInterpretation="YBR_RCT")
    np.testing.assert_array_equal(read(path), COLOUR)


def plane(red, green, blue):
    return np.full((16, 16, 3), (red, green, blue), np.uint8)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL", "RGB"])
def test_the_colours_of_jpeg_are_those_that_the_header_says(tmp_path, photometric):
    stored = "RGB" if photometric == "RGB" else "YCBCR"
    code = imagecodecs.jpeg8_encode(plane(200, 30, 60), level=100, colorspace="RGB", outcolorspace=stored)
    code = without_markers(code)
    path = save(tmp_path / "a", streams(code), JPEG, shape=(16, 16, 3), PhotometricInterpretation=photometric)
    assert np.abs(read(path).astype(int) - (200, 30, 60)).max() <= 2


def test_a_marker_in_the_stream_says_more_of_its_colours_than_the_header(tmp_path):
    code = without_markers(
        imagecodecs.jpeg8_encode(plane(200, 30, 60), level=100, colorspace="RGB", outcolorspace="YCBCR")
    )
    marked = code[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x01" + code[2:]
    path = save(tmp_path / "a", streams(marked), JPEG, shape=(16, 16, 3), PhotometricInterpretation="RGB")
    assert np.abs(read(path).astype(int) - (200, 30, 60)).max() <= 2


def without_markers(code):
    """A JPEG stream without those of its markers that say what its colours are."""
    at, out = 2, code[:2]
    while code[at + 1] != 0xDA:
        length = 2 + int.from_bytes(code[at + 2 : at + 4], "big")
        if code[at + 1] not in (0xE0, 0xEE):
            out += code[at : at + length]
        at += length
    return out + code[at:]


def packed(values):
    """A PackBits segment: runs of equal bytes, and others as they are."""
    out, at = b"", 0
    while at < len(values):
        run = 1
        while run < 128 and at + run < len(values) and values[at + run] == values[at]:
            run += 1
        out += bytes([257 - run, values[at]]) if run > 1 else bytes([0, values[at]])
        at += run
    return out + b"\x80" + b"\0" * ((len(out) + 1) % 2)


def run_lengths(*planes):
    segments = [packed(plane.tobytes()) for plane in planes]
    starts = [64 + sum(map(len, segments[:i])) for i in range(len(segments))]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def test_run_lengths_are_unpacked_by_sample_and_byte(tmp_path):
    flat = np.where(GREY > 128, GREY, 7)
    path = save(tmp_path / "a", streams(run_lengths(flat)), RLE, shape=flat.shape)
    np.testing.assert_array_equal(read(path), flat)
    path = save(tmp_path / "b", streams(run_lengths(*COLOUR.transpose(2, 0, 1))), RLE, shape=COLOUR.shape)
    np.testing.assert_array_equal(read(path), COLOUR)
    bits = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "WindowCenter": 2048, "WindowWidth": 4096}
    code = run_lengths((DEEP >> 8).astype(np.uint8), (DEEP & 255).astype(np.uint8))
    path = save(tmp_path / "c", streams(code), RLE, shape=DEEP.shape, **bits)
    np.testing.assert_array_equal(read(path), np.rint(((DEEP - 2047.5) / 4095 + 0.5) * 255).astype(np.uint8))


def ybr(colours, partial=False):
    """Luminance and colour differences of RGB by the definition of ITU-R BT.601, not rounded."""
    red, green, blue = colours[..., 0] / 255, colours[..., 1] / 255, colours[..., 2] / 255
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - y) / 1.772, (red - y) / 1.402
    scale = (219, 224, 224, 16) if partial else (255, 255, 255, 0)
    return np.stack([scale[3] + scale[0] * y, 128 + scale[1] * cb, 128 + scale[2] * cr], -1)


@pytest.mark.parametrize(("photometric", "partial"), [("YBR_FULL", False), ("YBR_PARTIAL", True)])
def test_luminance_and_colour_differences_become_rgb(tmp_path, photometric, partial):
    calm = (COLOUR // 2 + 60).astype(np.uint8)
    stored = np.clip(np.rint(ybr(calm, partial)), 0, 255).astype(np.uint8)
    path = save(tmp_path / "a", stored, PhotometricInterpretation=photometric)
    assert np.abs(read(path).astype(int) - calm).max() <= 2


def test_colour_differences_that_two_pixels_share_are_given_to_both(tmp_path):
    pairs = np.tile(np.array([50, 200, 128, 128], np.uint8), (4, 3, 1))  # two grey pixels, three times in each row
    data = data_set(pairs.tobytes(), shape=(4, 6, 3), PhotometricInterpretation="YBR_FULL_422")
    np.testing.assert_array_equal(read(save(tmp_path / "a", data)), np.tile([50, 200], (4, 3)))


def palette(bits, tables, first=0, **others):
    tags = {}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [len(table) % 65536, first, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = np.asarray(table, "<u2").tobytes()
    return {"PhotometricInterpretation": "PALETTE COLOR", **tags, **others}


def test_a_palette_of_16_bits_gives_its_upper_bytes(tmp_path):
    tables = [np.arange(256) * 257, np.arange(256)[::-1] * 257, np.full(256, 0x1234)]
    picture = read(save(tmp_path / "a", GREY, **palette(16, tables)))
    np.testing.assert_array_equal(picture, np.stack([GREY, 255 - GREY, np.full_like(GREY, 0x12)], -1))


def test_a_palette_that_says_16_bits_and_holds_8_is_not_black(tmp_path):
    tables = [np.arange(256), np.arange(256), np.full(256, 9)]
    picture = read(save(tmp_path / "a", GREY, **palette(16, tables)))
    np.testing.assert_array_equal(picture, np.stack([GREY, GREY, np.full_like(GREY, 9)], -1))


def test_values_outside_of_a_palette_take_its_ends(tmp_path):
    tables = [[10 * 257, 20 * 257, 30 * 257], [0, 257, 514], [257, 0, 0]]
    values = np.array([[0, 100, 101], [102, 103, 255]], np.uint8)
    picture = read(save(tmp_path / "a", values, **palette(16, tables, first=100)))
    np.testing.assert_array_equal(picture[..., 0], [[10, 10, 20], [30, 30, 30]])


def test_a_palette_in_segments_is_expanded(tmp_path):
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    words = [0, 2, 0, 10 * 256, 1, 4, 50 * 256, 2, 1, 0, 0]  # 0 and 10; a line to 50 by four; the first segment again
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [8, 0, 16]
        tags[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(words, "<u2").tobytes()
    picture = read(save(tmp_path / "a", np.arange(8, dtype=np.uint8)[None], **tags))
    np.testing.assert_array_equal(picture, [[0, 10, 20, 30, 40, 50, 0, 10]])


def test_a_grey_palette_gives_one_channel(tmp_path):
    table = np.arange(256) * 257
    np.testing.assert_array_equal(read(save(tmp_path / "a", GREY, **palette(16, [table] * 3))), GREY)


def test_rgb_without_colour_becomes_grey_even_where_only_the_crop_is(tmp_path):
    picture = np.stack([GREY] * 3, -1)
    picture[0, 0] = 255, 0, 0
    path = save(tmp_path / "a", picture, SequenceOfUltrasoundRegions=[region(2, 3, 9, 8)])
    np.testing.assert_array_equal(read(path), GREY[3:9, 2:10])
    assert read(path, crop=False).shape == (12, 18, 3)


@pytest.mark.parametrize("stored", [12, 16])
def test_more_than_8_bits_without_a_window_are_scaled_from_their_least_to_their_largest(tmp_path, stored):
    path = save(tmp_path / "a", DEEP, BitsStored=stored, HighBit=stored - 1)
    low, high = int(DEEP.min()), int(DEEP.max())
    np.testing.assert_array_equal(
        read(path), np.rint((DEEP.astype(float) - low) * 255 / (high - low)).astype(np.uint8)
    )


def test_bits_that_are_not_stored_do_not_show(tmp_path):
    overlay = DEEP | (np.arange(18) % 2 << 15).astype(np.uint16)
    clean = read(save(tmp_path / "a", DEEP, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(read(save(tmp_path / "b", overlay, BitsStored=12, HighBit=11)), clean)


@pytest.mark.parametrize("compressed", [False, True])
def test_signed_values_keep_their_order(tmp_path, compressed):
    signed = DEEP.astype(np.int16) - 2000
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "BitsAllocated": 16}
    stored = (signed & 0xFFF).astype(np.uint16)  # the sign lies in bit 11
    code = streams(imagecodecs.jpegls_encode(stored)) if compressed else stored
    path = save(tmp_path / "a", code, LS if compressed else EXPLICIT, shape=DEEP.shape, **tags)
    np.testing.assert_array_equal(read(path), read(save(tmp_path / "b", DEEP)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_applied_by_its_own_formula(tmp_path, function):
    tags = {"WindowCenter": [1500, 9], "WindowWidth": [1000, 9], "VOILUTFunction": function, "RescaleSlope": 2}
    tags |= {"RescaleIntercept": -100}
    picture = read(save(tmp_path / "a", DEEP, BitsStored=12, HighBit=11, **tags))
    for (i, j), raw in np.ndenumerate(DEEP):
        x = 2 * int(raw) - 100
        if function == "SIGMOID":
            shown = 1 / (1 + np.exp(-4 * (x - 1500) / 1000))
        elif function == "LINEAR_EXACT":
            shown = min(max((x - 1500) / 1000 + 0.5, 0), 1)
        else:
            shown = min(max((x - 1499.5) / 999 + 0.5, 0), 1)
        assert picture[i, j] == round(shown * 255)


def test_a_lookup_table_comes_before_a_window(tmp_path):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 10, 10], np.array([0, 1023, 300, 600], "<u2").tobytes()
    tags = {"VOILUTSequence": Sequence([item]), "WindowCenter": 5, "WindowWidth": 5, "BitsStored": 12, "HighBit": 11}
    path = save(tmp_path / "a", np.array([[9, 10, 11], [12, 13, 14]], np.uint16), **tags)
    np.testing.assert_array_equal(read(path), [[0, 0, 255], [75, 150, 150]])


def test_eight_bits_stay_as_they_are_whatever_the_window(tmp_path):
    path = save(tmp_path / "a", GREY, WindowCenter=50, WindowWidth=20)
    np.testing.assert_array_equal(read(path), GREY)


# Regions.


def test_the_picture_is_cut_to_the_union_of_its_regions_corners_included(tmp_path):
    regions = [region(2, 3, 5, 6), region(8, 4, 11, 9, delta=0.01), region(0, 0, 17, 11, form=4)]
    path = save(tmp_path / "a", GREY, SequenceOfUltrasoundRegions=regions)
    (row,) = rows(path)
    assert [row[f"crop_{name}"] for name in ("y", "x", "height", "width")] == [3, 2, 7, 10]
    assert row["pixel_mm"] == 0.1  # of the larger region
    assert "flag" not in row
    np.testing.assert_array_equal(Dicom(path=path).read(row), GREY[3:10, 2:12])
    np.testing.assert_array_equal(read(path), GREY[3:10, 2:12])


def test_a_region_may_end_one_pixel_past_the_edge_and_no_further(tmp_path):
    (row,) = rows(save(tmp_path / "a", GREY, SequenceOfUltrasoundRegions=[region(4, 2, 18, 12)]))
    assert [row[f"crop_{name}"] for name in ("y", "x", "height", "width")] == [2, 4, 10, 14]
    assert "flag" not in row
    for far in (region(4, 2, 19, 11), region(4, 2, 17, 13), region(18, 2, 18, 9)):
        path = save(tmp_path / "b", GREY, SequenceOfUltrasoundRegions=[far])
        (row,) = rows(path)
        assert row["flag"] == "region_outside"
        assert "pixel_mm" not in row
        np.testing.assert_array_equal(Dicom(path=path).read(row), GREY)
    path = save(tmp_path / "c", GREY, SequenceOfUltrasoundRegions=[region(4, 2, 19, 11), region(1, 1, 3, 3)])
    (row,) = rows(path)
    assert row["flag"] == "region_outside"
    np.testing.assert_array_equal(Dicom(path=path).read(row), GREY[1:4, 1:4])


def test_what_was_indexed_uncropped_is_read_uncropped(tmp_path):
    path = save(tmp_path / "a", GREY, SequenceOfUltrasoundRegions=[region(2, 3, 5, 6)], PixelSpacing=[0.5, 0.25])
    (row,) = rows(path, crop=False)
    np.testing.assert_array_equal(Dicom().read({name: str(value) for name, value in row.items()}), GREY)
    assert row["pixel_mm"] == 0.2
    (row,) = rows(save(tmp_path / "b", GREY, PixelSpacing=[0.5, 0.25]))
    assert row["pixel_mm"] == 0.25


def test_a_crop_that_no_longer_fits_is_refused(tmp_path):
    path = save(tmp_path / "a", GREY)
    row = {**rows(path)[0], "crop_width": 19}
    with pytest.raises(ValueError, match=r"crop in the manifest lies outside .*; index the file again"):
        Dicom().read(row)


# Frames.


def test_every_frame_of_a_loop_is_a_row_and_read_alone(tmp_path):
    loop = np.stack([GREY + i for i in range(7)])
    path = save(tmp_path / "a", loop.tobytes(), shape=GREY.shape, frames=7)
    found = rows(path)
    assert [row["frame"] for row in found] == list(range(7))
    assert len({row["video"] for row in found}) == 1
    for row in reversed(found):
        np.testing.assert_array_equal(Dicom().read(row), loop[row["frame"]])
    assert [row["frame"] for row in rows(path, stride=3)] == [0, 3, 6]
    assert "video" not in rows(save(tmp_path / "b", GREY))[0]


@pytest.mark.parametrize("how", ["table", "no table", "cut", "cut with a table", "extended"])
def test_compressed_frames_are_found_however_they_are_cut(tmp_path, how):
    loop = [GREY + i for i in range(4)]
    codes = [imagecodecs.jpegls_encode(picture) for picture in loop]
    tags = {}
    if how == "extended":
        value, tags["ExtendedOffsetTable"], tags["ExtendedOffsetTableLengths"] = encapsulate_extended(codes)
    else:
        pieces = 3 if "cut" in how else 1
        value = encapsulate(codes, fragments_per_frame=pieces, has_bot=how in ("table", "cut with a table"))
    path = save(tmp_path / "a", value, LS, shape=GREY.shape, frames=4, **tags)
    found = rows(path)
    assert len(found) == 4
    for row in found:
        np.testing.assert_array_equal(Dicom().read(row), loop[row["frame"]])


def test_a_loop_is_not_read_as_a_whole(tmp_path):
    path = save(tmp_path / "a", GREY, frames=60)
    with path.open("r+b") as file:
        start = path.read_bytes().index(GREY.tobytes()[:64])
        file.seek(start - 4)
        file.write(struct.pack("<I", 60 * GREY.size))
        file.truncate(start + 60 * GREY.size)  # a sparse file
    opened = []
    source = Dicom(path=path)
    (item,) = source.listing()
    found = source.expand(item)
    assert len(found) == 60

    def watch(event, details):
        if event == "open" and details[0] == str(path):
            opened.append(details)

    sys.addaudithook(watch)
    for row in found[30:33]:
        np.testing.assert_array_equal(source.read(row), np.zeros_like(GREY))
    assert len(opened) == 3  # the header is not parsed again


def test_a_loop_that_is_cut_short_keeps_its_whole_frames(tmp_path):
    loop = np.stack([GREY + i for i in range(5)])
    path = save(tmp_path / "a", loop.tobytes(), shape=GREY.shape, frames=5)
    path.write_bytes(path.read_bytes()[: -GREY.size - 10])
    *found, last = rows(path)
    assert [row["frame"] for row in found] == [0, 1, 2]
    assert last["rejected"] == "cut short: of its 5 frames only the first 3 are whole"
    path = save(tmp_path / "b", streams(*[imagecodecs.jpegls_encode(x) for x in loop]), LS, shape=GREY.shape, frames=5)
    path.write_bytes(path.read_bytes()[:-30])
    *found, last = rows(path)
    assert len(found) == 4
    assert "first 4" in last["rejected"]


def test_a_single_frame_that_is_cut_short_is_refused(tmp_path):
    for name, pixels, syntax in (("a", GREY, EXPLICIT), ("b", streams(imagecodecs.jpegls_encode(GREY)), LS)):
        path = save(tmp_path / name, pixels, syntax, shape=GREY.shape)
        path.write_bytes(path.read_bytes()[:-40])
        assert refusal(path) == "cut short: none of its 1 frames is whole"


def test_a_frame_that_is_not_there_is_named(tmp_path):
    path = save(tmp_path / "a", GREY)
    with pytest.raises(ValueError, match=r"has no frame 1, counted from 0: it has 1$"):
        read(path, 1)


# Files.


def test_files_are_known_by_their_content_and_others_counted(tmp_path):
    save(tmp_path / "with space" / "IM1", GREY)
    save(tmp_path / "Ünï" / "b.png", GREY)  # a DICOM file all the same
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "more.TXT").write_text("neither")
    (tmp_path / "plain").write_text("no ending")
    (tmp_path / "broken.DCM").write_bytes(b"nothing of DICOM")
    (tmp_path / "empty.dcm").write_bytes(b"")
    source = Dicom(path=tmp_path)
    found = {Path(item["path"]).name: item for item in source.listing()}
    assert set(found) == {"IM1", "b.png", "broken.DCM", "empty.dcm"}
    assert found["broken.DCM"]["rejected"] == "named as DICOM, and its content is not"
    assert found["empty.dcm"]["rejected"] == "the file is empty"
    assert source.aside == {".txt files": 2, "nameless files": 1}


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_a_file_without_prefix_is_known_by_its_first_element(tmp_path, syntax):
    data = data_set(GREY, syntax)
    kind = UID(syntax)
    path = tmp_path / "a"
    bare = Dataset(data)
    bare.save_as(path, implicit_vr=kind.is_implicit_VR, little_endian=kind.is_little_endian)
    assert len(items(tmp_path)) == 1
    np.testing.assert_array_equal(read(path), GREY)


def record(pieces, kind):
    item = Dataset()
    item.DirectoryRecordType, item.PatientName = kind, "Somebody"
    if pieces:
        item.ReferencedFileID = pieces
    return item


def directory(folder, files, types=None):
    """A DICOMDIR that lists files, as pieces of paths."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that a DICOMDIR must not have
        records = [record(pieces, (types or {}).get(i, "IMAGE")) for i, pieces in enumerate(files)]
        data.DirectoryRecordSequence = Sequence([record(None, "PATIENT"), *records])
        data.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def test_a_dicomdir_gives_the_files_of_its_records_and_says_which_are_missing(tmp_path):
    save(tmp_path / "disk" / "IMAGES" / "im1", GREY)  # small letters, as some systems copy them
    save(tmp_path / "disk" / "UNLISTED", GREY)
    save(tmp_path / "outside", GREY)
    files = [["IMAGES", "IM1"], ["IMAGES", "IM2"], ["..", "outside"], "SR1"]
    path = directory(tmp_path / "disk", files, {3: "SR DOCUMENT"})
    source = Dicom(path=path)
    good, missing, outside = source.listing()
    assert good["path"] == str(tmp_path / "disk" / "IMAGES" / "im1")
    assert missing == {
        "path": str(tmp_path / "disk" / "IMAGES" / "IM2"),
        "rejected": "listed in the DICOMDIR, and not there",
    }
    assert outside["rejected"] == "lists a file outside of its folder"
    assert source.aside == {"DICOMDIR": 1, "other objects of a DICOMDIR": 1}
    names = [Path(item["path"]).name for item in Dicom(path=tmp_path / "disk").listing()]
    assert names == ["UNLISTED", "im1", "IM2", "DICOMDIR"]  # of a folder all files, and what its DICOMDIR lacks


def test_a_path_that_is_none_says_what_to_write(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    for path, words in (
        (None, "where is the DICOM"),
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "a.png", "other pictures are read by `images`"),
    ):
        with pytest.raises(ValueError, match=words):
            items(path)
    with pytest.raises(ValueError, match=r"^stride is 0: write 1"):
        Dicom(stride=0)


def test_organ_and_label_are_written_where_they_are_given(tmp_path):
    (row,) = rows(save(tmp_path / "a", GREY), organ="liver", label="cyst")
    assert (row["organ"], row["label"], row["source"], row["reader"]) == ("liver", "cyst", "dicom", "dicom")
    assert not {"organ", "label"} & set(rows(tmp_path / "a")[0])


# Headers that lie.


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": 0}, "no plausible number of rows and columns"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels: its header announces more than "),
        ({"SamplesPerPixel": 4}, "4 samples a pixel"),
        ({"NumberOfFrames": -3}, "no plausible number of frames"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "1 of 1 bits"),
        ({"BitsAllocated": 64, "BitsStored": 64}, "64 of 64 bits"),
        ({"Columns": 19}, "cut short"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "damaged: its photometric interpretation is one of colours"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "damaged: its palette is missing"),
    ],
)
def test_an_implausible_header_is_refused_before_its_pixels_are_read(tmp_path, tags, words):
    assert words in refusal(save(tmp_path / "a", data_set(GREY, **tags)))


@pytest.mark.parametrize("syntax", [JPEG, LOSSLESS_1, LS, J2K])
def test_a_stream_that_announces_another_size_is_not_decoded(tmp_path, syntax):
    encode = {JPEG: imagecodecs.jpeg8_encode, LS: imagecodecs.jpegls_encode}
    encode |= {LOSSLESS_1: lambda x: imagecodecs.jpeg8_encode(x, lossless=True)}
    encode |= {J2K: lambda x: imagecodecs.jpeg2k_encode(x, codecformat="J2K")}
    path = save(tmp_path / "a", streams(encode[syntax](GREY)), syntax, shape=(12, 19))
    assert refusal(path) == "damaged: its compressed pixels have another size than its header says"


def test_a_deflated_bomb_does_not_go_off(tmp_path, monkeypatch):
    monkeypatch.setattr("ussl.data.dicom._MOST_INFLATED", 2**16)
    path = save(tmp_path / "a", GREY, DEFLATED)
    body = path.read_bytes()
    stream = zlib.compressobj(wbits=-15)
    path.write_bytes(
        body[: body.index(b"1.2.840.10008.1.2.1.99") + 22] + stream.compress(bytes(2**20)) + stream.flush()
    )
    assert "save it without deflation" in refusal(path)


@pytest.mark.parametrize(
    ("syntax", "words"),
    [(H264, "compressed as MPEG-4 AVC/H.264"), ("1.2.3.4", "compressed as an unknown transfer syntax")],
)
def test_a_syntax_that_is_not_decoded_is_named(tmp_path, syntax, words):
    data = data_set(streams(b"1234"), LS, shape=GREY.shape)
    data.file_meta.TransferSyntaxUID = UID(syntax)
    path = tmp_path / "a"
    data["PixelData"].is_undefined_length = True
    data.save_as(path, implicit_vr=False, little_endian=True)
    assert words in refusal(path)


@pytest.mark.parametrize(("package", "syntax"), [("pydicom", EXPLICIT), ("imagecodecs", LS)])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, syntax):
    path = save(
        tmp_path / "a", streams(imagecodecs.jpegls_encode(GREY)) if syntax == LS else GREY, syntax, shape=GREY.shape
    )
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(path).endswith("needs a package: pip install 'ultrasound-ssl[dicom]'")


def test_a_file_without_pixels_says_so(tmp_path):
    data = data_set(GREY)
    del data.PixelData
    assert refusal(save(tmp_path / "a", data)) == "holds no pixels: not every DICOM file is a picture"


# Identity.


MARKER = "Zzyzx"


def stuffed():
    """A loop with the marker in every element that may hold text, private ones and sequences too."""
    data = data_set(np.stack([GREY] * 2).tobytes(), shape=GREY.shape, frames=2)
    text = {"LO", "SH", "ST", "LT", "UT", "PN", "UC", "AE"}
    names = [
        name
        for _, (vr, multiplicity, _, retired, name) in pydicom.datadict.DicomDictionary.items()
        if vr in text and name and not retired and multiplicity.startswith("1")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if pydicom.datadict.tag_for_keyword(name) >> 16 not in (0, 2, 4, 0xFFFE):
                setattr(data, name, MARKER)
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            data.add_new(name, "LO", MARKER)
        for name in ("PatientBirthDate", "StudyDate", "PatientAge", "BodyPartExamined", "TransducerType", "Modality"):
            data.add_new(name, "LO", MARKER)
        item = Dataset()
        item.PatientName = item.TextValue = MARKER
        data.ReferencedStudySequence = data.OtherPatientIDsSequence = Sequence([item])
        data.private_block(0x0009, MARKER, create=True).add_new(1, "LO", MARKER)
        data.private_block(0x7FE1, MARKER, create=True).add_new(1, "SQ", Sequence([item]))
        data.add_new(0x60000022, "LO", MARKER)
        data.WindowCenter = None
    return data


def test_nothing_that_names_somebody_gets_out(tmp_path, capfd, caplog, recwarn):
    sound = save(tmp_path / "sound", stuffed())
    caplog.clear()
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    warnings.simplefilter("always")
    body = sound.read_bytes()
    said = []
    for i in range(150):
        broken = bytearray(body)
        for at in np.random.default_rng(i).integers(132, len(body) - 400, 6):
            broken[at] = (i * 37 + at) % 256
        (tmp_path / f"{i}.dcm").write_bytes(broken[: len(broken) - i * 29])
    for path in sorted(tmp_path.iterdir()):
        source = Dicom(path=path)
        try:
            for item in source.listing():
                for row in source.expand(item):
                    said += [str(value) for name, value in row.items() if name != "path"]
                    if "rejected" not in row:
                        source.read(row)
        except ValueError as error:
            said += [str(error), repr(error.__cause__)]
    out, err = capfd.readouterr()
    everything = "\n".join([*said, out, err, caplog.text, *(str(one.message) for one in recwarn)])
    assert len(said) > 150
    assert MARKER.lower() not in everything.lower()
    (first, second) = rows(sound)
    assert first["patient"] == second["patient"]
    assert {"study", "series", "video"} <= set(first)


def test_a_patient_is_the_hash_of_identity_and_issuer_under_the_key(tmp_path, key):
    import hashlib
    import hmac

    def patient(**tags):
        (row,) = rows(save(tmp_path / "a", GREY, **tags))
        return row.get("patient"), row["group_kind"]

    whole = hmac.new(key.read_bytes(), b"patient\0Hospital\x00123", hashlib.sha256).hexdigest()
    assert patient(PatientID="123", IssuerOfPatientID="Hospital") == (whole[:16], "patient")
    assert patient(PatientID=" 123 ", IssuerOfPatientID="Hospital")[0] == whole[:16]
    assert patient(PatientID="123")[0] != whole[:16]
    study = hmac.new(key.read_bytes(), b"study\x001.2.3", hashlib.sha256).hexdigest()
    assert patient(StudyInstanceUID="1.2.3") == (study[:16], "case")
    assert patient(PatientID="", StudyInstanceUID="1.2.3")[1] == "case"
    assert patient() == (None, "image")
    key.write_text("another key of enough bytes")
    assert patient(PatientID="123", IssuerOfPatientID="Hospital")[0] not in (None, whole[:16])


def test_frames_of_a_loop_without_any_identity_stay_together(tmp_path):
    data = data_set(np.stack([GREY] * 3).tobytes(), shape=GREY.shape, frames=3)
    found = rows(save(tmp_path / "a", data))
    assert {row["group_kind"] for row in found} == {"video"}
    assert {row["patient"] for row in found} == {found[0]["video"]}


def test_a_key_is_made_once_for_the_user_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("USSL_KEY_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: dicom_identity.load_key(), range(8)))
    path = tmp_path / "config" / "ussl" / "patient.key"
    assert keys == {path.read_bytes().strip()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["patient.key"]
    assert capsys.readouterr().err.count(str(path)) == 1
    assert len(keys.pop()) == 64


def test_a_named_key_that_cannot_be_used_is_refused_before_any_file_is_read(tmp_path):
    (tmp_path / "short").write_text("1234")
    with pytest.raises(ValueError, match=r"short: 4 bytes are too short for a key: `openssl rand -hex 32 > FILE`"):
        items(tmp_path, key=tmp_path / "short")
    with pytest.raises(ValueError, match="no such file or directory; the key that hashes patients is a file of"):
        items(tmp_path, key=tmp_path / "none")


def test_of_the_scanner_only_terms_and_a_model_that_names_nobody_are_written(tmp_path):
    tags = {"Modality": "US", "TransducerType": "CURVED LINEAR", "ManufacturerModelName": "EPIQ 7C"}
    (row,) = rows(save(tmp_path / "a", GREY, **tags))
    assert (row["modality"], row["transducer"], row["manufacturer_model"]) == ("US", "CURVED_LINEAR", "EPIQ 7C")
    tags = {
        "Modality": "DOE",
        "TransducerType": "JANE",
        "ManufacturerModelName": "Room of Dr Doe",
        "PatientName": "Doe^J",
    }
    (row,) = rows(save(tmp_path / "b", GREY, **tags))
    assert not {"modality", "transducer", "manufacturer_model"} & set(row)


# The real samples.


SIZES = {  # whole, and cut to the scan
    "ExplVR_BigEnd": ((60, 80, 3), None),
    "JPGLosslessP14SV1_1s_1f_8b": ((768, 1024), (721, 997)),
    "OBXXXX1A": ((600, 800, 3), (459, 680, 3)),
    "US1_J2KI": ((480, 640, 3), None),
    "US1_J2KR": ((480, 640, 3), None),
    "US1_UNCI": ((480, 640, 3), None),
    "US1_UNCR": ((480, 640, 3), None),
    "examples_jpeg2k": ((480, 640, 3), None),
    "examples_palette": ((350, 800, 3), None),
    "examples_ybr_color": ((240, 320, 3), None),
}


def test_ten_real_files_have_39_frames_and_two_regions_outside(ultrasound):
    found = rows(ultrasound / "dicom")
    assert len(found) == 39
    assert not [row for row in found if "rejected" in row]
    flagged = {Path(row["path"]).stem for row in found if row.get("flag") == "region_outside"}
    assert flagged == {"examples_palette", "examples_ybr_color"}
    for row in found[::9] + [row for row in found if row["frame"] == 0]:
        whole, cut = SIZES[Path(row["path"]).stem]
        assert Dicom().read(row).shape == (cut or whole)


def test_real_pixels_are_those_of_another_decoder(ultrasound):
    """Pillow decodes JPEG and JPEG 2000; the two pairs of uncompressed and compressed files hold the same picture."""
    from pydicom.pixels import pixel_array

    folder = ultrasound / "dicom"
    for name in ("US1_J2KI", "US1_J2KR", "examples_ybr_color", "examples_jpeg2k"):
        other = pixel_array(folder / f"{name}.dcm", index=0, decoding_plugin="pillow")
        mine = read(folder / f"{name}.dcm", crop=False)
        assert np.abs(mine.astype(int) - other).max() <= 2, name
    np.testing.assert_array_equal(read(folder / "US1_J2KR.dcm"), read(folder / "US1_UNCR.dcm"))
    assert np.abs(read(folder / "US1_J2KI.dcm").astype(int) - read(folder / "US1_UNCI.dcm")).mean() < 3


def test_real_palettes_are_those_of_pydicom(ultrasound):
    from pydicom.pixels import apply_color_lut, pixel_array

    path = ultrasound / "dicom" / "OBXXXX1A.dcm"
    coloured = apply_color_lut(pixel_array(path), pydicom.dcmread(path))
    np.testing.assert_array_equal(read(path, crop=False), (coloured >> 8).astype(np.uint8))


def test_no_damaged_file_brings_the_process_down(tmp_path, ultrasound):
    """A few of the many that were tried: truncated, flipped, cut out; in a process of its own."""
    script = """
import sys, random
from pathlib import Path
from ussl_plugins.sources.dicom import Dicom
path, count = sys.argv[1] + "/broken.dcm", 0
for name in sys.argv[2:]:
    body = Path(name).read_bytes()
    for i in range(12):
        draw, data = random.Random(i), bytearray(body)
        if i % 3 == 0: data = data[: draw.randrange(1, len(data))]
        elif i % 3 == 1: data[draw.randrange(132, len(data))] ^= 1 << draw.randrange(8)
        else: data[draw.randrange(132, 3000)] = draw.randrange(256)
        Path(path).write_bytes(data)
        source = Dicom(path=path)
        try:
            for item in source.listing():
                for row in source.expand(item)[:1]:
                    source.read(row)
        except ValueError as error:
            assert str(error).startswith(path), error
        count += 1
print(count)
"""
    names = [str(ultrasound / "dicom" / f"{name}.dcm") for name in ("ExplVR_BigEnd", "examples_ybr_color", "US1_J2KI")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path), *names],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "36", "")
