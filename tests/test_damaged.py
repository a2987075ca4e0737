"""`ussl data index` over damaged and odd files of every kind: a few of each, as `benchmarks/damaged.py` makes them."""

import io
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ussl.data import pictures

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GREY = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture
def damaged(monkeypatch):
    """The benchmark, as it finds itself when it is run as a script."""
    for name in ("pydicom", "av", "imagecodecs"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import damaged

    yield damaged
    for name in [name for name in sys.modules if name.partition(".")[0] in ("damaged", "damages")]:
        del sys.modules[name]


def encoded(form, **options):
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, form, **options)
    return stream.getvalue()


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        pictures.read(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_every_damaged_file_is_accounted_for_as_expected_within_a_gigabyte(damaged, tmp_path, monkeypatch, capsys):
    count = 3 * len([kind for kind in damaged.KINDS if not kind.skip])
    monkeypatch.setattr(sys, "argv", ["damaged.py", "--out", str(tmp_path / "out"), "--count", str(count)])
    code = damaged.main()
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.endswith(f"{count} files: all as expected\n")
    sums = [list(map(int, numbers.split())) for numbers in re.findall(r"^\w+ +all +([\d ]+)$", said, re.MULTILINE)]
    assert sum(files for files, *_ in sums) == count
    assert all(files == indexed + rejected and not unexpected for files, indexed, rejected, unexpected in sums)
    assert sum(indexed for _, indexed, *_ in sums) > count // 5


def test_there_are_more_than_twenty_kinds_of_each_of_which_equal_files_are_made_again(damaged, tmp_path):
    kinds = [kind for kind in damaged.KINDS if not kind.skip]
    assert len({kind.name for kind in kinds}) >= 40
    small = [kind for kind in kinds if kind.name in ("png cut short", "header cut short", "video with flipped bytes")]
    made = [damaged.make(tmp_path / name, small, 6, damaged.base_pictures(None, 2)) for name in ("a", "b")]
    assert made[0] == made[1]
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 6
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_an_outcome_that_is_not_expected_or_is_missing_fails_the_run(damaged, tmp_path, capsys):
    kind = damaged.Kind("whole", "images", ".png", "rejected: .+", lambda some: some.file("PNG"))
    files = damaged.make(tmp_path / "files", [kind], 2, [GREY])
    (tmp_path / "corpus.csv").write_text(
        f"path,frame,width,height,flag,digest\n{tmp_path}/files/images/whole/00000.png,,96,64,tiny,d\n"
    )
    (tmp_path / "rejected.csv").write_text("path,frame,source,reason\n")
    run = damaged.Run(0, "files 2 listed = 1 indexed + 1 rejected\n", 1.0, 2**31, 0)
    wrong = damaged.judge("images", files, run, tmp_path / "corpus.csv", tmp_path / "files")
    assert wrong[:2] == ["images: whole 00000: indexed", "images: whole 00001: lost"]
    assert "2048 MB of memory" in wrong[2]
    assert len(wrong) == 3


def test_the_watch_sees_the_memory_of_processes_below(damaged):
    import subprocess

    below = "import time; data = bytearray(b'x') * 10**8; time.sleep(.6)"
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {below!r}]) + 3)"
    process = subprocess.Popen([sys.executable, "-c", code])
    peak, largest, code = damaged.watch(process.pid)
    process.returncode = code
    assert code == 3
    assert 10**8 < largest <= peak + 2**25
    assert peak < 3 * 10**8


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_whose_end_was_never_written_is_refused(tmp_path, options):
    """Files of a disk that was full or a machine that went down end in zeros, which decoders show as grey."""
    data = encoded("JPEG", **options)
    for share in (0.3, 0.6, 0.9):
        cut = data[: int(len(data) * share)]
        assert refusal(tmp_path / "a.jpg", cut.ljust(len(data), b"\0")).startswith("damaged or cut short (")


def test_a_jpeg_with_something_after_its_end_is_read(tmp_path):
    for after in (b"\0" * 512, b"trailer", b"\xff\xda" + b"\0" * 9):
        (tmp_path / "a.jpg").write_bytes(encoded("JPEG") + after)
        assert pictures.read(tmp_path / "a.jpg").shape == GREY.shape


def test_the_end_of_a_preview_is_not_the_end_of_a_jpeg(tmp_path):
    data = encoded("JPEG", exif=b"Exif\0\0" + encoded("JPEG")[:20000])
    assert data.count(b"\xff\xd9") == 2
    assert "its pixels have no end" in refusal(
        tmp_path / "a.jpg", data[: len(data) // 2 + 1000].ljust(len(data), b"\0")
    )


def test_a_png_whose_zeros_decode_is_refused(tmp_path):
    """Zeros in place of compressed data can be a valid stream, whose pixels are wrong."""
    data = bytearray(encoded("PNG"))
    at = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    body = zlib.compress(bytes((GREY.shape[1] + 1) * GREY.shape[0]))
    data[at + 4 : at + 4 + length] = body.ljust(length, b"\0")
    assert refusal(tmp_path / "a.png", bytes(data)) == ("damaged or cut short (its pixels differ from their checksum)")


def test_a_pipe_is_refused_at_once(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: not a file: a pipe"):
        pictures.read(tmp_path / "a.png")


@pytest.mark.parametrize("picture", [np.arange(3000, dtype=np.uint16), np.arange(3000, dtype=np.float32) / 7])
def test_a_picture_that_is_windowed_in_strips_is_windowed_as_a_whole(tmp_path, monkeypatch, picture):
    picture = picture.reshape(50, 60)
    Image.fromarray(picture).save(tmp_path / "a.tif")
    monkeypatch.setattr(pictures, "_STRIP", 240)  # pixels: 13 strips, the last of them shorter
    low, high = float(picture.min()), float(picture.max())
    expected = np.rint((picture.astype(np.float64) - low) * (255 / (high - low)))
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_a_picture_is_the_same_in_strips(tmp_path, monkeypatch, mode):
    colours = np.random.default_rng(1).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(colours).convert(mode).save(tmp_path / "a.tif")
    whole = pictures.read(tmp_path / "a.tif")
    monkeypatch.setattr(pictures, "_STRIP", 240)
    np.testing.assert_array_equal(pictures.read(tmp_path / "a.tif"), whole)
