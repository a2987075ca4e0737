"""A manifest and its rejected.csv as `ussl data index --add` finds them, and with what was indexed now."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ussl.data import manifest
from ussl.data.measure import Row, frame, joined

REJECTED = ("path", "frame", "source", "reason", "manifest")


@dataclass
class Before:
    """What a manifest and its rejected.csv held."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)  # of this manifest

    @classmethod
    def read(cls, out: Path) -> Before:
        """Of the manifest `out`, paths absolute."""
        rejected = read_rejected(out.with_name("rejected.csv"))
        return cls(manifest.read(out), [row for row in rejected if row["manifest"] == out.name])

    def files(self) -> dict[str, dict[int, Row]]:
        """The rows by path and frame."""
        found: dict[str, dict[int, Row]] = {}
        for row in self.rows:
            found.setdefault(row["path"], {})[frame(row)] = row
        return found

    def around(self, replaced: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
        """The rows that are kept, those before the first replaced one and those after it, where the new ones go."""
        gone = [replaced(row) for row in self.rows]
        place = gone.index(True) if True in gone else len(gone)
        kept = [row for row, is_gone in zip(self.rows, gone, strict=True) if not is_gone]
        return kept[:place], kept[place:]


def flagged(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, `duplicate` among the flags of those with the digest of an earlier one and of no others."""
    seen: set[str] = set()
    for row in rows:
        words = [word for word in (row.get("flag") or "").split(";") if word != "duplicate"]
        digest = row.get("digest")
        if digest is not None:
            words += ["duplicate"] * (digest in seen)
            seen.add(digest)
        yield row | {"flag": joined(*words)}


def read_rejected(path: Path) -> list[Row]:
    """The rows of a rejected.csv, paths absolute; none where there is no such file."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows = [dict(row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); move it away") from None
    if tuple(table.fieldnames or ()) != REJECTED or not all(set(row) == set(REJECTED) and row["path"] for row in rows):
        raise ValueError(f"{path}: not a table of {', '.join(REJECTED)}, which this command writes; move it away")
    for row in rows:
        row["path"] = os.path.normpath(os.path.join(path.parent, row["path"]))
        row["frame"] = int(row["frame"]) if row["frame"].isdigit() else None
    return rows


def write_rejected(rows: Sequence[Row], out: Path) -> None:
    """Rows of the manifest `out` into the rejected.csv beside it, whole or not at all; those of others stay.

    Paths under its folder become relative, as in a manifest.
    """
    path = out.with_name("rejected.csv")
    others = [row for row in read_rejected(path) if row["manifest"] != out.name]
    rows = [*others, *(row | {"manifest": out.name} for row in rows)]
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, REJECTED)
            table.writeheader()
            table.writerows(row | {"path": relative(row["path"], path.parent)} for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_under(path: str, folder: str) -> bool:
    """Whether a path is the folder or in it, by their names."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def relative(path: str, folder: Path) -> str:
    """The path from `folder` where it lies under it."""
    return os.path.relpath(path, folder) if is_under(path, str(folder)) else path
