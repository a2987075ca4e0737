"""Pictures from a folder, from a manifest, or from a pack."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data import manifest, pictures
from ussl.data.dataset import rejected
from ussl.data.folders import PICTURES, extension, natural
from ussl.data.pattern import Pattern
from ussl.data.tree import Tree, below, kind, look_through, split_of
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

_PACK = "pack.json"  # in the folder of a pack


class Images(Source):
    """PNG, JPEG, TIFF and BMP pictures: all of a folder, those that a manifest (.csv, .parquet) lists, or a pack.

    A folder with a manifest.csv or manifest.parquet at its top is read through it; one with a pack.json is a pack.
    Of any other folder all pictures are taken, in natural order (2 before 10), hidden files and `__MACOSX` left out;
    files below folders named masks, labels or annotations are the masks of the pictures of their name (mask_<folder>).
    Organs, labels and patients are not guessed: a pattern says what paths mean.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        pattern: str | None = None,
        organ: str | None = None,
        label: str | None = None,
        source: str | None = None,
        where: dict[str, list[str]] | None = None,
    ) -> None:
        """Pictures of a folder, a manifest or a pack.

        Args:
            path: a folder of pictures, a manifest, a folder with one at its top, or a pack.
            pattern: what paths below the folder mean, such as {organ}/{label}/{patient}_{view}.png: every {field}
                becomes a column and takes as few characters as it can, from the left; `*` is anything within a level,
                `**/` any levels; the extension can be left out. A manifest at the top of the folder is then not used.
            organ: of all pictures; of a manifest, those that have none.
            label: of all pictures; of a manifest, those that have none.
            source: name of the data set, its folder's when not given; of a manifest, for rows that have none.
            where: keep rows whose column holds one of these values, such as {split: [train]}.
        """
        self.path, self.pattern, self.where = path, pattern, where
        self.organ, self.label, self.source = organ, label, source
        self.aside: Counter[str] = Counter()

    def rows(self) -> Iterator[dict[str, Any]]:
        items = self._items()
        lost = [item for item in items if "rejected" in item]
        if lost:
            once(f"{len(lost)} files of {self.path} left out, the first: {lost[0]['path']}: {lost[0]['rejected']}")
        return (item for item in items if "rejected" not in item)

    def listing(self) -> Iterator[dict[str, Any]]:
        """`rows`, and for a folder the pictures that the pattern does not match; counts other files in `aside`."""
        return iter(self._items(count=True))

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        if (row.get("reader") or "images") != "images":
            raise ValueError(f"{row['path']}: its row says that the source {row['reader']} reads it, not images")
        return pictures.read(row["path"], row.get("frame") or 0)

    def _items(self, count: bool = False) -> list[dict[str, Any]]:
        """All rows, rejected ones too; `count`: also look for files that a manifest does not list."""
        self.aside.clear()
        if self.path is None:
            raise ValueError("no data: write --data FOLDER, or --data MANIFEST (.csv or .parquet)")
        path = Path(os.path.abspath(self.path))
        by_pattern = self.pattern is not None and path.is_dir() and not (path / _PACK).is_file()
        table = None if by_pattern else _table_of(path)
        if table is None:
            return self._kept(self._of_folder(path), path)
        rows = self._of_table(table)
        if count and table.parent == path:
            self.aside.update(_not_listed(path, rows))
        return self._kept(rows, path)

    def _of_folder(self, folder: Path) -> list[dict[str, Any]]:
        tree = look_through(folder)
        self.aside.update(tree.aside)
        if not tree.pictures:
            raise ValueError(_nothing(folder, tree))
        pattern = None if self.pattern is None else _checked(self.pattern, tree.pictures, folder)
        known = {"source": folder.name} | self._constants(pattern.fields if pattern else ())
        rows = []
        for place in tree.pictures:
            fields = pattern.match(place) if pattern else {}
            if fields is None:
                reason = f"does not match the pattern {self.pattern}"
                rows.append(rejected(folder / place, reason, source=known["source"]))
            else:
                masks = {column: str(folder / mask) for column, mask in tree.masks.get(place, {}).items()}
                rows.append({"path": str(folder / place), **known, **_meaning(fields), **masks})
        return rows

    def _of_table(self, table: Path) -> list[dict[str, Any]]:
        if self.pattern is not None:
            raise ValueError(f"{table}: the option pattern is for a folder of pictures, and this lists its pictures")
        if table.is_dir():
            from ussl.data import pack

            rows = pack.rows(table)
        else:
            rows = manifest.read(table)
        for column, value in self._constants(()).items():
            gaps = [row for row in rows if row.get(column) is None]
            if not gaps:
                raise ValueError(f"{table}: every row says its {column} already: leave that option out")
            for row in gaps:
                row[column] = value
        return rows

    def _constants(self, fields: Collection[str]) -> dict[str, str]:
        """The columns that options give all rows. ValueError: one is empty, or a field of the pattern as well."""
        given = {"organ": self.organ, "label": self.label, "source": self.source}
        constants = {name: value for name, value in given.items() if value is not None}
        for name, value in constants.items():
            if not value.strip():
                raise ValueError(f"{name} is empty: write one, or leave it out")
            if name in fields:
                raise ValueError(f"{name} is a field of the pattern and an option as well: leave one out")
        return constants

    def _kept(self, rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
        """The rows that `where` asks for, and the rejected ones."""
        usable = [row for row in rows if "rejected" not in row]
        for column, values in (self.where or {}).items():
            _check_where(column, values, usable, path)
            kept = [row for row in rows if "rejected" in row or str(row.get(column)) in values]
            self.aside["left out by where"] += len(rows) - len(kept)
            rows = kept
        if not any("rejected" not in row for row in rows):
            raise ValueError(f"{path}: no picture has all that where asks for: {self.where}")
        return rows


def _table_of(path: Path) -> Path | None:
    """What lists the pictures: a manifest, a pack's folder, the manifest at the top of a folder; None = nothing."""
    if (path / _PACK).is_file():
        return path
    if path.is_dir():
        found = [path / f"manifest{end}" for end in manifest.SUFFIXES if (path / f"manifest{end}").is_file()]
        if len(found) > 1:
            raise ValueError(f"{path}: holds {found[0].name} and {found[1].name}; write which: --data {found[0]}")
        return found[0] if found else None
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix.lower() not in manifest.SUFFIXES:
        raise ValueError(f"{path}: data is a folder of pictures or a manifest (.csv or .parquet), not this file")
    return path


def _checked(text: str, pictures: Sequence[str], folder: Path) -> Pattern:
    """The pattern. ValueError: it is none, or matches no picture; it shows the path of one."""
    example = f"a picture's path below the folder is {pictures[len(pictures) // 2]}"
    try:
        pattern = Pattern(text)
    except ValueError as error:
        raise ValueError(f"{error}; {example}") from None
    matched = [path for path in pictures if pattern.match(path) is not None]
    if not matched:
        raise ValueError(f"pattern {text!r} matches none of the {len(pictures)} pictures in {folder}; {example}")
    if unsure := [path for path in matched if pattern.ambiguous(path)]:
        read = ", ".join(f"{name} {value}" for name, value in (pattern.match(unsure[0]) or {}).items())
        once(f"{len(unsure)} paths match the pattern {text} in several ways, such as {unsure[0]}, read as {read}")
    return pattern


def _meaning(fields: Mapping[str, str]) -> dict[str, str]:
    """The columns that a pattern's fields are: splits by their common names, and what `patient` is."""
    columns = dict(fields)
    if "split" in fields:
        columns["split"] = split_of(fields["split"]) or fields["split"]
    return columns | {"group_kind": "patient"} if "patient" in fields else columns


def _not_listed(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """The files in a folder that its manifest has no row for, by kind."""
    listed = {row["path"] for row in rows}
    masks = {value for row in rows for name, value in row.items() if value and name.startswith(manifest.FILES)}
    counts = Counter[str]()
    for place in below(folder):
        path = str(folder / place)
        if path in masks:
            counts["masks"] += 1
        elif path not in listed:
            picture = extension(place) in PICTURES
            counts["pictures that the manifest does not list" if picture else kind(place)] += 1
    return counts


def _check_where(column: str, values: object, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    if not (isinstance(values, list) and values and all(isinstance(value, str) for value in values)):
        raise ValueError(f"where: write {column} with a list of values, such as {{{column}: [a, b]}}, not {values!r}")
    columns = sorted({name for row in rows for name, value in row.items() if value is not None})
    if column not in columns:
        raise ValueError(f"where: {path} has no column {column!r}; it has: {', '.join(columns)}")
    found = sorted({str(row[column]) for row in rows if row.get(column) is not None}, key=natural)
    for value in values:
        if value not in found:
            some = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
            raise ValueError(f"where: no row of {path} has the {column} {value!r}; they have: {some}")


def _nothing(folder: Path, tree: Tree) -> str:
    """Why a folder without pictures cannot be data."""
    if tree.mask_folders:
        named = " and ".join(tree.mask_folders)
        return (
            f"{folder}: no pictures but those below folders named {named}, which are taken for masks; "
            f"if they are the pictures, give that folder another name or write it: --data .../{tree.mask_folders[0]}"
        )
    words = {"nameless": "no extension"}
    counts = [(name.removesuffix(" files"), count) for name, count in tree.aside.most_common(5)]
    found = ", ".join(f"{count} {words.get(name, name)}" for name, count in counts) or "nothing"
    return f"{folder}: no pictures ({' '.join(sorted(PICTURES))}) and no manifest; found {found}"


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer folders and manifests of pictures."""
    return {"images": Images}
