"""Files, folders and manifests of pictures, sound and broken."""

import csv
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ussl.data import manifest, pictures
from ussl_plugins.sources.images import Images

REAL = Path(__file__).parents[1].parent / "shared/data/ultrasound"
GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def save(path, picture, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def png(width, height, bits=8, colour=0, data=b""):
    """A PNG file of any header."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(values):
    """A 16-bit PNG: (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB."""
    colour = {1: 0, 2: 4, 3: 2}[values.size // values.shape[0] // values.shape[1]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour, rows)


def refusal(path, frame=0):
    """The one line that reading `path` is refused with."""
    with pytest.raises(ValueError) as caught:
        pictures.read(path, frame)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.TIFF"])
def test_grey_stays_one_channel_and_colour_three(tmp_path, name):
    for picture in (GREY, COLOUR):
        read = pictures.read(save(tmp_path / name, picture))
        assert read.dtype == np.uint8
        assert read.flags.c_contiguous
        assert read.flags.writeable
        np.testing.assert_array_equal(read, picture)


def test_a_big_tiff_is_read(tmp_path):
    np.testing.assert_array_equal(pictures.read(save(tmp_path / "a.tif", GREY, big_tiff=True)), GREY)


def test_jpeg_is_read(tmp_path):
    assert abs(pictures.read(save(tmp_path / "a.jpg", GREY, quality=95)).astype(int) - GREY).max() < 20
    assert pictures.read(save(tmp_path / "b.jpeg", COLOUR)).shape == (6, 8, 3)


def test_three_equal_channels_become_one(tmp_path):
    picture = np.stack([GREY] * 3, axis=-1)
    np.testing.assert_array_equal(pictures.read(save(tmp_path / "a.png", picture)), GREY)
    picture[5, 7, 2] += 1
    assert pictures.read(save(tmp_path / "a.png", picture)).shape == (6, 8, 3)


def test_transparency_is_dropped(tmp_path):
    alpha = np.full_like(GREY, 9)
    colour = np.dstack([COLOUR, alpha])
    np.testing.assert_array_equal(pictures.read(save(tmp_path / "a.png", colour)), COLOUR)
    np.testing.assert_array_equal(pictures.read(save(tmp_path / "b.png", np.dstack([GREY, alpha]))), GREY)


@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"transparency": bytes(range(200))}])
def test_a_palette_becomes_its_colours(tmp_path, options):
    image = Image.fromarray(GREY % 4).convert("P")
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    image.putpalette(colours.flatten().tolist())
    image.save(tmp_path / "a.png", **options)
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.png"), colours[GREY % 4])
    image.putpalette([level for level in range(256) for _ in range(3)])
    image.save(tmp_path / "grey.png", **options)
    np.testing.assert_array_equal(pictures.read(tmp_path / "grey.png"), GREY % 4)


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(GREY > 99).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.png"), np.where(GREY > 99, 255, 0))


def test_cmyk_becomes_rgb(tmp_path):
    inks = np.zeros((2, 2, 4), dtype=np.uint8)
    inks[0, 0] = (255, 0, 0, 0)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.tif")[0], [[0, 255, 255], [255, 255, 255]])


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", "<f4"])
def test_deep_grey_spans_its_own_range(tmp_path, kind):
    deep = (np.arange(12).reshape(3, 4) * 100 + 500).astype(kind)  # 12-bit data: not white, not nearly black
    Image.fromarray(deep).save(tmp_path / "a.tif")
    expected = np.round(np.arange(12).reshape(3, 4) * 255 / 11)
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.tif"), expected)


def test_a_16_bit_png_spans_its_own_range(tmp_path):
    (tmp_path / "a.png").write_bytes(png16(np.array([[0, 1000], [2000, 4000]])))
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.png"), [[0, 64], [128, 255]])
    (tmp_path / "a.png").write_bytes(png16(np.full((2, 3), 4095)))
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.png"), np.zeros((2, 3)))


def test_16_bit_grey_where_0_is_white_is_turned(tmp_path):
    Image.fromarray(np.array([[0, 1000]], dtype="<u2")).save(tmp_path / "a.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.tif"), [[255, 0]])


def test_16_bit_colour_is_read_unless_it_would_be_nearly_black(tmp_path):
    deep = COLOUR.astype(np.uint16) * 256
    (tmp_path / "a.png").write_bytes(png16(deep))
    expected = np.round(COLOUR.astype(float) * 255 / COLOUR.max())
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.png"), expected)
    for dark in (deep // 16, (deep // 16)[..., :2]):
        (tmp_path / "a.png").write_bytes(png16(dark))
        assert "16-bit colour in 15 of its 256 upper levels; save it as 8-bit" in refusal(tmp_path / "a.png")


def test_values_that_are_not_finite_are_refused(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert "not finite" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    """Against the definition: where the stored first row and first column lie in the upright picture."""
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8] = 200
    upright[:, :16] += 50
    row, column = {  # which side of the upright picture the stored top row and left column are
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    stored = upright.T if row in ("left", "right") else upright
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / name, np.ascontiguousarray(stored), exif=exif)
    read = pictures.read(tmp_path / name)
    assert read.shape == (16, 32)
    assert abs(read.astype(int) - upright).max() <= 4


def test_frames_of_a_tiff_are_read_by_number(tmp_path):
    frames = [Image.fromarray(GREY + i) for i in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.tif"), GREY)
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.tif", 2), GREY + 2)
    assert refusal(save(tmp_path / "a.png", GREY), 1) == "has no frame 1, counted from 0"
    assert refusal(tmp_path / "a.tif", 3) == "has no frame 3, counted from 0"


def test_one_pixel_is_a_picture(tmp_path):
    for picture in (np.full((1, 1), 7, dtype=np.uint8), np.array([[[1, 2, 3]]], dtype=np.uint8)):
        np.testing.assert_array_equal(pictures.read(save(tmp_path / "a.png", picture)), picture)


@pytest.mark.parametrize("size", [(40_000, 40_000), (12_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_gigapixel_header_is_refused_before_decoding(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(*size, data=b"\0"))
    assert f"announces more than {pictures.MAX_PIXELS // 10**6} megapixels" in refusal(tmp_path / "a.png")


def test_text_an_empty_file_and_no_file_are_named(tmp_path):
    (tmp_path / "a.png").write_text("not a picture")
    assert refusal(tmp_path / "a.png") == "not a PNG, JPEG, TIFF or BMP picture, whatever its name says"
    (tmp_path / "a.png").write_bytes(b"")
    assert refusal(tmp_path / "a.png") == "the file is empty"
    assert refusal(tmp_path / "gone.png") == "no such file or directory"
    assert refusal(tmp_path) == "is a directory"


def test_a_format_that_is_not_listed_is_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    os.rename(tmp_path / "a.gif", tmp_path / "a.png")
    assert "not a PNG, JPEG, TIFF or BMP picture" in refusal(tmp_path / "a.png")


def test_a_picture_without_pixels_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0, 4))
    assert "no pixels" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_a_truncated_file_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    whole = save(tmp_path / name, noise).read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        line = refusal(tmp_path / name)
        assert "damaged" in line or "no pixels" in line


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_damage_is_refused_or_harmless_but_never_a_crash_or_a_warning(tmp_path, name):
    random = np.random.default_rng(1)
    whole = save(tmp_path / name, random.integers(0, 256, (24, 24), dtype=np.uint8)).read_bytes()
    refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            broken[place] ^= int(random.integers(1, 256))
        (tmp_path / name).write_bytes(bytes(broken))
        try:
            pictures.read(tmp_path / name)
        except ValueError:
            refusal(tmp_path / name)
            refused += 1
    assert refused > 5


def test_a_large_picture_is_scaled_to_the_canvas_without_aliasing():
    noise = np.random.default_rng(0).integers(0, 256, (400, 800), dtype=np.uint8)
    small, scale = pictures.fit(noise, 100)
    assert small.shape == (50, 100)
    assert scale == 100 / 800
    assert small.std() < noise.std() / 5  # of 64 pixels averaged 1/8 would stay; picking pixels would keep all
    picture, scale = pictures.fit(noise, 800)
    assert picture is noise
    assert scale == 1
    assert pictures.fit(np.zeros((2, 999, 3), dtype=np.uint8), 10)[0].shape == (1, 10, 3)


def paths_of(folder, **options):
    return [os.path.relpath(row["path"], folder) for row in Images(path=folder, **options).rows()]


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path):
    names = ["b/x2.PNG", "b/x10.png", "a.jpg", "B.tiff", "c.bmp", "b/x1.tif", "b/c/1.jpeg", "b/x01.png"]
    for name in [*names, "notes.txt", ".hidden.png", "._a.jpg", "__MACOSX/a.jpg", ".cache/a.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = ["a.jpg", "B.tiff", "c.bmp", "b/x01.png", "b/x1.tif", "b/x2.PNG", "b/x10.png", "b/c/1.jpeg"]
    assert paths_of(tmp_path) == expected
    assert next(Images(path=tmp_path).rows()) == {"path": str(tmp_path / "a.jpg"), "source": tmp_path.name}


def test_linked_folders_are_followed_once(tmp_path):
    save(tmp_path / "data/a.png", GREY)
    save(tmp_path / "elsewhere/b.png", GREY)
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "data")
    assert paths_of(tmp_path / "data") == ["a.png", "link/b.png"]


def test_a_folder_with_a_manifest_is_read_through_it(tmp_path):
    for name in ("a.png", "mask.png"):
        save(tmp_path / name, GREY)
    (tmp_path / "manifest.csv").write_text("path\na.png\n")
    assert paths_of(tmp_path) == ["a.png"]
    (tmp_path / "manifest.parquet").touch()
    assert "holds manifest.csv and manifest.parquet; write which" in trouble(tmp_path)


def trouble(path):
    with pytest.raises(ValueError) as caught:
        Images(path=path).rows()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_data_that_hold_no_pictures_are_named(tmp_path):
    assert "write --data FOLDER" in trouble(None)
    assert trouble(tmp_path / "gone").endswith("gone: no such file or folder")
    assert trouble(tmp_path).endswith("and no manifest; found nothing")
    for name in ("a.dcm", "b.dcm", "README"):
        (tmp_path / name).touch()
    assert trouble(tmp_path).endswith(
        "no pictures (.bmp .jpeg .jpg .png .tif .tiff) and no manifest; found 2 .dcm, 1 no extension"
    )
    assert "a folder of pictures or a manifest (.csv or .parquet)" in trouble(tmp_path / "a.dcm")


def listed(path, **options):
    """What `ussl data index` gets: rows, and how many other files there are."""
    source = Images(path=path, **options)
    return list(source.listing()), dict(source.aside)


def test_files_that_a_manifest_does_not_list_are_counted(tmp_path):
    for name in ("a.png", "b.png", "masks/a.png", "x.dcm", "README", "other.png"):
        save(tmp_path / name, GREY, format="PNG")
    text = "path,mask_lesion,outline_head\na.png,masks/a.png,\nb.png,,masks/a.png\ngone.png,,\n"
    (tmp_path / "manifest.csv").write_text(text)
    rows, aside = listed(tmp_path)
    assert [os.path.basename(row["path"]) for row in rows] == ["a.png", "b.png", "gone.png"]
    others = {".dcm files": 1, "nameless files": 1, "tables": 1}
    assert aside == {"masks": 1, "pictures that the manifest does not list": 1, **others}
    assert listed(tmp_path / "manifest.csv")[1] == {}
    with pytest.raises(ValueError, match="no such file"):
        Images().read(rows[2])


def test_a_pattern_is_about_the_folder_not_about_its_manifest(tmp_path):
    save(tmp_path / "liver/1.png", GREY)
    table = tmp_path / "manifest.csv"
    table.write_text("path,organ\nliver/1.png,heart\n")
    assert [row["organ"] for row in Images(path=tmp_path).rows()] == ["heart"]
    assert [row["organ"] for row in Images(path=tmp_path, pattern="{organ}/{view}").rows()] == ["liver"]
    with pytest.raises(ValueError, match="the option pattern is for a folder of pictures"):
        Images(path=table, pattern="{organ}/{view}").rows()


def test_constants_fill_what_a_manifest_leaves_open(tmp_path):
    table = tmp_path / "m.csv"
    table.write_text("path,organ,label\na.png,liver,benign\nb.png,,normal\n")
    rows = list(Images(path=table, organ="heart", source="mine").rows())
    assert [(row["organ"], row["source"]) for row in rows] == [("liver", "mine"), ("heart", "mine")]
    with pytest.raises(ValueError, match="every row says its label already: leave that option out"):
        Images(path=table, label="x").rows()


def test_where_keeps_rows_by_their_columns(tmp_path):
    table = tmp_path / "m.csv"
    table.write_text(
        "path,split,fold,organ\na.png,train,1,liver\nb.png,val,1,liver\nc.png,test,2,liver\nd.png,,2,liver\n"
    )
    rows, aside = listed(table, where={"split": ["train", "test"], "fold": ["1"]})
    assert [os.path.basename(row["path"]) for row in rows] == ["a.png"]
    assert aside == {"left out by where": 3}
    for where, reason in {
        ("splits", "train"): "has no column 'splits'; it has: fold, organ, path, split",
        ("split", "valid"): "has the split 'valid'; they have: test, train, val",
        ("split",): r"write split with a list of values, such as \{split: \[a, b\]\}, not \[\]",
    }.items():
        with pytest.raises(ValueError, match=reason):
            Images(path=table, where={where[0]: list(where[1:])}).rows()
    with pytest.raises(ValueError, match="not 'train'"):
        Images(path=table, where={"split": "train"}).rows()
    with pytest.raises(ValueError, match="no picture has all that where asks for"):
        Images(path=table, where={"split": ["val"], "fold": ["2"]}).rows()


def test_where_is_about_the_fields_of_a_pattern_as_well(tmp_path):
    for name in ("train/a.png", "test/b.png", "c.png"):
        save(tmp_path / name, GREY)
    rows, aside = listed(tmp_path, pattern="{split}/{view}", where={"split": ["train"]})
    assert [(os.path.basename(row["path"]), "rejected" in row) for row in rows] == [("c.png", True), ("a.png", False)]
    assert aside == {"left out by where": 1}


def test_a_pack_gives_its_own_rows(tmp_path, monkeypatch):
    (tmp_path / "pack.json").touch()
    rows = [{"path": "/a.png", "reader": "pack", "split": split} for split in ("train", "test")]
    monkeypatch.setattr("ussl.data.pack.rows", lambda path: [dict(row) for row in rows if path == tmp_path])
    assert list(Images(path=tmp_path).rows()) == rows
    assert list(Images(path=tmp_path, where={"split": ["test"]}).rows()) == rows[1:]
    with pytest.raises(ValueError, match="the option pattern is for a folder of pictures"):
        Images(path=tmp_path, pattern="{organ}/{view}").rows()
    with pytest.raises(ValueError, match="its row says that the source pack reads it, not images"):
        Images().read(rows[0])


def test_a_source_reads_the_frame_of_a_row(tmp_path):
    frames = [Image.fromarray(GREY + i) for i in range(2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    source = Images()
    np.testing.assert_array_equal(source.read({"path": str(tmp_path / "a.tif"), "frame": 1}), GREY + 1)
    np.testing.assert_array_equal(source.read({"path": str(tmp_path / "a.tif"), "frame": None}), GREY)


def table(path, rows):
    """The same manifest as CSV or Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([[f" {name} " for name in rows[0]], *(row.values() for row in rows)])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_keeps_text_whole_numbers_and_gaps(tmp_path, name):
    first = {"path": "a/1.png", "patient": "001", "frame": 3, "organ": "", "mask_head": "m.png", "reader": "dicom"}
    second = {"path": "/data/2.png", "patient": "2", "frame": 0, "organ": "liver", "mask_head": None, "reader": None}
    rows = manifest.read(table(tmp_path / "in" / name, [first, second]))
    here = tmp_path / "in"
    assert rows == [
        {**first, "path": str(here / "a/1.png"), "organ": None, "mask_head": str(here / "m.png")},
        second,
    ]


def test_numbers_for_names_are_text_in_parquet_too(tmp_path):
    rows = manifest.read(table(tmp_path / "m.parquet", [{"path": "a.png", "patient": 12, "depth": 3.5}]))
    assert rows[0]["patient"] == "12"
    assert rows[0]["depth"] == 3.5


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_without_paths_says_which_columns_it_has(tmp_path, name):
    with pytest.raises(ValueError, match=r"no column `path`, which a manifest needs; its columns are: file, organ"):
        manifest.read(table(tmp_path / name, [{"file": "a.png", "organ": "liver"}]))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the manifest is empty"),
        ("path,organ\n\n", "the manifest has no rows"),
        ("path,organ\na.png\n", "row 2 has 1 cells under 2 columns"),
        ("path,organ\n,liver\n", "row 1 has no path"),
        ("path,frame\na.png,x\n", "row 1: `frame` is 'x', and must be a whole number"),
        ("path,frame\na.png,1.5\n", "row 1: `frame` is '1.5', and must be a whole number"),
        ("path,organ,organ\na,b,c\n", "two columns have one name: path, organ, organ"),
    ],
)
def test_a_broken_manifest_is_refused_in_one_line(tmp_path, text, line):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        manifest.read(tmp_path / "m.csv")
    assert str(caught.value) == f"{tmp_path / 'm.csv'}: {line}"


def test_files_that_are_no_table_are_refused(tmp_path):
    for name, content in {"m.csv": b"path\n\xff\xfe", "m.parquet": b"nothing"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a") as caught:
            manifest.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        manifest.read(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"a manifest is a \.csv or \.parquet file"):
        manifest.read(tmp_path / "m.xlsx")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images at {REAL}")
def test_the_real_folder_is_read_without_its_masks():
    source = Images(path=REAL)
    rows = list(source.listing())
    assert len(rows) == 3023
    assert source.aside == {"masks": 1668, ".dcm files": 10, "tables": 1, ".md files": 1}
    assert {row["organ"] for row in rows} >= {"liver", "fetal_head"}
    assert not any("/masks/" in row["path"] for row in rows)
    for row in rows[::300]:
        assert source.read(row).shape[:2] == (row["height"], row["width"])
