"""HC18: the fetal head, with its circumference in millimetres and its outline."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, extension, header, records, unlike
from ussl.data.pairing import is_mask, nearest, numbered
from ussl.data.tree import below, kind, split_of
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

_PICTURE = re.compile("([0-9]+)_[0-9]*hc")  # 000_HC, 000_2HC: a further sweep of the same fetus
Key = tuple[str | None, str]  # part and stem of a picture


class HC18(DataSet):
    """HC18: 1,334 pictures of fetal heads with circumference and outline (van den Heuvel et al. 2018).

    van den Heuvel et al., PLoS ONE 2018, doi 10.1371/journal.pone.0200412; Zenodo 1327317. Columns: hc_mm, pixel_mm
    (of the picture as published), outline_head (a drawn line: `ussl.data.masks` fills it). The numbers start again in
    the test part, so patients are train_<number> and test_<number>; 000_HC and 000_2HC are sweeps of one fetus.
    """

    name = "hc18"
    expected = "training_set or test_set with pictures such as 000_HC.png, and their tables of pixel sizes"

    def listing(self) -> Iterator[dict[str, Any]]:
        """Rows of all pictures, then of the tables' rows without one. ValueError: not a picture, a broken table."""
        self.aside.clear()
        pictures, outlines, tables = self._sorted_out()
        if not pictures:
            raise unlike(self.root, self.name, self.expected)
        sizes = {key: cells for table in tables for key, cells in self._sizes(table).items()}
        pictures, outlines = _with_parts(pictures, sizes), _with_parts(outlines, sizes)
        heads = self._heads(pictures, outlines)
        for place, key in pictures.items():
            yield self._row(place, key, heads.get(place, {}), sizes.get(key, {}))
        yield from self._lost(pictures, sizes)
        if missing := sum(key not in sizes for key in pictures.values()):
            once(f"{self.root}: {missing} of {len(pictures)} pictures are in no table, so their pixel size is unknown")

    def _sorted_out(self) -> tuple[dict[str, Key], dict[str, Key], list[str]]:
        """Pictures and outlines by place, and the tables; other files are counted."""
        pictures: dict[str, Key] = {}
        outlines: dict[str, Key] = {}
        tables = []
        for place in below(self.root):
            stem = place.casefold().rpartition("/")[2].rpartition(".")[0].strip()
            bare = re.sub("[ _-]*annotation$", "", stem)
            if extension(place) in PICTURES and _PICTURE.fullmatch(bare):
                drawn = bare != stem or is_mask(place)
                (outlines if drawn else pictures)[place] = (self._part(place), bare)
            else:
                self.aside[kind(place)] += 1
                if extension(place) == ".csv":
                    tables.append(place)
        return pictures, outlines, tables

    def _part(self, place: str) -> str | None:
        """train or test, by the file's nearest folder that says it, else by the root's name."""
        folders = [self.root.name, *place.split("/")[:-1]]
        return next((part for folder in reversed(folders) if (part := split_of(folder)) in ("train", "test")), None)

    def _sizes(self, table: str) -> dict[Key, dict[str, Any]]:
        """What a table says of its pictures; nothing where it is a table of something else."""
        names = header(self.root / table)
        columns = {short: next((name for name in names if short in name), None) for short in ("pixel", "circumf")}
        if "filename" not in names or columns["pixel"] is None:
            return {}
        words = re.findall("[a-z]+", table.casefold().rpartition("/")[2])
        part = next((split_of(word) for word in words if split_of(word)), None) or self._part(table)
        found = {}
        for line in records(self.root / table):
            stem = line["filename"].casefold().removesuffix(extension(line["filename"]))
            values = {
                "pixel_mm": line[columns["pixel"]],
                "hc_mm": line[columns["circumf"]] if columns["circumf"] else "",
            }
            numbers = {name: self._number(value, table) for name, value in values.items() if value}
            found[part, stem] = {**numbers, "table": table, "filename": line["filename"]}
        return found

    def _number(self, value: str, table: str) -> float:
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{self.root / table}: {value!r} is not a number") from None

    def _heads(self, pictures: Mapping[str, Key], outlines: Mapping[str, Key]) -> dict[str, dict[str, str]]:
        """The outline of each picture that has one, or in a folder of masks its mask, with the column's name."""
        places = defaultdict(list)
        for place, key in pictures.items():
            places[key].append(place)
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for outline, key in outlines.items():
            picture = nearest(outline, places[key]) if key in places else None
            self.aside["masks" if picture else "masks without a picture"] += 1
            if picture:
                column = "outline_head" if "annotation" in outline.casefold().rpartition("/")[2] else "mask_head"
                found[picture][numbered(column, found[picture])] = str(self.root / outline)
        return found

    def _row(self, place: str, key: Key, head: Mapping[str, str], told: Mapping[str, Any]) -> dict[str, Any]:
        part, stem = key
        number = stem.partition("_")[0]
        known = {"patient": f"{part}_{number}" if part else number, "group_kind": "patient", "split": part}
        known |= {**head, "hc_mm": told.get("hc_mm"), "pixel_mm": told.get("pixel_mm")}
        known = {name: value for name, value in known.items() if value is not None}
        return self.row(self.root / place, organ="fetus", **known)

    def _lost(self, pictures: Mapping[str, Key], sizes: Mapping[Key, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        there = set(pictures.values())
        for (part, stem), told in sizes.items():
            if (part, stem) not in there:
                folder = {"train": "training_set", "test": "test_set"}.get(part or "", "")
                path = os.path.join(self.root, folder, told["filename"])
                reason = f"listed in {told['table']}, but there is no such file"
                yield rejected(path, reason, source=self.name)


def _with_parts(files: Mapping[str, Key], told: Collection[Key]) -> dict[str, Key]:
    """The files, with the part by the one table that lists them where no folder says it."""
    found = {}
    for place, (part, stem) in files.items():
        parts = [name for name in ("train", "test") if (name, stem) in told]
        found[place] = (parts[0] if part is None and len(parts) == 1 else part, stem)
    return found


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer HC18."""
    return {"hc18": HC18}
