"""A manifest as columns: for what counts over a million rows at once. `manifest.read` is the same as rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from ussl.data import manifest


class Columns:
    """Some columns of a manifest. `count`: its rows; a column that it has not is all missing."""

    def __init__(self, count: int, columns: Mapping[str, pyarrow.ChunkedArray]) -> None:
        self.count, self._columns = count, columns

    def __contains__(self, name: str) -> bool:
        return self.filled(name) > 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def filled(self, name: str) -> int:
        """How many rows have a value."""
        return self.count - self._columns[name].null_count if name in self._columns else 0

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """(n,) int64 places in the list of values, -1 where there is none."""
        if name not in self._columns:
            return np.full(self.count, -1), []
        coded = self._columns[name].dictionary_encode().combine_chunks()
        coded = coded.chunk(0) if isinstance(coded, pyarrow.ChunkedArray) else coded
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, coded.dictionary.to_pylist()

    def numbers(self, name: str) -> np.ndarray:
        """(n,) float64, NaN where there is none."""
        if name not in self._columns:
            return np.full(self.count, np.nan)
        return self._columns[name].cast(pyarrow.float64()).fill_null(np.nan).to_numpy()


def located(path: str | os.PathLike[str]) -> Path:
    """The manifest that `path` is, or that lies at the top of the folder `path`. ValueError: none, or several."""
    path = Path(os.path.abspath(path))
    if not path.is_dir():
        return path
    found = [entry for entry in sorted(path.iterdir()) if entry.suffix.lower() in manifest.SUFFIXES]
    found = [entry for entry in found if entry.name[0] != "." and entry.name != "rejected.csv"]
    found = [entry for entry in found if entry.stem.lower() == "manifest"] or found
    if not found:
        raise ValueError(f"{path}: no manifest (.parquet or .csv) in this folder: `ussl data index` writes one")
    if len(found) > 1:
        raise ValueError(f"{path}: holds {', '.join(entry.name for entry in found)}; write which: {found[0]}")
    return found[0]


def read(path: str | os.PathLike[str], names: Collection[str]) -> Columns:
    """The columns `names` of a manifest, those of `manifest.WHOLE` as numbers, all others as text.

    A name that ends with _ stands for all that begin so. ValueError: as `manifest.read`.
    """
    path = located(path)
    read = {".parquet": _parquet, ".csv": _csv}.get(path.suffix.lower(), _by_row)
    try:
        return read(path, names) or _by_row(path, names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, csv.Error):
        return _by_row(path, names)


def _asked(name: str, names: Collection[str]) -> bool:
    return name == "path" or name in names or any(name.startswith(begin) for begin in names if begin.endswith("_"))


def _parquet(path: Path, names: Collection[str]) -> Columns | None:
    """None: something is out of the ordinary."""
    file = pyarrow.parquet.ParquetFile(path)
    asked = [name for name in file.schema_arrow.names if _asked(name.strip(), names)]
    if not _distinct(file.schema_arrow.names):
        return None
    return _sound(file.read(columns=asked).rename_columns([name.strip() for name in asked]))


def _csv(path: Path, names: Collection[str]) -> Columns | None:
    """None: something is out of the ordinary."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    if not _distinct(header):
        return None
    types = dict.fromkeys(header, pyarrow.string())
    options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=options)
    table = table.rename_columns([name.strip() for name in table.column_names])
    return _sound(table.select([name for name in table.column_names if _asked(name, names)]))


def _distinct(header: list[str]) -> bool:
    return len({name.strip() for name in header}) == len(header)


def _sound(table: pyarrow.Table) -> Columns | None:
    """The table with empty text as missing; None where `manifest.read` has to look at every row."""
    if "path" not in table.column_names or not table.num_rows:
        return None
    columns = {}
    for name in table.column_names:
        column = table[name]
        if pyarrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            column = pyarrow.compute.utf8_trim_whitespace(column)
            column = pyarrow.compute.if_else(pyarrow.compute.equal(column, ""), None, column)
        elif not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_null(column.type)):
            return None
        columns[name] = column.cast(pyarrow.int64() if name in manifest.WHOLE else pyarrow.string())
    return None if columns["path"].null_count else Columns(table.num_rows, columns)


def _by_row(path: Path, names: Collection[str]) -> Columns:
    """The columns by way of rows, which is slower, takes more, and says what is wrong."""
    rows = manifest.read(path)
    columns = {}
    for name in rows[0]:
        if _asked(name, names):
            whole = name in manifest.WHOLE
            cells = [row[name] if whole or row[name] is None else str(row[name]) for row in rows]
            columns[name] = pyarrow.chunked_array(
                [pyarrow.array(cells, pyarrow.int64() if whole else pyarrow.string())]
            )
    return Columns(len(rows), columns)
