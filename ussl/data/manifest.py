"""The table that says which pictures there are: one row an image, in CSV or Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".parquet")
TEXT = frozenset({"path", "source", "reader", "organ", "label", "patient", "video", "split"})
WHOLE = frozenset({"frame", "width", "height"})


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a manifest, missing values as None, `path` and `mask_*` absolute (relative ones are to its folder).

    The columns of `TEXT` are strings in both formats ("001" stays "001"), those of `WHOLE` integers. Others keep
    their Parquet type; from CSV they are strings.

    Raises:
        ValueError: one line: no such file, unreadable, no column `path`, no rows, a row without a path.
    """
    path = Path(os.path.abspath(path))
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a manifest is a .csv or .parquet file")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    columns, rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    _check_columns(path, columns)
    if not rows:
        raise ValueError(f"{path}: the manifest has no rows")
    return [_typed(dict(zip(columns, row, strict=True)), path, number) for number, row in enumerate(rows, 1)]


def _read_csv(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """Stripped header and cells; lines without any cell are skipped, as spreadsheets leave them at the end."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(i, [cell.strip() for cell in line]) for i, line in enumerate(csv.reader(file), 1)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a comma-separated table in UTF-8 ({error})") from None
    lines = [(i, line) for i, line in lines if any(line)]
    if not lines:
        raise ValueError(f"{path}: the manifest is empty")
    columns = lines[0][1]
    for i, line in lines[1:]:
        if len(line) != len(columns):
            raise ValueError(f"{path}: row {i} has {len(line)} cells under {len(columns)} columns")
    return columns, [line for _, line in lines[1:]]


def _read_parquet(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None
    columns = [name.strip() for name in table.column_names]
    return columns, list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _check_columns(path: Path, columns: list[str]) -> None:
    found = ", ".join(columns)
    if "path" not in columns:
        raise ValueError(f"{path}: no column `path`, which a manifest needs; its columns are: {found}")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: two columns have one name: {found}")


def _typed(row: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """`row` with None for what is missing, text and whole numbers as such, and absolute paths."""
    for name, value in row.items():
        if value is None or value == "" or value != value:  # NaN differs from itself
            row[name] = None
        elif name == "path" or name.startswith("mask_"):
            row[name] = os.path.normpath(os.path.join(path.parent, str(value)))
        elif name in TEXT:
            row[name] = str(value)
        elif name in WHOLE:
            row[name] = _whole(value, name, path, number)
    if row["path"] is None:
        raise ValueError(f"{path}: row {number} has no path")
    return row


def _whole(value: Any, name: str, path: Path, number: int) -> int:
    try:
        if int(value) == float(value):
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"{path}: row {number}: `{name}` is {value!r}, and must be a whole number")
