"""Video files, frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data import folders, pictures, videos
from ussl.data.dataset import DataSet, rejected
from ussl.hookspecs import hookimpl
from ussl.parts import Source


class Video(DataSet):
    """Video files (mp4, avi, mov, mkv, mpg, webm, wmv) as their frames; each video is a group of its own.

    `video` is the file's path from the folder's name on, without its ending; `time` is when a frame is shown, in the
    file's own units, by which it is found again. A video has no patient, so that it takes the place of one
    (`group_kind` video).
    """

    name = "video"
    expected = "video files"

    def __init__(
        self, *, path: Path | None = None, stride: int = 1, organ: str | None = None, label: str | None = None
    ) -> None:
        """The frames of video files.

        Args:
            path: a folder of videos, or one.
            stride: every how manyeth frame is taken.
            organ: what all videos show.
            label: what all videos are labelled.
        """
        super().__init__(path=path)
        if stride < 1:
            raise ValueError(f"stride is {stride}: write 1 for every frame, 2 for every second one, ...")
        self.stride, self.organ, self.label = stride, organ, label

    @property
    def root(self) -> Path:
        """The folder or file it is in. ValueError: none was named, or it is not there."""
        if self.path is None:
            raise ValueError("where are the videos? Write a folder or a file: --data PATH")
        path = Path(os.path.abspath(self.path))
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        return path

    def listing(self) -> Iterator[dict[str, Any]]:
        """One item a file."""
        self.aside.clear()
        root = self.root
        if not root.is_dir():
            if folders.extension(root) not in videos.SUFFIXES:
                raise ValueError(f"{root}: neither a folder nor a video ({' '.join(sorted(videos.SUFFIXES))})")
            yield self._item(root, root.stem)
            return
        for path in folders.walk(root):
            if folders.extension(path) in videos.SUFFIXES:
                yield self._item(path, os.path.splitext(os.path.relpath(path, root.parent))[0])
            else:
                self.aside[folders.other(path)] += 1

    def expand(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One row a frame that can be decoded; one is rejected for those that the header announces besides."""
        path = item["path"]
        _check_is_file(path)
        found = videos.contents(path)
        times = found.times if _distinct(found.times) else [None] * len(found.times)
        rows = []
        for frame in range(0, len(times), self.stride):
            time = {} if times[frame] is None else {"time": times[frame]}
            rows.append({**item, "frame": frame, **time})
        if len(times) < found.announced:
            reason = f"damaged or cut short: of its {found.announced} frames {len(times)} can be decoded"
            rows.append(rejected(path, reason, frame=len(times)))
        return rows

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        """A frame: RGB, or grey where it has no more colour than compression leaves."""
        time = row.get("time")
        return videos.read(row["path"], int(row.get("frame") or 0), None if time is None else int(time))

    def _item(self, path: str | os.PathLike[str], video: str) -> dict[str, Any]:
        known = {"organ": self.organ, "label": self.label}
        said = {name: value for name, value in known.items() if value is not None}
        return self.row(path, reader=self.name, **said, patient=video, group_kind="video", video=video)


def _check_is_file(path: str) -> None:
    try:
        special = pictures.is_special(path)
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
    if special:
        raise ValueError(f"{path}: {pictures.SPECIAL}")


def _distinct(times: list[int | None]) -> bool:
    """Whether a frame can be found by its time."""
    return None not in times and len(set(times)) == len(times)


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer videos."""
    return {"video": Video}
