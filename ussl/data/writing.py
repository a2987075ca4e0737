"""Shards as they are written: each whole or not at all, and one pack to a process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from ussl.data.manifest import FILES
from ussl.data.shards import FORMAT, HEAD, INDEX, REJECTED
from ussl.run import write

LARGE, SMALL = 256 * 2**20, 8 * 2**20  # bytes of a shard
SAID = {"split", "flag", "hash", "digest", "group_kind", "source", "width", "height", "channels", "bytes", "modified"}
FEWEST, MOST = 16, 512  # shards, as far as their size allows: enough to resume by, and each is an open file


def ranges(sizes: Sequence[int]) -> list[range]:
    """Which rows go into each shard, given the bytes expected of each row."""
    total = sum(sizes)
    target = max(min(max(total // FEWEST, SMALL), LARGE), total // MOST)
    starts, filled = [0], 0
    for i, size in enumerate(sizes):
        if filled and filled + size > target:
            starts.append(i)
            filled = 0
        filled += size
    return [range(*pair) for pair in pairwise([*starts, len(sizes)])]


def made_of(rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """A digest of what decides a shard's pixels: the options, and what its rows say of pictures and readers."""
    total = hashlib.sha256(json.dumps([FORMAT, dict(options)]).encode())
    for row in rows:
        known = {key: cell for key, cell in row.items() if cell is not None and key not in SAID}
        said = {key: cell for key, cell in known.items() if not key.startswith(FILES)}
        total.update(json.dumps(said, sort_keys=True, default=str).encode())
    return total.hexdigest()


@dataclass
class Shard:
    """A shard and its piece of the index, a JSON file beside it, without which it does not count."""

    folder: Path
    number: int
    rows: range
    made_of: str
    entries: list[dict[str, Any]] = field(default_factory=list)  # of the first rows, as far as they are known
    size: int = 0  # bytes of these
    _waiting: dict[int, bytes] = field(default_factory=dict)  # results of rows that came before their turn
    _file: BinaryIO | None = None

    @property
    def path(self) -> Path:
        """The file of pixels."""
        return self.folder / f"shard-{self.number:05d}.bin"

    @property
    def piece(self) -> Path:
        """The file that says what is in it."""
        return self.path.with_suffix(".json")

    @property
    def part(self) -> Path:
        """The file of pixels while it is written: in the same folder, so that the replacement is one step."""
        return self.folder / f".{self.path.name}.part"

    def load(self) -> bool:
        """Take up what an earlier run wrote; False where that is of other rows, not whole, or not there."""
        try:
            piece = json.loads(self.piece.read_bytes())
            same = piece["made_of"] == self.made_of and len(piece["rows"]) == len(self.rows)
            if not same or self.path.stat().st_size != piece["bytes"]:
                return False
            self.entries, self.size = piece["rows"], piece["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def put(self, row: int, result: bytes) -> bool:
        """Take what `Packing` made of a row; True when the shard is complete. OSError: no space left, ..."""
        if self._file is None:
            self.piece.unlink(missing_ok=True)
            self.entries, self.size = [], 0
            self._file = self.part.open("wb", buffering=0)
        self._waiting[row] = result
        while (following := self.rows.start + len(self.entries)) in self._waiting:
            self._write(self._waiting.pop(following))
        return len(self.entries) == len(self.rows)

    def _write(self, result: bytes) -> None:
        assert self._file is not None
        end = result.index(b"\n")
        entry, pixels = json.loads(result[:end]), memoryview(result)[end + 1 :]
        if len(pixels):
            entry["offset"] = self.size
            self.size += len(pixels)
        while len(pixels):
            pixels = pixels[self._file.write(pixels) :]
        self.entries.append(entry)

    def finish(self) -> None:
        """Put the complete shard and its piece in their places, each whole and on the disk."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.part, self.path)
        content = {"made_of": self.made_of, "bytes": self.size, "rows": self.entries}
        write(self.piece, json.dumps(content, separators=(",", ":")))
        self._file = None

    def drop(self) -> None:
        """Remove what is not complete."""
        if self._file is not None:
            self._file.close()
            self.part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, overwrite: bool) -> Iterator[None]:
    """The folder, made and to this process alone, emptied of a pack where it is to be overwritten."""
    import fcntl

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; write the name of a folder")
    ours = {".lock", *(path.name for path in own(folder))}
    strange = sorted(set(os.listdir(folder)) - ours) if folder.is_dir() else []
    if strange and not (folder / HEAD).exists():
        raise ValueError(f"{folder}: holds other things than a pack ({strange[0]}): write another -o")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however that ends
        except OSError:
            raise ValueError(f"{folder}: another `ussl data pack` is writing it; wait for its end") from None
        for path in own(folder) if overwrite else ():
            path.unlink()
        yield


def own(folder: Path) -> list[Path]:
    """The files of a pack in its folder, finished or not."""
    patterns = (HEAD, INDEX, REJECTED, "shard-*.bin", "shard-*.json", ".*.part", ".shard-*", f".{HEAD}")
    return [path for pattern in patterns for path in folder.glob(pattern)]
