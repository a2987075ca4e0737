"""What became of the files that `ussl data index` met: written down, counted, and told so that it adds up."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ussl.data import manifest
from ussl.data.measure import Measured, Row, frame
from ussl.data.merging import Before, flagged, is_under, relative, write_rejected


@dataclass
class Account:
    """The results of a listing. Files listed = indexed + rejected; those set aside are no pictures to learn from.

    results: `Measured` of every file as bytes, of which rows are made one by one; given up as they are written.
    twice: how often a file was listed again.
    aside: other files, by what they are.
    """

    results: list[bytes]
    twice: int
    aside: Counter[str]
    files: int = 0
    indexed: int = 0
    read_before: int = 0  # files of which no picture was decoded
    frames: int = 0  # rejected, of files that are indexed
    kept: int = 0  # rows from before
    pictures: set[tuple[str, int]] = field(default_factory=set)  # path and frame
    rejected: list[Row] = field(default_factory=list)
    table: list[Row] = field(default_factory=list)  # with those from before
    sources: set[str] = field(default_factory=set)
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: {"organ": Counter(), "source": Counter()})
    flags: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.files = len(self.results)
        for text in self.results:
            self._count(Measured.from_bytes(text))

    def write(self, out: Path, before: Before, roots: Sequence[str]) -> None:
        """Write rejected.csv beside `out`, then `out`: the new rows where those were that they replace.

        Raises:
            ValueError: there are no rows at all; `out` stays as it is.
        """
        paths = {row["path"] for row in self.rejected}

        def gives_way(row: Row) -> bool:
            again = any(is_under(row["path"], root) for root in roots) or row["path"] in paths
            return (row["path"], frame(row)) in self.pictures or (again and row.get("source") in self.sources)

        first, last = before.around(gives_way)
        self.kept = len(first) + len(last)
        self.table = [row for row in before.rejected if not gives_way(row)] + self.rejected
        write_rejected(self.table, out)
        if not (self.pictures or self.kept):
            why = "{path}: {reason}".format(**self.rejected[0])
            raise ValueError(f"none of the {self.files} files can be used (rejected.csv says why), first {why}")
        manifest.write(self._flags_counted(flagged(chain(first, self._rows(), last))), out)

    def lines(self, out: str) -> list[str]:
        """What to tell of it, `out` being the manifest's name."""
        lost = self.files - self.indexed
        kind = "organ" if self.kinds["organ"].keys() - {"not said"} else "source"
        found = [
            f"files     {self.files} listed = {self.indexed} indexed + {lost} rejected",
            f"pictures  {len(self.pictures)} in them{_by(kind, self.kinds[kind])}",
            self.frames and f"frames    {self.frames} rejected, of files that are indexed",
            self.read_before and f"unchanged {self.read_before} files, which were read before",
            self.twice and f"twice     {self.twice} listed again, under two roots or names: each taken once",
            f"set aside {self.aside.total()} other files{_by('', self.aside)}",
            self.kept and f"kept      {self.kept} pictures of other sources or roots",
            f"flags     {counted(self.flags) or 'none'}",
            f"rejected  {Path(out).with_name('rejected.csv')}, {len(self.table)} rows{self._first(out)}",
            f"manifest  {out}, {self.kept + len(self.pictures)} pictures",
        ]
        return [line for line in found if line]

    def _count(self, measured: Measured) -> None:
        self.indexed += bool(measured.rows)
        self.read_before += bool(measured.rows) and not measured.read
        self.frames += len(measured.rejected) if measured.rows else 0
        self.rejected += measured.rejected
        for row in measured.rows:
            key = row["path"], frame(row)
            self.twice += key in self.pictures
            if key not in self.pictures:
                self.pictures.add(key)
                for name, counter in self.kinds.items():
                    counter[str(row.get(name, "not said"))] += 1
        self.sources |= {str(row["source"]) for row in measured.rows + measured.rejected if row.get("source")}

    def _rows(self) -> Iterator[Row]:
        """The new rows, each (path, frame) once, in the order of the listing."""
        given: set[tuple[str, int]] = set()
        self.results.reverse()
        while self.results:
            for row in Measured.from_bytes(self.results.pop()).rows:
                key = row["path"], frame(row)
                if key not in given:
                    given.add(key)
                    yield row

    def _flags_counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.flags.update((row["flag"] or "").split(";") if row["flag"] else ())
            yield row

    def _first(self, out: str) -> str:
        if not self.rejected:
            return ""
        row = self.rejected[0]
        return f"; the first: {relative(row['path'], Path(os.path.abspath(out)).parent)}: {row['reason']}"


def counted(counts: Mapping[str, int]) -> str:
    """`masks 12, tables 3`, the most first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _by(kind: str, counts: Mapping[str, int]) -> str:
    said = counted({name: count for name, count in counts.items() if count})
    return said and (f", by {kind}: {said}" if kind else f": {said}")
