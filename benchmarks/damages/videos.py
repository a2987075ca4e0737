"""Damaged video files."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from damages.kinds import INDEXED, Sample, damage

BROKEN = r"rejected: damaged or cut short: .+"
LARGE = r"rejected: \d+ x \d+ pixels a frame: more than \d+ megapixels; .+"


def video(some: Sample, form: str) -> bytes:
    """Eight frames in one of the forms mp4 (its table last), fast (first), and avi."""
    height, width = (side // 2 * 2 for side in some.picture.shape)
    return _encoded(some.picture[:height, :width].tobytes(), height, width, form)


@cache
def _encoded(pixels: bytes, height: int, width: int, form: str) -> bytes:
    picture = np.frombuffer(pixels, np.uint8).reshape(height, width)
    options = {"movflags": "faststart"} if form == "fast" else {}
    with TemporaryDirectory() as folder:
        path = Path(folder, "video.avi" if form == "avi" else "video.mp4")
        _write(path, picture, form == "avi", options)
        return path.read_bytes()


def _write(path: Path, picture: np.ndarray, is_avi: bool, options: dict[str, str]) -> None:
    height, width = picture.shape
    with av.open(str(path), "w", options=options) as container:
        track = container.add_stream("mjpeg" if is_avi else "mpeg4", rate=10)
        track.width, track.height = width, height
        track.gop_size = 2
        track.pix_fmt = "yuvj420p" if is_avi else "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, 1), "gray")
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


@damage("video", BROKEN, end=".mp4")
def mp4_without_its_table(some: Sample) -> bytes:
    """Which comes last: nothing can be read without it."""
    data = video(some, "mp4")
    return some.cut(data, 0, len(data) - data.index(b"moov"))


@damage("video", INDEXED, BROKEN, end=".mp4")
def mp4_cut_short(some: Sample) -> bytes:
    """The whole frames are taken, and the others counted."""
    data = video(some, "fast")
    return some.cut(data, data.index(b"mdat"))


@damage("video", INDEXED, BROKEN, end=".avi")
def avi_cut_short(some: Sample) -> bytes:
    data = video(some, "avi")
    return some.cut(data, 0, len(data) // 10)


@damage("video", INDEXED, BROKEN, end="")
def video_with_flipped_bytes(some: Sample) -> bytes:
    form, end = some.one_of(("mp4", ".mp4"), ("avi", ".avi"))
    some.path = some.path.with_suffix(end)
    data = video(some, form)
    first, last = (b"mdat", b"moov") if form == "mp4" else (b"movi", b"idx1")
    return some.flip(data, data.index(first) + 4, data.index(last) - 4)


@damage("video", r"indexed.*", BROKEN, LARGE, "rejected: .+", end="")
def video_with_flipped_bytes_in_its_header(some: Sample) -> bytes:
    form, end = some.one_of(("fast", ".mp4"), ("avi", ".avi"))
    some.path = some.path.with_suffix(end)
    return some.flip(video(some, form), 0, 600)


@damage("video", INDEXED, BROKEN, "rejected: compressed in a way that is not decoded here", end="")
def video_that_ends_in_zeros(some: Sample) -> bytes:
    form, end = some.one_of(("fast", ".mp4"), ("avi", ".avi"))
    some.path = some.path.with_suffix(end)
    data = video(some, form)
    return some.cut(data, 0, len(data) // 10).ljust(len(data), b"\0")


@damage("video", INDEXED, LARGE, BROKEN, end=".avi")
def video_of_a_huge_size(some: Sample) -> bytes:
    """By the header of its stream, which frames may contradict, or of its frames."""
    data = video(some, "avi")
    if some.number % 2:
        return data.replace(
            b"\xff\xc0\0\x11\x08" + _size(some), b"\xff\xc0\0\x11\x08" + struct.pack(">HH", 60_000, 60_000)
        )
    at = data.index(b"strf") + 12
    return data[:at] + struct.pack("<ii", 60_000, 60_000) + data[at + 8 :]


def _size(some: Sample) -> bytes:
    return struct.pack(">HH", *(side // 2 * 2 for side in some.picture.shape))


@damage("video", BROKEN, "rejected: holds no video", end=".mp4")
def no_video_inside(some: Sample) -> bytes:
    """A playlist among it, which would name other files to read."""
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    return some.one_of(b"", b"<html>not found</html>", playlist, bytes(4096), b"\0" + some.noise(900))
