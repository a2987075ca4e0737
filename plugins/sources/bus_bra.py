"""BUS-BRA: breast pictures of four scanners with masks, pathology, BI-RADS and the published folds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, between, extension, header, kept, other, records, stem, unlike, walk, whole
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

_PICTURE = ("id", "image_filename", "filename", "image")  # columns that name one; the first as published
_FOLDS = re.compile(r"(\d+)[\s_-]*folds?(?![a-z])|(?<![a-z])k?folds?[\s_-]*(\d+)", re.IGNORECASE)


class BUSBRA(DataSet):
    """BUS-BRA, breast: benign or malignant, a lesion mask each, grouped by patient (Gomez-Flores et al. 2024).

    Gomez-Flores et al., Medical Physics 51(4):3110-3123 (2024), doi:10.1002/mp.16812. `patient` is the table's Case,
    not the number in ID. The folds published with it are the columns kfold_5, kfold_5_valid_1, ... as they are in
    5-fold-cv.csv; there is no other split. `bbox` is the table's text: measure boxes from `mask_lesion` instead.
    """

    name = "bus_bra"
    expected = "Images/bus_0001-l.png, Masks/mask_0001-l.png and bus_data.csv with the columns ID, Case, Pathology"

    def listing(self) -> Iterator[dict[str, Any]]:
        self.aside.clear()
        files = list(walk(self.root))
        tables = [path for path in files if extension(path) == ".csv" and _naming(path)]
        listed = _listed(path for path in tables if not _folds(path) and "pathology" in header(path))
        if not listed:
            raise unlike(self.root, self.name, self.expected)
        folds = _all_folds(path for path in tables if _folds(path))
        masks = self._masks(files)
        paired = set(masks.values())
        met, unlisted, folder = set(), 0, str(self.root)
        for path in files:
            if extension(path) not in PICTURES:
                self.aside["tables" if path in tables else other(path)] += 1
            elif self._is_mask(path):
                self.aside["masks" if path in paired else "masks without a picture"] += 1
            elif stem(path) in listed:
                folder = os.path.dirname(path)
                met.add(stem(path))
                yield self._picture(path, listed[stem(path)][0], masks) | folds.get(stem(path), {})
            elif {"images", "image"} & set(between(path, self.root)):
                unlisted += 1
                yield self._picture(path, {}, masks) | folds.get(stem(path), {})
            else:
                yield rejected(path, "neither in the table nor in the folder Images", source=self.name)
        if unlisted:
            once(f"{self.root}: {unlisted} pictures are not in the table, so they have neither label nor patient")
        for cells, table in (listed[name] for name in listed if name not in met):
            path = os.path.join(folder, _file(cells["id"]))
            yield rejected(path, f"listed in {table}, but there is no such file", source=self.name)

    def _picture(self, path: str, cells: Mapping[str, str], masks: Mapping[str, str]) -> dict[str, Any]:
        case, label = cells.get("case"), cells.get("pathology")
        group = {"patient": whole(case), "group_kind": "patient"} if case else {"group_kind": "image"}
        known = group | ({"label": label.lower()} if label else {})
        known |= {"mask_lesion": masks[path]} if path in masks else {}
        return self.row(path, organ="breast", **known) | kept(cells, "id", "case", "pathology")

    def _masks(self, files: Iterable[str]) -> dict[str, str]:
        """The mask of each picture that has one: `mask_0001-l` of `bus_0001-l`, or of the same name."""
        pictures = [path for path in files if extension(path) in PICTURES]
        masks = {stem(path): path for path in reversed(pictures) if self._is_mask(path)}
        found = {}
        for path in pictures:
            name = stem(path)
            mask = masks.get(f"mask{name[3:]}" if name.startswith("bus") else name) or masks.get(name)
            if mask and not self._is_mask(path):
                found[path] = mask
        return found

    def _is_mask(self, path: str) -> bool:
        return bool({"masks", "mask"} & set(between(path, self.root))) or stem(path).startswith("mask_")


def _naming(table: str) -> str | None:
    """The column of a table that names pictures."""
    columns = header(table)
    return next((name for name in _PICTURE if name in columns), None)


def _folds(table: str) -> str | None:
    """Of how many folds a table is, by its name; None = of none."""
    found = _FOLDS.search(os.path.basename(table))
    return (found[1] or found[2]) if found else None


def _listed(tables: Iterable[str]) -> dict[str, tuple[dict[str, str], str]]:
    """The first row of each picture, its name under `id`, and the name of its table."""
    found: dict[str, tuple[dict[str, str], str]] = {}
    for path in tables:
        column = str(_naming(path))
        for cells in records(path):
            cells["id"] = cells.pop(column)
            known, _ = found.setdefault(stem(cells["id"]), (cells, os.path.basename(path)))
            for name in ("case", "pathology"):
                if known.get(name, "").lower() != cells.get(name, "").lower():
                    raise ValueError(f"{path}: two rows of {cells['id']} say different things under {name}")
    return found


def _all_folds(tables: Iterable[str]) -> dict[str, dict[str, str]]:
    """What the tables of folds say of each picture."""
    found: dict[str, dict[str, str]] = {}
    for path in tables:
        column = str(_naming(path))
        for cells in records(path):
            said = _of_folds(kept(cells, column, "pathology"), str(_folds(path)))
            found.setdefault(stem(cells[column]), {}).update(said)
    return found


def _file(name: str) -> str:
    return name if extension(name) in PICTURES else f"{name}.png"


def _of_folds(cells: dict[str, str], count: str) -> dict[str, str]:
    """kFold of the table of 5 folds as kfold_5, its valid_1 as kfold_5_valid_1."""
    return {f"kfold_{count}" if name == "kfold" else f"kfold_{count}_{name}": value for name, value in cells.items()}


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer BUS-BRA."""
    return {"bus_bra": BUSBRA}
