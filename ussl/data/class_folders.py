"""Data sets that are known only as a tree of class folders, with a table beside it or without."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ussl.data import folders
from ussl.data.dataset import DataSet, rejected
from ussl.data.tree import Tree, look_through, split_of
from ussl.notice import once

_MASK = re.compile(r"(?<![a-z])mask(?![a-z])", re.IGNORECASE)
_MANY = 10  # classes; folders named for patients would be more
_WRAPPERS = frozenset({"image", "images", "img", "imgs", "picture", "pictures", "data", "dataset"})  # no classes
_FILE = ("file", "filename", "file_name", "path", "image", "image_name", "image_id", "img", "img_name", "name", "id")
_HEADS = {
    "label": ("label", "class", "diagnosis", "pathology", "category", "target"),
    "patient": ("patient", "patient_id", "patientid", "patient_num", "case", "case_id", "caseid"),
    "split": ("split", "set", "subset"),
}


class ClassFolders(DataSet):
    """Pictures in folders named for their classes; a level of train, val and test may lie above or below these."""

    organ: str
    classes = 2  # how many there are

    def __init__(self, *, path: Path | None = None, table: Path | None = None) -> None:
        """A tree of class folders.

        Args:
            path: the folder that holds it.
            table: a CSV file with a row a picture: its file (file, filename, image, path, ...), and any of class
                (label, class, diagnosis, ...), patient (patient, patient_id, case, ...) and split, which then hold
                instead of what folders say; other columns are kept.
        """
        super().__init__(path=path)
        self.table = table

    def listing(self) -> Iterator[dict[str, Any]]:
        """Rows of all pictures, then of the table's rows that have none. ValueError: no class folders, a bad table."""
        tree = look_through(self.root)
        self.aside.clear()
        self.aside.update(tree.aside)
        named = [place for place in tree.pictures if _MASK.search(place.rpartition("/")[2].rpartition(".")[0])]
        for place in named:
            tree.pictures.remove(place)
            self.aside["masks without a picture"] += 1
        labels = _classes(tree.pictures)
        if not tree.pictures or (self.table is None and not any(labels.values())):
            raise folders.unlike(self.root, self.name, self.expected)
        if self.table is None:
            self._check({str(label) for label in labels.values() if label is not None})
        told, lost = ({}, []) if self.table is None else _read(self.table, tree.pictures, self.root)
        rows = [self._row(place, labels[place], tree, told.get(place, {})) for place in tree.pictures]
        if self.table is None and len(only := {str(row.get("label")) for row in rows}) == 1:
            once(f"{self.root}: one class folder, so all pictures are labelled {only.pop()}; there should be two")
        self._notes(rows, told)
        yield from rows
        yield from lost

    def _check(self, labels: Collection[str]) -> None:
        some = ", ".join(sorted(labels)[:3])
        if len(labels) > _MANY:
            hint = "say what they are: ussl data index images ROOT --pattern 'FOLDERS/{label}/{patient}/{view}'"
            raise ValueError(f"{self.root}: {len(labels)} class folders ({some}, ...), too many to be classes; {hint}")
        if len(labels) > self.classes:
            why = f"{len(labels)} class folders ({some}{', ...' if len(labels) > 3 else ''})"
            raise ValueError(f"{self.root}: {why}, and {self.name} has {self.classes}: expected {self.expected}")

    def _row(self, place: str, label: str | None, tree: Tree, told: Mapping[str, str]) -> dict[str, Any]:
        splits = [split for piece in place.split("/")[:-1] if (split := split_of(piece))]
        known = {"label": label, "split": splits[0] if splits else None, "group_kind": "image", **told}
        masks = {column: str(self.root / mask) for column, mask in tree.masks.get(place, {}).items()}
        known = {name: value for name, value in known.items() if value is not None}
        return self.row(self.root / place, organ=self.organ, **known, **masks)

    def _notes(self, rows: Sequence[Mapping[str, Any]], told: Mapping[str, Mapping[str, str]]) -> None:
        """Says what is not known of the pictures, since it limits what they can be used for."""
        if unknown := sum("patient" not in row for row in rows):
            which = f"{unknown} of {len(rows)} pictures have no patient id"
            once(f"{self.root}: {which}, so that a split may put pictures of one patient on both sides")
        if self.table is not None and len(told) < len(rows):
            once(f"{self.root}: {len(rows) - len(told)} of {len(rows)} pictures have no row in {self.table}")


def _classes(pictures: Sequence[str]) -> dict[str, str | None]:
    """The class of every picture, in small letters: its first folder below those that all have in common."""
    folders_of = {place: _telling(place) for place in pictures}
    every = {tuple(pieces) for pieces in folders_of.values() if pieces}
    shared = 0
    while len({pieces[shared] for pieces in every}) == 1:
        deeper = [pieces[shared + 1] for pieces in every if len(pieces) > shared + 1]
        if len(deeper) < len(every) and len(set(deeper)) < 2:
            break  # the one class that there is, not a folder around classes
        every = {pieces for pieces in every if len(pieces) > shared + 1}
        shared += 1
    return {place: pieces[shared] if len(pieces) > shared else None for place, pieces in folders_of.items()}


def _telling(place: str) -> list[str]:
    """The folders of a picture that may be classes."""
    pieces = [" ".join(piece.casefold().split()) for piece in place.split("/")[:-1]]
    return [piece for piece in pieces if piece not in _WRAPPERS and split_of(piece) is None]


def _read(table: Path, pictures: Sequence[str], root: Path) -> tuple[dict[str, dict[str, str]], list[dict[str, Any]]]:
    """What a table says of each picture, and its rows without a picture, as rejected ones."""
    if table.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise ValueError(f"{table}: a table is a .csv file; save it as one")
    lines = folders.records(table)
    file = next((name for name in _FILE if name in lines[0]), None)
    if file is None:
        raise ValueError(
            f"{table}: no column names the pictures ({', '.join(_FILE)}); there are {', '.join(lines[0])}"
        )
    named = _by_name(pictures)
    told: dict[str, dict[str, str]] = {}
    lost = []
    for line in lines:
        places = _named(line[file], named)
        if len(places) != 1:
            why = f"{len(places)} files have this name" if places else "there is no such file"
            lost.append(rejected(root / (line[file] or "(no name)"), f"listed in {table.name}, but {why}"))
        elif told.setdefault(places[0], known := _known(line, file)) != known:
            raise ValueError(f"{table}: two rows say different things of {line[file]}")
    return told, lost


def _known(line: Mapping[str, str], file: str) -> dict[str, str]:
    """A table's line under the names of a manifest."""
    columns: dict[str, str] = {}
    used = {file}
    for column, names in _HEADS.items():
        name = next((name for name in names if line.get(name)), None)
        if name is not None:
            columns[column] = line[name]
            used.add(name)
            if column == "patient":
                columns["group_kind"] = "case" if name.startswith("case") else "patient"
    if "label" in columns:
        columns["label"] = columns["label"].lower()
    if "split" in columns:
        columns["split"] = split_of(columns["split"]) or columns["split"]
    return columns | folders.kept(line, *used)


def _by_name(pictures: Sequence[str]) -> dict[str, list[str]]:
    """Pictures by every way a table may name them: path or file name, with or without extension."""
    named: dict[str, list[str]] = defaultdict(list)
    for place in pictures:
        whole = place.casefold()
        name = whole.rpartition("/")[2]
        for key in {whole, whole.rpartition(".")[0], name, name.rpartition(".")[0]}:
            named[key].append(place)
    return named


def _named(cell: str, named: Mapping[str, list[str]]) -> list[str]:
    """The pictures that a cell names, by its path as far as the tree has it."""
    pieces = cell.replace("\\", "/").casefold().strip("/").split("/")
    tails = ("/".join(pieces[i:]) for i in range(len(pieces)))
    return next((named[tail] for tail in tails if tail in named), [])
