"""CAMUS: echocardiographic sequences of 500 patients, apical two and four chamber, with the left heart outlined."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ussl.data import folders, volumes
from ussl.data.dataset import DataSet
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

_FILE = re.compile(r"(?:.*_)?(2CH|4CH)_(half_sequence|sequence|ED|ES)(_gt)?(\.nii|\.nii\.gz|\.mhd|\.mha)", re.I)
_DATA = frozenset({".raw", ".zraw"})  # of .mhd files
_SPLITS = {"training": "train", "validation": "val", "testing": "test"}
_COLUMNS = {
    "ef": "ef",
    "lvef": "ef",
    "imagequality": "quality",
    "framerate": "frame_rate",
    "lvedv": "edv",
    "lvesv": "esv",
}
_KINDS = ("half_sequence", "sequence")


class Camus(DataSet):
    """CAMUS (Leclerc et al. 2019, doi 10.1109/TMI.2019.2900516): heart sequences, in NIfTI or MHD.

    Every frame of a sequence is a row, for the pictures of end diastole and end systole are frames of it: those
    have `phase` ED or ES. `mask_gt` is the file with the truth of the same frame (`mask` reads it: 1 left ventricle,
    2 myocardium, 3 left atrium), `split` that of database_split, or of the folders of the older layout.
    """

    name = "camus"
    expected = "database_nifti/patient0001/patient0001_2CH_half_sequence.nii.gz, or training/patient0001/*.mhd"

    def __init__(self, *, path: Path | None = None, pictures: Literal["sequence", "phases"] = "sequence") -> None:
        """The frames of CAMUS.

        Args:
            path: its folder.
            pictures: all frames of every sequence, or the two phases (end diastole, end systole) in their own files.
        """
        super().__init__(path=path)
        if pictures not in ("sequence", "phases"):
            raise ValueError(f"pictures is {pictures!r}: write sequence (every frame) or phases (ED and ES)")
        self.pictures = pictures

    def listing(self) -> Iterator[dict[str, Any]]:
        """One item a sequence; one a picture of a phase where there is no sequence, or where these are asked for."""
        self.aside.clear()
        patients = _patients(self.root)
        if not patients:
            raise ValueError(f"{self.root}: not {self.name} as it is published: expected {self.expected}")
        splits = _splits(self.root)
        absent = len(splits.keys() - set(map(_patient, patients)))
        if absent:
            once(f"camus     {absent} patients of its split lists are not there")
        seen: set[tuple[str, str, str]] = set()
        for folder in patients:
            patient = _patient(folder)
            split = splits.get(patient) or (None if splits else _SPLITS.get(folder.parent.name.lower()))
            for item in self._items(folder, seen):
                yield {**item, "patient": patient, "group_kind": "patient", **({"split": split} if split else {})}

    def expand(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One row a frame, with the truth and what Info_*.cfg says."""
        path, view, kind = item["path"], item["view"], item.get("phase") or "sequence"
        count = len(volumes.load(path))
        folder = Path(path).parent
        table = _table(folder, view)
        known = {**item, "video": f"{item['patient']}_{view}", **table}
        if kind != "sequence":
            mask = _beside(folder, view, (kind,), True)
            return [{**known, "frame": 0, **({"mask_gt": mask} if mask else {})}]
        masks, flag = _masks(folder, view, count, table)
        phases = {table.get(name.lower()): name for name in ("ED", "ES")}  # by frame, counted from 1
        rows = []
        for frame in range(count):
            phase = {"phase": phases[frame + 1]} if frame + 1 in phases else {}
            mask = {"mask_gt": masks[frame]} if frame in masks else {}
            rows.append({**known, "frame": frame, **phase, **mask, **flag})
        return rows

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        """A frame, uint8 (H, W), with depth running down."""
        return self._frame(row, "path", int(row.get("frame") or 0))

    def mask(self, row: Mapping[str, Any]) -> np.ndarray:
        """The truth of a row, uint8 (H, W): 0 else, 1 left ventricle, 2 myocardium, 3 left atrium."""
        if not row.get("mask_gt"):
            raise ValueError(f"{row['path']}: frame {row.get('frame') or 0} has no truth")
        single = len(volumes.load(row["mask_gt"])) == 1
        return self._frame(row, "mask_gt", 0 if single else int(row.get("frame") or 0))

    def _frame(self, row: Mapping[str, Any], column: str, frame: int) -> np.ndarray:
        frames = volumes.load(row[column])
        if not 0 <= frame < len(frames):
            raise ValueError(f"{row[column]}: has no frame {frame}, counted from 0: it has {len(frames)}")
        try:
            return volumes.eight_bits(frames, frame)
        except ValueError as error:
            raise ValueError(f"{row[column]}: {error}") from None

    def _items(self, folder: Path, seen: set[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
        """Items of one patient; what is no item is counted aside."""
        found = {name: _FILE.fullmatch(name) for name in sorted(os.listdir(folder), key=folders.natural)}
        views = {match[1].upper() for match in found.values() if match and match[2].lower() in _KINDS and not match[3]}
        for name, match in found.items():
            if match is None:
                self._count_aside(folder, name)
            elif match[3]:
                self.aside["masks"] += 1
            else:
                view, kind = match[1].upper(), match[2].upper()
                sequence = kind not in ("ED", "ES")
                if sequence != (self.pictures == "sequence" and view in views):
                    self.aside["sequences" if sequence else "pictures of phases, which are frames of sequences"] += 1
                elif (key := (_patient(folder), view, "" if sequence else kind)) in seen:
                    self.aside["second copies, in another layout"] += 1
                else:
                    seen.add(key)
                    item = self.row(folder / name, reader=self.name, organ="heart", view=view)
                    yield item if sequence else {**item, "phase": kind}

    def _count_aside(self, folder: Path, name: str) -> None:
        end = folders.extension(name)
        if (folder / name).is_file() and not name.startswith("."):
            what = "values of .mhd files" if end in _DATA else "tables" if end == ".cfg" else folders.other(name)
            self.aside[what] += 1


def _patient(folder: Path) -> str:
    """Who a folder is of. The older layout counts the patients of `testing` from 1 again, as others."""
    older = not any(".nii" in name.lower() for name in os.listdir(folder))
    again = older and folder.parent.name.lower() == "testing"
    return f"testing_{folder.name.lower()}" if again else folder.name.lower()


def _patients(root: Path) -> list[Path]:
    """Folders patient0001, ... at most three levels below, NIfTI before the older layout."""
    found, level = [], [root]
    for _ in range(4):
        found += [folder for folder in level if re.fullmatch(r"patient\d+", folder.name, re.I)]
        level = [path for folder in level if folder not in found for path in _folders(folder)]
    nifti = {folder: any(".nii" in name.lower() for name in os.listdir(folder)) for folder in found}
    return sorted(found, key=lambda folder: (not nifti[folder], folders.natural(str(folder))))


def _folders(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder), key=folders.natural)
    except OSError as error:
        raise ValueError(f"{folder}: {(error.strerror or 'cannot be listed').lower()}") from None
    return [
        folder / name for name in names if not name.startswith(".") and name != "__MACOSX" and (folder / name).is_dir()
    ]


def _splits(root: Path) -> dict[str, str]:
    """The published split of each patient; empty where there are no lists."""
    place = folders.locate(root, "database_split", depth=2) or folders.locate(root.parent, "database_split", depth=0)
    splits: dict[str, str] = {}
    for name, split in _SPLITS.items():
        path = None if place is None else folders.inside(place, f"database_split/subgroup_{name}.txt")
        if path is None:
            continue
        for patient in path.read_text(encoding="utf-8-sig", errors="replace").lower().split():
            if splits.setdefault(patient, split) != split:
                raise ValueError(f"{path}: {patient} is also in the list of {splits[patient]}")
    return splits


def _table(folder: Path, view: str) -> dict[str, Any]:
    """What Info_<view>.cfg says, under common names; empty where it is not there."""
    path = folders.inside(folder, f"Info_{view}.cfg")
    columns: dict[str, Any] = {}
    for line in [] if path is None else path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        key, colon, value = line.partition(":")
        name = re.sub(r"\W+", "_", key.strip().lower())
        if colon and name and value.strip() and name != "nbframe":
            columns[_COLUMNS.get(name, name)] = _number(value.strip())
    return columns


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _beside(folder: Path, view: str, kinds: tuple[str, ...], truth: bool) -> str | None:
    """The file of a view in a patient's folder."""
    for name in sorted(os.listdir(folder), key=folders.natural):
        match = _FILE.fullmatch(name)
        if match and (match[1].upper(), bool(match[3])) == (view, truth) and match[2].lower() in map(str.lower, kinds):
            return str(folder / name)
    return None


def _masks(folder: Path, view: str, count: int, table: Mapping[str, Any]) -> tuple[dict[int, str], dict[str, str]]:
    """The file with the truth of each frame, and a flag where its frames are not those of the sequence."""
    whole = _beside(folder, view, _KINDS, True)
    if whole is not None:
        if len(volumes.load(whole)) == count:
            return dict.fromkeys(range(count), whole), {}
        return {}, {"flag": "mask_of_other_length"}
    found = {name: _beside(folder, view, (name,), True) for name in ("ED", "ES")}
    places = {table.get(name.lower()): mask for name, mask in found.items() if mask}
    return {place - 1: mask for place, mask in places.items() if isinstance(place, int) and 1 <= place <= count}, {}


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer CAMUS."""
    return {"camus": Camus}
