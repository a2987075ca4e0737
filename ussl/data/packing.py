"""Making a pack: what a worker does with a picture, and what becomes of all of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ussl.data import manifest, pictures, shards
from ussl.data.measure import reason, rejection, stamp
from ussl.data.merging import write_rejected
from ussl.data.shards import FORMAT, HEAD, INDEX, REJECTED, SHAPE, digest
from ussl.data.walking import Lost, each
from ussl.data.writing import Shard, made_of, own, ranges
from ussl.errors import RunFailed
from ussl.parts import Source
from ussl.run import write_json
from ussl.settings import Loader

Row = Mapping[str, Any]
GOES_ON = "finished shards stay, and the same command goes on from there"


@dataclass(frozen=True)
class Options:
    """What a pack's pixels depend on, beside the pictures."""

    short_side: int = 384
    scan: Literal["keep", "mask", "crop"] = "keep"
    grey: bool = False

    def words(self) -> str:
        """As they are written on the command line."""
        return f"--short-side {self.short_side} --scan {self.scan}{' --grey' if self.grey else ''}"


class Packing:
    """Reads a row's picture and makes it what is packed: called in workers, and raises nothing."""

    def __init__(self, rows: Sequence[Row], readers: Mapping[str, Source], options: Options) -> None:
        self.rows, self.readers, self.options = rows, readers, options

    def __call__(self, number: int, _: Callable[[], None]) -> bytes:
        """A line of JSON, `entry` of the picture or why it is rejected, and the pixels."""
        row = self.rows[number]
        size, modified = stamp(row["path"])
        entry: dict[str, Any] = {"bytes": size, "modified": modified}
        pixels = b""
        try:
            picture, entry = self._picture(row, entry)
            pixels = picture.tobytes()
        except (Exception, SystemExit) as error:  # what a reader raises on a file from outside
            entry["rejected"] = reason(error, row["path"])
        return json.dumps(entry).encode() + b"\n" + pixels

    def _picture(self, row: Row, entry: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        name = row.get("reader") or "images"
        picture = self.readers[name].read(row)
        colour = picture.ndim == 3 and picture.shape[2] == 3
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or colour) or 0 in picture.shape:
            what = f"{picture.dtype} {picture.shape}"
            raise ValueError(f"reader {name} gave {what}, not uint8 (H, W) or (H, W, 3)")
        picture, corner = self._cleaned(picture)
        picture, scale = pictures.shrink(picture, self.options.short_side)
        shape = (*picture.shape, 1)[:3]
        found = dict(zip(("packed_height", "packed_width", "packed_channels"), shape, strict=True))
        return picture, entry | corner | found | {"packed_scale": scale, "packed_digest": digest(picture)}

    def _cleaned(self, picture: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
        """The picture as `scan` and `grey` want it, and where in the source a cropped one begins."""
        if self.options.scan == "keep" and not self.options.grey:
            return picture, {}
        from ussl.data import scan

        corner = {}
        if self.options.scan == "crop":
            corner = dict(zip(("packed_y", "packed_x"), map(int, scan.scan_box(picture)[:2]), strict=True))
        return np.ascontiguousarray(scan.cleaned(picture, self.options.scan, self.options.grey)), corner


@dataclass
class Pack:
    """A pack's folder, and what it is to hold."""

    folder: Path
    rows: list[dict[str, Any]]
    options: Options

    def __post_init__(self) -> None:
        self.expected = [expected_bytes(row, self.options.short_side) for row in self.rows]
        self.shards = [
            Shard(self.folder, number, part, made_of([self.rows[i] for i in part], asdict(self.options)))
            for number, part in enumerate(ranges(self.expected))
        ]

    def check_sources(self) -> None:
        """Take up the finished shards whose pictures have not changed. ValueError: their files are gone."""
        self.todo, gone = [], []
        for shard in self.shards:
            if not shard.load():
                self.todo.append(shard)
                continue
            now = [stamp(self.rows[i]["path"]) for i in shard.rows]
            before = [(entry["bytes"], entry["modified"]) for entry in shard.entries]
            if now != before:
                self.todo.append(shard)
            packed = zip(shard.rows, now, shard.entries, strict=True)
            gone += [i for i, (size, _), entry in packed if size is None and entry["bytes"] and "offset" in entry]
        if gone:
            path, more = self.rows[gone[0]]["path"], f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            raise ValueError(
                f"{path}{more}: packed in {self.folder}, and no longer there: bring the files back, take their rows "
                f"out of the manifest, or write --overwrite to pack what is left"
            )

    def make(self, readers: Mapping[str, Source], workers: int) -> None:
        """Write the shards that are missing, then the index. RunFailed: no space left, or nothing could be read."""
        begun = time.perf_counter()
        head = {"format": FORMAT, "options": asdict(self.options), "rows": len(self.rows)}
        head |= {"digest": _digest(self.rows), "shards": [len(shard.rows) for shard in self.shards]}
        if not self.todo and (self.folder / INDEX).exists() and shards.head(self.folder) == head:
            lost = sum("rejected" in entry for shard in self.shards for entry in shard.entries)
            again = f", of which {lost:,} could not be read (--overwrite tries again)" if lost else ""
            print(f"nothing to do: {self.folder} holds these {len(self.rows):,} rows already{again}")
            return
        for line in self._before():
            print(line, flush=True)
        try:
            (self.folder / INDEX).unlink(missing_ok=True)
            write_json(self.folder / HEAD, head)
            self._clear()
            self._work(readers, workers)
            index = self._index()
        except OSError as error:
            raise RunFailed(f"{self.folder}: {(error.strerror or str(error)).lower()}; {GOES_ON}") from error
        for line in self._after(index, time.perf_counter() - begun):
            print(line)

    def _before(self) -> Iterator[str]:
        count = f"{len(self.rows):,} rows into {len(self.shards)} shards"
        yield f"pack      {count} in {self.folder}, {self.options.words()}"
        if len(self.todo) < len(self.shards):
            kept = len(self.shards) - len(self.todo)
            yield f"kept      {kept} shards whose pictures and rows have not changed"
        needed = sum(self.expected[i] for shard in self.todo for i in shard.rows)
        unknown = "" if all(row.get("channels") for row in self.rows) else ", if grey"
        free = shutil.disk_usage(self.folder).free
        short = "; it will fill up, unless pictures are smaller than they seem" if needed > free else ""
        yield f"space     about {_size(needed)} to write{unknown}, {_size(free)} free{short}"

    def _clear(self) -> None:
        """Remove what interrupted and longer packs left."""
        names = {path.name for shard in self.shards for path in (shard.path, shard.piece)}
        for path in own(self.folder):
            if path.name not in {*names, HEAD, INDEX, REJECTED}:
                path.unlink()

    def _work(self, readers: Mapping[str, Source], workers: int) -> None:
        starts = [shard.rows.start for shard in self.shards]
        tasks = [i for shard in self.todo for i in shard.rows]
        results = each(Packing(self.rows, readers, self.options), tasks, min(workers, len(tasks) or 1))
        try:
            with tqdm(total=len(tasks), unit="picture", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
                for number, result in results:
                    row = tasks[number]
                    shard = self.shards[bisect_right(starts, row) - 1]
                    if shard.put(row, self._told(row, result) if isinstance(result, Lost) else result):
                        shard.finish()
                    bar.update()
        finally:
            results.close()
            for shard in self.todo:
                shard.drop()

    def _told(self, row: int, lost: Lost) -> bytes:
        size, modified = stamp(self.rows[row]["path"])
        return json.dumps({"bytes": size, "modified": modified, "rejected": lost.reason}).encode() + b"\n"

    def _index(self) -> list[dict[str, Any]]:
        """Write the table of rejected rows, then the index, and return the rows of the latter."""
        index, rejected = [], []
        for shard in self.shards:
            for i, entry in zip(shard.rows, shard.entries, strict=True):
                row = self.rows[i]
                if "rejected" in entry:
                    rejected.append(rejection(row, entry["rejected"], row.get("source") or ""))
                else:
                    index.append(row | entry | {"shard": shard.path.name})
        write_rejected(rejected, self.folder / REJECTED)
        if not index:
            raise RunFailed(f"{self.folder}: none of {len(self.rows):,} pictures could be read; see its {REJECTED}")
        manifest.write(index, self.folder / INDEX)
        return index

    def _after(self, index: Sequence[Mapping[str, Any]], seconds: float) -> Iterator[str]:
        total = sum(shard.size for shard in self.shards)
        done = sum(len(shard.rows) for shard in self.todo)
        shrunk = sum(row["packed_scale"] < 1 for row in index)
        grey = sum(row["packed_channels"] == 1 for row in index)
        rate = f"; {done:,} read in {seconds:.0f} s, {done / seconds:,.0f} a second" if done else ""
        yield f"packed    {len(index):,} pictures, {shrunk:,} scaled down, {grey:,} grey, {_size(total)}{rate}"
        if lost := len(self.rows) - len(index):
            yield f"rejected  {lost:,} that cannot be read: {self.folder / REJECTED} says why"
        longest = max(max(row[name] for name in SHAPE[:2]) for row in index)
        if longest > (canvas := Loader().canvas):
            yield (
                f"canvas    the longest picture has {longest} pixels: with the default --loader.canvas {canvas} such "
                f"ones are scaled down again whenever they are read, which is slow"
            )


def expected_bytes(row: Row, short_side: int) -> int:
    """Of the row's packed picture: from the sizes that the manifest says, else of a grey 4 x 3 picture."""
    height, width, channels = (row.get(name) for name in ("height", "width", "channels"))
    if not height or not width:
        return short_side * short_side * 4 // 3
    scale = min(1.0, short_side / min(height, width))
    return max(1, round(height * scale)) * max(1, round(width * scale)) * (channels or 1)


def _digest(table: Sequence[Mapping[str, Any]]) -> str:
    """Of all that a manifest says."""
    total = hashlib.sha256()
    for row in table:
        total.update(json.dumps(row, sort_keys=True, default=str).encode())
    return total.hexdigest()


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1000:,.1f} kB"
