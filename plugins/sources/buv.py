"""The breast ultrasound videos of CVA-Net, with the authors' corrections and the boxes of their JSON files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, extension, inside, locate, other, stem, unlike, walk
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

LABELS = ("benign", "malignant")
# by the authors' note of 2023-03-25; names without the x that some copies put before them
COPY = {"66ef02e7f1b9a0ef": "a copy of malignant/x3b88488853e8b7d1, which has the right label (authors' correction)"}
ONE_PATIENT = ("63c9ba1377f35bf6", "5a1c46ec6377e946", "2390fbea047347b", "7a39ab5d4970bf89")  # and malignant
# 106 of 110 frames of the first are identical to the second, under the other label and in the other split
TWINS = ("1282311c38f808f", "9c1c965d274c457")

Key = tuple[str, str, str]  # label, video, frame


@dataclass(slots=True)
class _Tables:
    """What the JSON files say."""

    splits: dict[tuple[str, str], str] = field(default_factory=dict)  # of videos
    names: dict[Key, tuple[str, str]] = field(default_factory=dict)  # of frames: as listed, and in which file
    boxes: dict[Key, list[list[float]]] = field(default_factory=dict)


class BUV(DataSet):
    """BUV, breast ultrasound videos as frames: benign or malignant, boxes, grouped by video (Lin et al. 2022).

    Lin et al., MICCAI 2022 (CVA-Net), LNCS pp. 614-623. Boxes are the columns box_x, box_y, box_width and
    box_height in pixels (those of a second one end in _1), with positive sizes whichever way they were drawn.
    `patient` is the video, which is all that is known, except where several are known to be of one patient.
    """

    name = "buv"
    expected = "rawframes/{benign,malignant}/<video>/<frame>.png, and JSON files of boxes beside it"

    def __init__(self, *, path: Path | None = None, corrected: bool = True) -> None:
        """Frames of videos.

        Args:
            path: the folder that holds rawframes.
            corrected: apply the authors' corrections of 2023-03-25 (one video is a copy of another; four are of one
                patient and malignant) and flag the two identical videos of contradictory labels `doubtful_label`.
        """
        super().__init__(path=path)
        self.corrected = corrected

    def listing(self) -> Iterator[dict[str, Any]]:
        self.aside.clear()
        frames = self._frames()
        tables, files = _Tables(), set()
        for path in sorted((p for p in walk(self.root) if extension(p) == ".json"), key=_authority):
            if _add(path, tables):
                files.add(path)
        if not files:
            once(f"{self.root}: no JSON files of frames, so neither boxes nor the published split")
        for path in walk(self.root):
            if extension(path) in PICTURES:
                yield self._picture(path, frames, tables)
            else:
                self.aside["tables" if path in files else other(path)] += 1
        for (_, video, _), (name, table) in tables.names.items():
            dropped = COPY.get(video) if self.corrected else None
            reason = dropped or f"listed in {table}, but there is no such file"
            yield rejected(frames / name, reason, source=self.name)

    def _frames(self) -> Path:
        """The folder of benign and malignant."""
        above = locate(self.root, "rawframes")
        found = inside(above, "rawframes") if above else locate(self.root, LABELS[0]) or locate(self.root, LABELS[1])
        if found is None or not any(inside(found, label) for label in LABELS):
            raise unlike(self.root, self.name, self.expected)
        return found

    def _picture(self, path: str, frames: Path, tables: _Tables) -> dict[str, Any]:
        pieces = os.path.relpath(path, frames).split(os.sep)
        if len(pieces) != 3 or pieces[0].lower() not in LABELS:
            return rejected(path, "lies in no {benign,malignant}/<video> of rawframes", source=self.name)
        key = _key(pieces)
        label, video, frame = pieces[0].lower(), *key[1:]
        tables.names.pop(key, None)
        row = self.row(path, organ="breast", label=label, patient=video, group_kind="video", video=video)
        if key[:2] in tables.splits:
            row["split"] = tables.splits[key[:2]]
        if frame.isdecimal():
            row["frame_number"] = int(frame)
        row |= _columns(tables.boxes.get(key, ()))
        return self._correct(row, video) if self.corrected else row

    def _correct(self, row: dict[str, Any], video: str) -> dict[str, Any]:
        if video in COPY:
            return rejected(row["path"], COPY[video], source=self.name)
        if video in ONE_PATIENT:
            return row | {"label": "malignant", "patient": ONE_PATIENT[0], "group_kind": "patient"}
        if video in TWINS:
            return row | {"patient": TWINS[0], "group_kind": "patient", "flag": "doubtful_label"}
        return row


def _key(pieces: Iterable[str]) -> Key:
    """Label, video and frame that compare equal however a copy writes them; all it takes is the last three folders."""
    label, video, frame = [piece.strip().lower() for piece in pieces][-3:]
    video, frame = video.removeprefix("x"), stem(frame)
    if video in ONE_PATIENT:
        label = "malignant"  # where some copies have moved them
    return label, video, str(int(frame)) if frame.isdecimal() else frame


def _authority(path: str) -> tuple[bool, str]:
    """The authors' own train and val before the files of a copy that was split again."""
    return "trainval" in _plain(path) or "test" in _plain(path), path


def _plain(path: str) -> str:
    return os.path.basename(path).lower()


def _add(path: str, tables: _Tables) -> bool:
    """Take up a JSON file; false = it is about something else. What an earlier file said stays."""
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return False
    split = re.search("train|val|test", _plain(path))
    try:
        keys = {image["id"]: _key(re.split(r"[/\\]", image["file_name"])) for image in content["images"]}
        boxes: dict[Key, list[list[float]]] = {}
        for box in content.get("annotations") or ():
            if box["image_id"] in keys:
                boxes.setdefault(keys[box["image_id"]], []).append(_positive(box["bbox"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a table of frames in COCO's form ({type(error).__name__}: {error})") from None
    for image in content["images"]:
        key = keys[image["id"]]
        tables.names.setdefault(key, ("/".join(re.split(r"[/\\]", image["file_name"])[-3:]), os.path.basename(path)))
        if split and tables.splits.setdefault(key[:2], split[0]) != split[0] and not _authority(path)[0]:
            once(f"{path}: some videos are in another split as well, which counts: {'/'.join(key[:2])} for one")
    for key, found in boxes.items():
        tables.boxes.setdefault(key, found)
    return True


def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def _positive(box: Iterable[Any]) -> list[float]:
    """x, y, width, height of a box that may have been drawn from right to left, or upwards."""
    x, y, width, height = (float(value) for value in box)
    return [min(x, x + width), min(y, y + height), abs(width), abs(height)]


def _columns(boxes: Iterable[list[float]]) -> Mapping[str, float]:
    return {
        f"{name}_{number}" if number else name: value
        for number, box in enumerate(boxes)
        for name, value in zip(("box_x", "box_y", "box_width", "box_height"), box, strict=True)
    }


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer BUV."""
    return {"buv": BUV}
