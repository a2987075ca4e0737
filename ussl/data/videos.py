"""Frames of video files: which there are, and any of them exactly as decoding from the start would give it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ussl.data import pictures

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf"  # no playlists: those name other files
)
_NEAR = 32  # frames ahead that are decoded on the way rather than sought
_TINT = 24  # levels between the channels of a pixel that compression leaves in a colourless picture
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class _Unusable(ValueError):
    """What is wrong with a video, without its name."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The frames that can be decoded."""

    times: list[int | None]  # presentation time of each in the stream's units, in order
    announced: int  # frames by the file's header; 0 = it does not say


def contents(path: str | os.PathLike[str]) -> Contents:
    """What a video holds, found by decoding it once.

    Raises:
        ValueError: `<path>: <what is wrong>`: not a video, damaged from its start, larger than `pictures.MAX_PIXELS`.
    """
    with _plain_words(path):
        player = _Player(path)
        try:
            times = [frame.pts for frame in player.frames()]
            announced = player.announced
        finally:
            player.close()
        if not times:
            raise _Unusable("damaged or cut short: none of its frames can be decoded")
        return Contents(times, announced)


def read(path: str | os.PathLike[str], frame: int, time: int | None = None) -> np.ndarray:
    """Frame `frame`, counted from 0, as uint8: upright RGB (H, W, 3), or (H, W) where it is colourless.

    time: its presentation time where it is known, which is then sought; else frames are counted from the start. The
    last video stays open, since frames are read one after the other.

    Raises:
        ValueError: `<path>: <what is wrong>`, as `contents`; or there is no such frame.
    """
    global _last
    with _plain_words(path):
        if _last is None or not _last.plays(path):
            close()
            _last = _Player(path)
        try:
            return picture(_last.frame(frame, time))
        except BaseException:
            close()
            raise


def close() -> None:
    """Let go of the video that stays open."""
    global _last
    if _last is not None and _last.process == os.getpid():
        _last.close()
    _last = None


def picture(frame: Any) -> np.ndarray:
    """uint8 RGB or grey of a decoded frame, upright."""
    if frame.width * frame.height > pictures.MAX_PIXELS:
        raise _Unusable(_too_large(frame.width, frame.height))
    grey = frame.format.name.startswith("gray") or frame.format.name in ("monob", "monow")
    pixels = frame.to_ndarray(format="gray" if grey else "rgb24")
    if not grey and int((pixels.max(-1) - pixels.min(-1)).max()) <= _TINT:
        pixels = np.rint(pixels @ _LUMINANCE).astype(np.uint8)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


class _Player:
    """A video that is open at some frame."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.identity, self.process = os.fspath(path), _identity(path), os.getpid()
        self.at = -1  # the frame that was given last
        self.running: Iterator[Any] = iter(())  # the frames after it
        self._open()

    def plays(self, path: str | os.PathLike[str]) -> bool:
        return self.process == os.getpid() and self.path == os.fspath(path) and self.identity == _identity(path)

    def frames(self) -> Iterator[Any]:
        """The frames from where it stands on, without those that are damaged."""
        for packet in self._packets():
            with suppress(self.av.error.InvalidDataError):
                yield from (frame for frame in packet.decode() if not frame.is_corrupt)

    def frame(self, number: int, time: int | None) -> Any:
        """Frame `number`, whose time is `time`."""
        if not self.at < number <= self.at + _NEAR:
            self._go_to(number, time)
        for frame in self.running:
            self.at += 1
            if frame.pts == time if time is not None else self.at == number:
                self.at = number
                return frame
        raise _Unusable(f"has no frame {number}, counted from 0, that can be decoded")

    def close(self) -> None:
        self.container.close()

    def _open(self) -> None:
        self.av = _library()
        most = str(pictures.MAX_PIXELS)
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        self.container = self.av.open("file:" + os.path.abspath(self.path), options=options)
        try:
            self._choose(most)
        except BaseException:
            self.container.close()
            raise

    def _choose(self, most: str) -> None:
        """Stand before the first frame of the first video stream."""
        if not self.container.streams.video:
            raise _Unusable("holds no video")
        self.stream = self.container.streams.video[0]
        context = self.stream.codec_context
        if context is None:
            raise _Unusable("compressed in a way that is not decoded here")
        if context.width * context.height > pictures.MAX_PIXELS:
            raise _Unusable(_too_large(context.width, context.height))
        context.options = {"max_pixels": most}
        context.thread_count = 1  # workers are processes
        self.announced = self.stream.frames
        self.at, self.running = -1, self.frames()

    def _packets(self) -> Iterator[Any]:
        """Packets up to where the file breaks off, then the one that empties the decoder."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except self.av.error.FFmpegError:
                yield self.av.Packet()
                return

    def _go_to(self, number: int, time: int | None) -> None:
        """Stand before the frame, at or before a picture that does not depend on earlier ones."""
        if time is not None and number > _NEAR and self._sought(time):
            return
        self.container.close()
        self._open()

    def _sought(self, time: int) -> bool:
        """Whether the file could be entered at a key picture that is shown before or at `time`."""
        wanted, back = time, max(1, int(1 / (self.stream.time_base or 1)))
        for _ in range(4):
            try:
                self.container.seek(wanted, stream=self.stream, backward=True, any_frame=False)
                first = next(self.container.demux(self.stream))
            except (self.av.error.FFmpegError, StopIteration):
                return False
            if first.pts is None or not first.is_keyframe:
                return False
            if first.pts <= time:  # what is shown after a key picture does not depend on what came before it
                self.container.seek(wanted, stream=self.stream, backward=True, any_frame=False)
                self.stream.codec_context.flush_buffers()
                self.at, self.running = 0, self.frames()
                return True
            wanted, back = min(wanted, first.dts if first.dts is not None else wanted) - back, back * 4
        return False


_last: _Player | None = None


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _too_large(width: int, height: int) -> str:
    return f"{width} x {height} pixels a frame: more than {pictures.MAX_PIXELS // 10**6} megapixels; scale it down"


def _library() -> Any:
    try:
        import av
        import av.logging
    except ImportError:
        raise _Unusable("reading video needs a package: pip install 'ultrasound-ssl[video]'") from None
    av.logging.set_level(av.logging.PANIC)
    return av


@contextmanager
def _plain_words(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong inside as one ValueError that names the file."""
    try:
        yield
    except _Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception:  # of FFmpeg, whose errors are also those of the system's classes
        if not os.path.exists(path):
            raise ValueError(f"{path}: no such file or directory") from None
        if not os.access(path, os.R_OK):
            raise ValueError(f"{path}: permission denied") from None
        raise ValueError(f"{path}: damaged or cut short: no video can be read from it") from None
