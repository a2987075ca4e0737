"""The fetal planes of two Spanish hospitals, with the published division by patient."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import (
    PICTURES,
    between,
    extension,
    header,
    kept,
    natural,
    other,
    records,
    stem,
    unlike,
    walk,
    whole,
)
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

COLUMNS = {"image_name", "patient_num", "plane"}
_SPLITS = {"1": "train", "true": "train", "0": "test", "false": "test"}  # by the column Train


class FetalPlanes(DataSet):
    """FETAL_PLANES_DB: maternal-fetal planes with patients and the published split (Burgos-Artizzu et al. 2020).

    Burgos-Artizzu et al., Scientific Reports 10:10200 (2020). `label` is the plane; brain_plane, operator and
    us_machine are kept as the table has them. The table may be delimited by `;`, as published, or by `,`. Pictures
    of one plane (`..._Plane1_3_of_15`) can be nearly identical; they are of one patient.
    """

    name = "fetal_planes_db"
    expected = "Images/ and FETAL_PLANES_DB_data.csv with the columns Image_name, Patient_num, Plane, Train"

    def listing(self) -> Iterator[dict[str, Any]]:
        self.aside.clear()
        files = list(walk(self.root))
        tables = {path for path in files if extension(path) == ".csv" and {*header(path)} >= COLUMNS}
        listed = _listed(sorted(tables, key=natural))
        if not listed:
            raise unlike(self.root, self.name, self.expected)
        met, unlisted, folder = set(), 0, str(self.root)
        for path in files:
            if extension(path) not in PICTURES:
                self.aside["tables" if path in tables or extension(path) == ".xlsx" else other(path)] += 1
            elif stem(path) in listed:
                folder = os.path.dirname(path)
                met.add(stem(path))
                yield self._listed_picture(path, listed[stem(path)][0])
            elif {"images", "image"} & set(between(path, self.root)):
                unlisted += 1
                yield self._unlisted_picture(path)
            else:
                yield rejected(path, "neither in the table nor in the folder Images", source=self.name)
        if unlisted:
            once(f"{self.root}: {unlisted} pictures are not in the table, so they have no label and no split")
        for cells, table in (listed[name] for name in listed if name not in met):
            path = os.path.join(folder, _file(cells["image_name"]))
            yield rejected(path, f"listed in {table}, but there is no such file", source=self.name)

    def _listed_picture(self, path: str, cells: Mapping[str, str]) -> dict[str, Any]:
        row = self.row(path, organ="fetus", label=cells["plane"])
        row |= {"patient": whole(cells["patient_num"]), "group_kind": "patient"}
        if cells.get("train"):
            row["split"] = _SPLITS[whole(cells["train"]).lower()]
        return row | kept(cells, "image_name", "patient_num", "plane", "train")

    def _unlisted_picture(self, path: str) -> dict[str, Any]:
        named = re.match(r"patient0*(\d+)_", stem(path))
        group = {"patient": named[1], "group_kind": "patient"} if named else {"group_kind": "image"}
        return self.row(path, organ="fetus", **group)


def _listed(tables: Iterable[str]) -> dict[str, tuple[dict[str, str], str]]:
    """The first row of each picture, and the name of its table."""
    found: dict[str, tuple[dict[str, str], str]] = {}
    for path in tables:
        for cells in records(path):
            if not (cells["image_name"] and cells["patient_num"] and cells["plane"]):
                raise ValueError(f"{path}: a row without {', '.join(sorted(COLUMNS))}: {';'.join(cells.values())}")
            if cells.get("train") and whole(cells["train"]).lower() not in _SPLITS:
                raise ValueError(f"{path}: the column Train says {cells['train']}; expected 1 (train) or 0 (test)")
            found.setdefault(stem(cells["image_name"]), (cells, os.path.basename(path)))
    return found


def _file(name: str) -> str:
    return name if extension(name) in PICTURES else f"{name}.png"


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer FETAL_PLANES_DB."""
    return {"fetal_planes_db": FetalPlanes}
