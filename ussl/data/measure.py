"""What `ussl data index` asks of one item of a listing, in a worker: its rows, measured, and what cannot be used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ussl.data import folders, masks
from ussl.data.fingerprint import fingerprint
from ussl.data.manifest import FILES, LAST
from ussl.parts import Source

Row = dict[str, Any]
Stamp = tuple[int | None, int | None]  # bytes and st_mtime_ns of a file; None where there is none
_COMPUTED = frozenset(LAST) - {"flag"}


@dataclass(slots=True)
class Item:
    """One item of the listing of one root, and the rows that a manifest already has of its file, by frame."""

    root: int
    row: Row
    known: dict[int, Row] | None = None


@dataclass
class Measured:
    """What became of an item. `stamps`: its files as they were before they were read."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)  # path, frame, source, reason
    stamps: dict[str, Stamp] = field(default_factory=dict)
    read: int = 0  # pictures that were decoded

    def to_bytes(self) -> bytes:
        """As text that `from_bytes` reads back equal; rejections show from its beginning."""
        return json.dumps([self.rejected, self.rows, self.stamps, self.read], separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> Measured:
        """What `to_bytes` wrote."""
        rejected, rows, stamps, read = json.loads(text)
        return cls(rows, rejected, {path: (size, time) for path, (size, time) in stamps.items()}, read)


def has_rejections(text: bytes) -> bool:
    """Whether there are any, without reading the whole of what `Measured.to_bytes` wrote."""
    return not text.startswith(b"[[],")


class Measure:
    """Reads the pictures of an item through the source of its root, or through the reader that a row names.

    names: the plugin's name, which a row may give as its reader as well.
    readers: finds another reader by name.
    """

    def __init__(self, sources: Iterable[Source], name: str, readers: Callable[[str, int], Source]) -> None:
        self.sources, self.name, self.readers = list(sources), name, readers
        self._others: dict[tuple[str, int], Source] = {}

    def __call__(self, item: Item, alive: Callable[[], None]) -> bytes:
        """The item's `Measured` as bytes; raises nothing that a file or a plugin can be the reason for."""
        measured = Measured()
        path = str(item.row["path"])
        measured.stamps[path] = stamp(path)
        try:
            rows = list(self.sources[item.root].expand(item.row))
            for row in rows:
                alive()
                self._row(plain(row), item, measured)
        except (Exception, SystemExit) as error:
            measured.rejected.append(rejection(item.row, reason(error, path), self.name))
        if not (measured.rows or measured.rejected):
            measured.rejected.append(rejection(item.row, "holds no picture", self.name))
        return measured.to_bytes()

    def _row(self, row: Row, item: Item, measured: Measured) -> None:
        """Add a row, or why it cannot be used."""
        if "path" not in row:
            row = {"path": str(item.row["path"]), **row, "rejected": f"{self.name} gave a row without a path"}
        path = row["path"]
        if "rejected" in row or (problem := _unwritable(row)):
            measured.rejected.append(rejection(row, row.get("rejected") or problem, self.name))
            return
        if path not in measured.stamps:
            measured.stamps[path] = stamp(path)
        known = (item.known or {}).get(frame(row))
        if known is not None and is_unchanged(row, known, measured.stamps[path]):
            measured.rows.append(remeasured(row, known))
            return
        try:
            measured.rows.append(row | self._look(row, item.root) | _sizes(measured.stamps[path]))
            measured.read += 1
        except (Exception, SystemExit) as error:
            measured.rejected.append(rejection(row, reason(error, path), self.name))

    def _look(self, row: Row, root: int) -> Row:
        """The columns that the decoded picture says."""
        picture = self._reader(row, root).read(row)
        colour = picture.ndim == 3 and picture.shape[2] == 3
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or colour) or 0 in picture.shape:
            what = f"{picture.dtype} {picture.shape}"
            raise ValueError(f"reader {row.get('reader') or self.name} gave {what}, not uint8 (H, W) or (H, W, 3)")
        seen = fingerprint(picture)
        unusable = "mask_unusable" if any(_is_unusable(*mask, picture.shape[:2]) for mask in _masks(row)) else None
        return plain(seen) | {"flag": joined(row.get("flag"), seen.get("flag"), unusable)}

    def _reader(self, row: Row, root: int) -> Source:
        name = row.get("reader") or self.name
        if name == self.name:
            return self.sources[root]
        if (name, root) not in self._others:
            self._others[name, root] = self.readers(name, root)
        return self._others[name, root]


def _masks(row: Row) -> list[tuple[str, str]]:
    """Column and file of the row's masks that are pictures or polygons."""
    found = masks.columns(row).items()
    return [(column, path) for column, path in found if folders.extension(path) in folders.PICTURES | {".json"}]


def _is_unusable(column: str, path: str, size: tuple[int, int]) -> bool:
    """Whether the file of a mask cannot be read, or is of another size than its picture."""
    try:
        masks.read(path, size, outline=column.startswith("outline_"))
    except (ValueError, OSError):
        return True
    return False


def plain(row: Mapping[str, Any]) -> Row:
    """The row in what JSON, CSV and Parquet alike can hold, absolute paths, without missing values."""
    found = {str(name): _plain(value) for name, value in row.items()}
    for name in found:
        if (name == "path" or name.startswith(FILES)) and found[name] and not os.path.isabs(str(found[name])):
            found[name] = os.path.abspath(found[name]) if os.path.exists(found[name]) else found[name]
    return {name: value for name, value in found.items() if value not in (None, "")}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        value = value.tolist() if isinstance(value, np.ndarray) else value
        return json.dumps(sorted(value) if isinstance(value, set) else value, ensure_ascii=False, default=str)
    return str(value)


def _unwritable(row: Row) -> str:
    """Why a row cannot stand in a table; empty when it can."""
    for name, value in row.items():
        if isinstance(value, str) and not _is_text(value):
            return f"its {name} is not in UTF-8; rename the file" if name == "path" else f"`{name}` is not in UTF-8"
    return ""


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def frame(row: Mapping[str, Any]) -> int:
    """The number of the row's picture in its file."""
    return int(row.get("frame") or 0)


def stamp(path: str) -> Stamp:
    """Bytes and time of change of a file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def _sizes(at: Stamp) -> Row:
    return {} if at[0] is None else {"bytes": at[0], "modified": at[1]}


def is_unchanged(row: Row, known: Row, at: Stamp) -> bool:
    """Whether an indexed row is of the same file, unchanged, and all that the source says of it is the same."""
    if at[0] is None or (known.get("bytes"), known.get("modified")) != at or not known.get("digest"):
        return False
    said = {name: str(value).strip() for name, value in row.items() if name not in ("flag", "bytes", "modified")}
    extra = {name for name, value in known.items() if value is not None} - said.keys() - set(LAST)
    return not extra and all(str(known.get(name)) == value for name, value in said.items())


def remeasured(row: Row, known: Row) -> Row:
    """The row with what was measured before."""
    measured = {name: known[name] for name in _COMPUTED if known.get(name) is not None}
    return row | measured | {"flag": joined(row.get("flag"), known.get("flag"))}


def joined(*flags: str | None) -> str | None:
    """Words of flags, each once, as a flag."""
    return ";".join(dict.fromkeys(word for flag in flags for word in (flag or "").split(";") if word)) or None


def rejection(row: Mapping[str, Any], why: str, source: str) -> Row:
    """A row of rejected.csv."""
    path = str(row["path"]).encode(errors="backslashreplace").decode()  # a name may be in another encoding
    number = row.get("frame")
    known = {"frame": number if isinstance(number, int) else None, "source": str(row.get("source") or source)}
    return {"path": path, **known, "reason": _line(why)}


def reason(error: BaseException, path: str) -> str:
    """What an error says, in one line that does not repeat the path."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror.lower()
    elif not isinstance(error, ValueError | OSError):
        text = f"{type(error).__name__}: {text}"
    return _line(text.removeprefix(f"{path}: ")) or type(error).__name__


def _line(text: object) -> str:
    return " ".join(str(text).encode(errors="backslashreplace").decode().split())
