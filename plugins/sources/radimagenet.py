"""The ultrasound part of RadImageNet, with its published splits where the tables are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import (
    PICTURES,
    between,
    downward,
    extension,
    inside,
    kept,
    locate,
    other,
    records,
    unlike,
    walk,
    word,
)
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

ORGANS = {  # of the classes known; Mei et al. name them so, and copies spell them out
    "aorta": "aorta",
    "bladder": "bladder",
    "cbd": "bile duct",
    "common_bile_duct": "bile duct",
    "bile_duct": "bile duct",
    "fibroid": "uterus",
    "uterus": "uterus",
    "gallbladder": "gallbladder",
    "gall_bladder": "gallbladder",
    "gb": "gallbladder",
    "ivc": "vein",
    "inferior_vena_cava": "vein",
    "portal_vein": "vein",
    "kidney": "kidney",
    "liver": "liver",
    "ovary": "ovary",
    "pancreas": "pancreas",
    "spleen": "spleen",
    "thyroid": "thyroid",
    "thyroid_nodule": "thyroid",
}


@dataclass(slots=True)
class _Listed:
    """What the tables say of a picture."""

    split: str
    place: tuple[str, str]  # class and file, as the table has them
    table: str
    cells: dict[str, str]
    met: bool = False


class RadImageNet(DataSet):
    """RadImageNet's ultrasound: label and organ by class folder, published splits, no patient ids (Mei et al. 2022).

    Mei et al., Radiology: Artificial Intelligence 2022, doi:10.1148/ryai.210315. Pictures of CT and MR, and the
    arrays of `correction_masks`, are set aside. Classes are the folders there are; that of an unknown organ keeps
    its name. Without patient ids nobody can tell whether a patient is on both sides of a split, the published one
    included.
    """

    name = "radimagenet"
    expected = "radiology_ai/US/<class>/<picture>.png"

    def __init__(self, *, path: Path | None = None, tables: Path | None = None) -> None:
        """The folder `path`; its tables are a download of their own.

        Args:
            path: the folder that holds radiology_ai, or one below it.
            tables: the folder of RadiologyAI_train.csv, _val and _test, when it lies elsewhere.
        """
        super().__init__(path=path)
        self.tables = tables

    def listing(self) -> Iterator[dict[str, Any]]:
        self.aside.clear()
        classes = self._classes()
        tables = self._tables()
        listed = _listed(tables)
        if not listed:
            once(f"{self.root}: no RadiologyAI_train.csv, _val, _test, so no published split; where? --tables FOLDER")
        root, pictures, unlisted = self.root, 0, 0
        for path in walk(root):
            row = self._of_file(path, between(path, root), f"{classes}{os.sep}", tables, listed)
            if row is not None:
                pictures += "rejected" not in row
                unlisted += "rejected" not in row and "split" not in row
                yield row
        if not pictures:
            raise unlike(self.root, self.name, self.expected)
        if listed and unlisted:
            once(f"{self.root}: {unlisted} pictures are in no table, so they have no published split")
        for known in (known for known in listed.values() if not known.met):
            reason = f"listed in {known.table}, but there is no such file"
            yield rejected(classes.joinpath(*known.place), reason, source=self.name)

    def _of_file(
        self,
        path: str,
        folders: list[str],
        classes: str,
        tables: dict[str, str],
        listed: dict[tuple[str, ...], _Listed],
    ) -> dict[str, Any] | None:
        modality = next((folder.upper() for folder in folders if folder in ("ct", "mr")), None)
        if "correction_masks" in folders:
            self.aside["correction masks"] += 1
        elif extension(path) not in PICTURES:
            self.aside["tables" if path in tables else other(path)] += 1
        elif path.startswith(classes) and path.count(os.sep, len(classes)):
            return self._picture(path, path[len(classes) :], listed)
        elif modality:
            self.aside[f"{modality} pictures"] += 1
        else:
            return rejected(path, "lies in no class folder of the folder US", source=self.name)
        return None

    def _picture(self, path: str, inner: str, listed: dict[tuple[str, ...], _Listed]) -> dict[str, Any]:
        label = inner.split(os.sep, 1)[0]
        row = self.row(path, organ=_organ(label), label=label, group_kind="image")
        known = listed.get((label.casefold(), os.path.basename(inner).casefold()))
        if known is not None:
            known.met = True
            row |= {"split": known.split, **known.cells}
        return row

    def _classes(self) -> Path:
        """The folder of the class folders: US, or one of another name with two known classes or more."""
        above = locate(self.root, "US")
        if above is None and self.root.name.lower() == "us":
            return self.root
        found = inside(above, "US") if above else next(filter(_holds_classes, downward(self.root)), None)
        if found is None:
            raise unlike(self.root, self.name, self.expected)
        return found

    def _tables(self) -> dict[str, str]:
        """The split of each table."""
        places = [self.root] if self.tables is None else [self.root, Path(os.path.abspath(self.tables))]
        if not places[-1].is_dir():
            raise ValueError(
                f"{places[-1]}: no such folder; --tables is that of RadiologyAI_train.csv, _val and _test"
            )
        found = {}
        for path in (path for place in places for path in walk(place) if extension(path) == ".csv"):
            split = re.search("train|val|test", os.path.basename(path).lower())
            if split:
                found[path] = split[0]
        if self.tables is not None and not any(path.startswith(f"{places[-1]}{os.sep}") for path in found):
            raise unlike(places[-1], "the tables of radimagenet", "RadiologyAI_train.csv, _val and _test")
        return found


def _listed(tables: dict[str, str]) -> dict[tuple[str, ...], _Listed]:
    """What is said of each ultrasound picture, by class and file; of two splits the one further from training."""
    found: dict[tuple[str, ...], _Listed] = {}
    twice = 0
    for path, split in sorted(tables.items(), key=lambda item: ("train", "val", "test").index(item[1])):
        for cells in records(path):
            if "filename" not in cells:
                raise ValueError(f"{path}: no column `filename`; its columns are: {', '.join(cells)}")
            place = _place(cells["filename"])
            if place is not None:
                key = tuple(piece.casefold() for piece in place)
                twice += key in found and found[key].split != split
                found[key] = _Listed(split, place, os.path.basename(path), kept(cells, "filename"))
    if twice:
        once(f"{twice} pictures are in several of {', '.join(map(os.path.basename, tables))}: test, then val, counts")
    return found


def _place(name: str) -> tuple[str, str] | None:
    """Class and file of an ultrasound picture that a table names; None = of another modality."""
    pieces = [piece for piece in re.split(r"[/\\]", name) if piece]
    folders = [piece.lower() for piece in pieces[:-1]]
    if not folders or "ct" in folders or "mr" in folders:
        return None
    at = folders.index("us") + 1 if "us" in folders else len(folders) - 1
    return (pieces[min(at, len(folders) - 1)], pieces[-1])


def _holds_classes(folder: Path) -> bool:
    return sum(word(inner.name) in ORGANS for inner in folder.iterdir() if inner.is_dir()) > 1


def _organ(label: str) -> str:
    if word(label) not in ORGANS:
        once(f"radimagenet: the class {label} is of no organ known here, so its organ is written as {label}")
    return ORGANS.get(word(label), label)


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer the ultrasound part of RadImageNet."""
    return {"radimagenet": RadImageNet}
