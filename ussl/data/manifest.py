"""The table that says which pictures there are: one row an image, in CSV or Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".parquet")
FIRST = ("path", "frame", "source", "reader", "organ", "label", "patient", "group_kind", "video", "split")  # columns
LAST = (
    "width",
    "height",
    "channels",
    "flag",
    "digest",
    "hash",
    "bytes",
    "modified",
)  # what `ussl data index` measures
TEXT = frozenset(FIRST) - {"frame"} | {"flag", "digest", "hash"}
WHOLE = frozenset({"frame", "width", "height", "channels", "bytes", "modified"})
FILES = ("mask_", "outline_")  # columns of files: a region of the picture, and a closed line around one


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a manifest, missing values as None, `path` and `FILES` absolute (relative ones are to its folder).

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


def write(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Rows as a manifest, whole or not at all; paths under its folder become relative, so that both can move.

    Columns: `FIRST`, those of masks and others in order of appearance, `LAST`; without those that no row fills.

    Raises:
        ValueError: no rows, or a name that is neither .csv nor .parquet.
    """
    path = Path(os.path.abspath(path))
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: write a manifest's name with .csv or .parquet at its end")
    table = [{name: value for name, value in row.items() if not _missing(value)} for row in rows]
    if not table:
        raise ValueError(f"{path}: there are no rows to write")
    columns = _ordered(dict.fromkeys(name for row in table for name in row))
    cells = {name: [_cell(name, row.get(name), path.parent) for row in table] for name in columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # in the same folder, so that the replacement is one step
    try:
        (_write_csv if path.suffix.lower() == ".csv" else _write_parquet)(cells, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _ordered(columns: Iterable[str]) -> list[str]:
    place = {name: i for i, name in enumerate(FIRST)} | {name: 2000 + i for i, name in enumerate(LAST)}
    return sorted(columns, key=lambda name: place.get(name, 999 if name.startswith(FILES) else 1000))


def _cell(name: str, value: Any, folder: Path) -> Any:
    if value is not None and (name == "path" or name.startswith(FILES)):
        inside = str(value).startswith(f"{folder}{os.sep}")
        return os.path.relpath(value, folder) if inside else str(value)
    return str(value) if value is not None and name in TEXT else value


def _write_csv(cells: Mapping[str, Sequence[Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(cells)
        table.writerows(zip(*cells.values(), strict=True))


def _write_parquet(cells: Mapping[str, Sequence[Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def column(name: str, values: Sequence[Any]) -> Any:
        if name in TEXT:
            return pyarrow.array(values, pyarrow.string())
        if name in WHOLE:
            return pyarrow.array(values, pyarrow.int64())
        if len({type(value) for value in values if value is not None}) > 1:  # what tables said, as they said it
            values = [None if value is None else str(value) for value in values]
        return pyarrow.array(values)

    table = pyarrow.table({name: column(name, values) for name, values in cells.items()})
    pyarrow.parquet.write_table(table, path, compression="zstd")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value == "") or value != value  # NaN differs from itself


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
        if _missing(value):
            row[name] = None
        elif name == "path" or name.startswith(FILES):
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
        if isinstance(value, str) or int(value) == value:
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"{path}: row {number}: `{name}` is {value!r}, and must be a whole number")
