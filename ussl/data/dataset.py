"""What the readers of data sets share: a root folder, rows that say where they come from, files counted, not lost."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data import folders, pictures
from ussl.notice import once
from ussl.parts import Source


class DataSet(Source):
    """A data set in the layout it is published in. A subclass has `name`, `listing`, and what else is its own.

    aside: files met that are no pictures to learn from, by what they are ("masks", "tables", ".txt files"), after
    `listing` has come to its end, so that every file of the folder is accounted for.
    """

    name: str  # the manifest's `source`, and the plugin's name
    expected: str = ""  # the layout, in a few words, for whoever names another folder

    def __init__(self, *, path: Path | None = None) -> None:
        self.path = path
        self.aside: Counter[str] = Counter()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all items that can be used; says how many cannot."""
        lost: list[str] = []
        for item in self.listing():
            for row in self._expanded(item):
                if "rejected" in row:
                    lost.append(f"{row['path']}: {row['rejected']}")
                else:
                    yield row
        if lost:
            once(f"{len(lost)} files of {self.root} left out, the first: {lost[0]}; `ussl data index` lists them all")

    def _expanded(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        if "rejected" in item:
            return [dict(item)]
        try:
            return self.expand(item)
        except ValueError as error:
            return [rejected(item["path"], str(error).removeprefix(f"{item['path']}: "))]

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        """The picture file of a row. ValueError names what is wrong with it."""
        return pictures.read(row["path"], row.get("frame") or 0)

    @property
    def root(self) -> Path:
        """The folder it is in. ValueError: none was named, or it is not there."""
        if self.path is None:
            raise ValueError(f"where is {self.name}? Write its folder: --data FOLDER")
        path = Path(os.path.abspath(self.path))
        if not path.is_dir():
            raise ValueError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        return path

    def folder(self, *markers: str, depth: int = 2) -> Path:
        """The folder at or below the root that holds all `markers`. ValueError says what was expected there."""
        found = folders.locate(self.root, *markers, depth=depth)
        if found is None:
            raise folders.unlike(self.root, self.name, self.expected)
        return found

    def row(self, path: str | os.PathLike[str], **known: Any) -> dict[str, Any]:
        """A row with this source's name; `group_kind` says what `patient` really is (patient, case, video, image)."""
        return {"path": str(path), "source": self.name, **known}


def rejected(path: str | os.PathLike[str], reason: str, **known: Any) -> dict[str, Any]:
    """A row for a file that cannot be used."""
    return {"path": str(path), **known, "rejected": reason}
