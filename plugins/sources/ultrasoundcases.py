"""Pictures collected from ultrasoundcases.info: a table as a crawler writes it, and the folder of its pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, extension, header, kept, other, records, stem, unlike, walk, word
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

IMAGE = ("img_name", "img_url", "image", "image_name", "filename")  # columns that name the picture, the first there is
CASE = (("case_id_cover_img_id",), ("subgroup_url", "case_description"))  # that tell cases apart, the first filled
LABEL = "subgroup"
ORGANS = {
    "mamma": "breast",
    "breasts": "breast",
    "kidneys": "kidney",
    "ovaries": "ovary",
    "gall_bladder": "gallbladder",
}


class _Table:
    """A table: its rows by the picture's path or address as far as it writes it."""

    def __init__(self, path: str, image: str) -> None:
        self.path, self.folder = path, os.path.dirname(path)
        self.rows: dict[str, dict[str, str]] = {}
        self.written: dict[str, str] = {}
        self.repeated = self.unnamed = 0
        self.unclear: set[str] = set()  # named by several addresses
        self.met: set[str] = set()
        for cells in records(path):
            self._add(cells, image)
        for name in self.unclear:
            del self.rows[name]
        self._named: dict[str, list[str]] = {}
        for name in sorted(self.rows, key=len, reverse=True):
            self._named.setdefault(name.split("/")[-1], []).append(name)

    def _add(self, cells: dict[str, str], image: str) -> None:
        pieces = _pieces(cells[image])[-1:] if image == "img_url" else _pieces(cells[image])
        name = _ending("/".join(pieces))
        self.unnamed += not name
        self.repeated += name in self.rows
        if name in self.rows and image == "img_url" and self.rows[name][image] != cells[image]:
            self.unclear.add(name)
        if name:
            self.rows.setdefault(name, cells)
            self.written.setdefault(name, "/".join(pieces))

    def name(self, path: str) -> str | None:
        """What the table calls the picture `path`, whichever of both writes more folders; None = not at all."""
        whole, below = f"/{_ending(path)}", f"/{_ending(os.path.relpath(path, self.folder))}"
        alike = self._named.get(stem(path), [])
        return next((name for name in alike if whole.endswith(f"/{name}") or f"/{name}".endswith(below)), None)


class UltrasoundCases(DataSet):
    """ultrasoundcases.info as crawled: pictures with a table of titles, grouped by case, columns named by options.

    There is no official download; the terms are the site's. A table is any .csv file that names pictures (`img name`
    or the end of `img url`), about those in its own folder or below, or about all where there are none. What it says
    besides is kept: group, subgroup, case_description, sex, age. The site also shows Doppler, elastography, text
    and several panels in one picture, and one case in several sections; some sets (BUS_UC) are copies of its pictures.
    """

    name = "ultrasoundcases"
    expected = "pictures, and a table (.csv) with a column such as `img name`, or the one named by --image"

    def __init__(
        self,
        *,
        path: Path | None = None,
        table: Path | None = None,
        image: str | None = None,
        case: str | list[str] | None = None,
        label: str | None = None,
        organ: str | None = None,
        organ_column: str | None = None,
    ) -> None:
        """A folder of pictures with a table; columns are named as the table names them.

        Args:
            path: the folder.
            table: the table, where it lies elsewhere or where only one of several is wanted.
            image: the column of the picture's file name or address; else `img name`, or `img url`.
            case: the column, or columns together, that tell cases apart, as a file's name does not; else
                `case id/cover img id`, or `subgroup url` with `case description`.
            label: the column that is the label; else `subgroup`.
            organ: the organ of all pictures, such as breast.
            organ_column: the column that names the organ; else `body part`.
        """
        super().__init__(path=path)
        if organ is not None and organ_column is not None:
            raise ValueError("organ says what the organ of all pictures is, so organ_column has no effect; give one")
        self.table, self.image, self.label = table, image, label
        self.case = [case] if isinstance(case, str) else case
        self.organ, self.organ_column = organ, organ_column

    def listing(self) -> Iterator[dict[str, Any]]:
        self.aside.clear()
        files = list(walk(self.root))
        tables = self._tables(files)
        names = {table.path for table in tables}
        pictures = [path for path in files if extension(path) in PICTURES]
        if not pictures:
            raise unlike(self.root, self.name, self.expected)
        for path in files:
            if extension(path) not in PICTURES:
                self.aside["tables" if path in names else other(path)] += 1
        yield from self._rows(pictures, tables)
        yield from self._missing(tables)

    def _rows(self, pictures: list[str], tables: list[_Table]) -> Iterator[dict[str, Any]]:
        reach = {table.path: _reach(table, pictures) for table in tables}
        unlisted = 0
        for path in pictures:
            cells: dict[str, str] | None = None
            for table in (table for table in tables if path.startswith(reach[table.path])):
                name = table.name(path)
                if name is not None:
                    table.met.add(name)
                    cells = table.rows[name] if cells is None else cells
            unlisted += cells is None
            yield self._picture(path, cells or {})
        if unlisted:
            once(f"{self.root}: {unlisted} pictures are in no table, so they have neither label nor case")

    def _missing(self, tables: list[_Table]) -> Iterator[dict[str, Any]]:
        met: set[str] = set()
        for table in tables:
            for name in (name for name in table.rows if name not in table.met):
                path = os.path.join(table.folder, table.written[name])
                if path not in met:
                    reason = f"listed in {os.path.basename(table.path)}, but there is no such file"
                    yield rejected(path, reason, source=self.name)
                met.add(path)

    def _picture(self, path: str, cells: Mapping[str, str]) -> dict[str, Any]:
        label = word(self.label) if self.label else LABEL
        choices = [tuple(map(word, self.case))] if self.case else CASE
        case = next((ids for ids in choices if all(cells.get(name) for name in ids)), None)
        known: dict[str, Any] = {"group_kind": "image"}
        if case:
            known = {"patient": " / ".join(cells[name] for name in case), "group_kind": "case"}
        if organ := self.organ or _organ(cells.get(word(self.organ_column or "body part"), "")):
            known["organ"] = organ
        if cells.get(label):
            known["label"] = cells[label]
        return self.row(path, **known) | kept(cells)

    def _tables(self, files: list[str]) -> list[_Table]:
        """The tables, those further down first: they know their pictures best."""
        if self.table is not None:
            paths = [os.path.abspath(self.table)]
        else:
            paths = [path for path in files if extension(path) == ".csv" and _image(path, self.image)]
        tables = [_Table(path, self._checked(path)) for path in paths]
        if not tables:
            raise unlike(self.root, self.name, self.expected)
        if repeated := sum(table.repeated for table in tables):
            once(f"{self.root}: {repeated} rows of tables name a picture again; what the first row says counts")
        if unclear := {name for table in tables for name in table.unclear}:
            once(f"{self.root}: {len(unclear)} file names stand for several addresses, so their cases are not known")
        if unnamed := sum(table.unnamed for table in tables):
            once(f"{self.root}: {unnamed} rows of tables name no picture")
        return sorted(tables, key=lambda table: -table.folder.count(os.sep))

    def _checked(self, path: str) -> str:
        """The column that names pictures. ValueError: the table lacks one that an option names."""
        columns = {*records(path)[0]}
        for name in filter(None, [self.image, *(self.case or ()), self.label, self.organ_column]):
            if word(name) not in columns:
                raise ValueError(f"{path}: no column `{name}`; its columns are: {', '.join(sorted(columns))}")
        image = _image(path, self.image)
        if image is None:
            raise ValueError(
                f"{path}: no column `img name`; which is it? --image COLUMN ({', '.join(sorted(columns))})"
            )
        return image


def _image(table: str, given: str | None) -> str | None:
    columns = header(table)
    return next((name for name in ([word(given)] if given else IMAGE) if name in columns), None)


def _pieces(name: str) -> list[str]:
    """The folders and the file of a path or address."""
    return [piece for piece in re.split(r"[/\\]", name.split("://")[-1].split("?")[0]) if piece not in ("", ".")]


def _ending(name: str) -> str:
    """A path or address with slashes, in small letters, without the end such as .png."""
    pieces = _pieces(name)
    return "/".join([*(piece.casefold() for piece in pieces[:-1]), stem(pieces[-1])]) if pieces else ""


def _reach(table: _Table, pictures: list[str]) -> str:
    """How the paths begin that a table is about: its folder, or anything where no picture lies there."""
    below = f"{table.folder}{os.sep}"
    return below if any(path.startswith(below) for path in pictures) else ""


def _organ(part: str) -> str | None:
    name = part.casefold()
    return ORGANS.get(word(name), name) or None


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer ultrasoundcases.info."""
    return {"ultrasoundcases": UltrasoundCases}
