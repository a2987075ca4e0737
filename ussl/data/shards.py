"""A pack as it is read: shards of raw uint8 pictures, one behind the other, and an index that says where each lies."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data.manifest import FILES
from ussl.parts import Source

HEAD, INDEX, REJECTED = "pack.json", "index.parquet", "rejected.csv"  # the index is written last
FORMAT = 1
SHAPE = ("packed_height", "packed_width", "packed_channels")
COLUMNS = ("shard", "offset", *SHAPE, "packed_scale", "packed_digest", "packed_y", "packed_x")  # of the index alone
_AGAIN = "run `ussl data pack` again"


class InShards(Source):
    """A source whose rows have the `COLUMNS` of a pack; the loader reads those without going through `read`."""

    def __init__(self) -> None:
        self._maps = Maps()

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        """The picture of a row, a read-only view of its shard. ValueError: no row of a pack; a shard cut short."""
        missing = [name for name in ("shard", "offset", *SHAPE) if row.get(name) is None]
        if missing:
            lacks = ", ".join(missing)
            raise ValueError(f"{row['path']}: not a row of a pack, for want of {lacks}: write --data PACK, its folder")
        height, width, channels = (int(row[name]) for name in SHAPE)
        return self._maps.picture(str(row["shard"]), int(row["offset"]), height, width, channels)


class Maps:
    """Memory maps of shards, each opened once in a process; a copy in another process opens its own."""

    def __init__(self) -> None:
        self._of: dict[str, np.ndarray] = {}

    def __reduce__(self) -> tuple[type[Maps], tuple[()]]:
        return Maps, ()

    def picture(self, shard: str, offset: int, height: int, width: int, channels: int) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8, read-only. ValueError: the shard is not there or cut short."""
        data = self._of.get(shard)
        if data is None:
            data = self._of[shard] = _mapped(shard)
        part = data[offset : offset + height * width * channels]
        if len(part) < height * width * channels:
            raise ValueError(f"{shard}: cut short: {len(data)} bytes; {_AGAIN}")
        return part.reshape(height, width) if channels == 1 else part.reshape(height, width, channels)


def _mapped(shard: str) -> np.ndarray:
    try:
        with open(shard, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError(f"{shard}: is empty; {_AGAIN}")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"{shard}: {(error.strerror or 'unreadable').lower()}; {_AGAIN}") from None


class Places:
    """Where the pictures of many rows lie, in arrays: 33 bytes a row, and no table to look into for a picture."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.shards = sorted({row["shard"] for row in rows})
        number = {shard: i for i, shard in enumerate(self.shards)}
        self.shard = np.fromiter((number[row["shard"]] for row in rows), np.int32, len(rows))
        self.offset = np.fromiter((row["offset"] for row in rows), np.int64, len(rows))
        self.shape = np.array([[row[name] for name in SHAPE] for row in rows], np.int32).reshape(-1, 3)
        self.scale = np.fromiter((row["packed_scale"] for row in rows), np.float64, len(rows))
        self._maps = Maps()

    def picture(self, i: int) -> tuple[np.ndarray, float]:
        """The picture of the `i`-th row, read-only, and its pixels per pixel of the source."""
        height, width, channels = self.shape[i].tolist()
        picture = self._maps.picture(self.shards[self.shard[i]], int(self.offset[i]), height, width, channels)
        return picture, float(self.scale[i])


def head(folder: Path) -> dict[str, Any]:
    """What pack.json says. ValueError: not a pack, or one of another version."""
    try:
        found = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        version = found["format"]
    except OSError as error:
        raise ValueError(f"{folder}: not a pack: {HEAD}: {(error.strerror or 'unreadable').lower()}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / HEAD}: damaged; pack again with --overwrite") from None
    if version != FORMAT:
        raise ValueError(f"{folder}: a pack of format {version}, not {FORMAT}: pack again, with --overwrite")
    return dict(found)


def rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a pack: all columns of its manifest, `reader: pack`, and `COLUMNS`, with absolute paths.

    Raises:
        ValueError: not a pack, one that is not finished, or a shard that is missing or cut short.
    """
    folder = Path(os.path.abspath(path))
    table = index(folder)
    for shard, size in _sizes(table).items():
        found = os.path.getsize(shard) if os.path.isfile(shard) else None
        if found is None or found < size:
            what = "no such file" if found is None else f"cut short: {found} of {size} bytes"
            raise ValueError(f"{shard}: {what}; {_AGAIN}")
    table["reader"] = ["pack"] * len(table["path"])
    names = list(table)
    return [dict(zip(names, cells, strict=True)) for cells in zip(*table.values(), strict=True)]


def index(folder: Path) -> dict[str, list[Any]]:
    """The columns of a pack's index, absolute paths. ValueError: not a pack, not finished, or unreadable."""
    import pyarrow
    import pyarrow.parquet

    head(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder}: this pack is not finished: {_AGAIN}")
    try:
        table = pyarrow.parquet.ParquetFile(folder / INDEX).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{folder / INDEX}: damaged ({' '.join(str(error).split())}); {_AGAIN}") from None
    if missing := sorted(set(COLUMNS[:7]) - set(table.column_names)):
        raise ValueError(f"{folder / INDEX}: not the index of a pack: it lacks {', '.join(missing)}; {_AGAIN}")
    return {name: _cells(name, table.column(name), folder) for name in table.column_names}


def _cells(name: str, column: Any, folder: Path) -> list[Any]:
    """Python values of a column; equal texts are one object, which spares much memory."""
    import pyarrow

    if not pyarrow.types.is_string(column.type):
        return list(column.to_pylist())
    coded = column.combine_chunks().dictionary_encode()
    texts = coded.dictionary.to_pylist()
    if name in ("path", "shard") or name.startswith(FILES):
        texts = [os.path.normpath(os.path.join(folder, text)) for text in texts]
    return [None if i is None else texts[i] for i in coded.indices.to_pylist()]


def _sizes(table: Mapping[str, list[Any]]) -> dict[str, int]:
    """How long every shard must be."""
    length = np.prod([np.asarray(table[name], np.int64) for name in SHAPE], axis=0)
    sizes: dict[str, int] = {}
    for shard, end in zip(table["shard"], (np.asarray(table["offset"]) + length).tolist(), strict=True):
        sizes[shard] = max(end, sizes.get(shard, 0))
    return sizes


def digest(picture: np.ndarray) -> str:
    """Of shape and pixels, in hexadecimal."""
    total = hashlib.blake2b(str(picture.shape).encode(), digest_size=16)
    total.update(np.ascontiguousarray(picture).data)
    return total.hexdigest()


def damaged(folder: Path, workers: int) -> tuple[int, list[tuple[str, str]]]:
    """How many pictures a pack has, and path and fault of each whose pixels are not what was packed.

    Raises:
        ValueError: not a pack, or one that is not finished.
    """
    table, maps = index(folder), Maps()
    places = list(zip(*(table[name] for name in ("path", "packed_digest", "shard", "offset", *SHAPE)), strict=True))

    def look(stretch: Sequence[Any]) -> list[tuple[str, str]]:
        told = ((path, _fault(maps, wanted, place)) for path, wanted, *place in stretch)
        return [(path, fault) for path, fault in told if fault]

    with ThreadPoolExecutor(workers) as pool:  # a digest is computed without Python's lock
        stretches = pool.map(look, (places[i : i + 256] for i in range(0, len(places), 256)))
        return len(places), [fault for stretch in stretches for fault in stretch]


def _fault(maps: Maps, wanted: str, place: Sequence[Any]) -> str:
    """What is wrong with the picture at a place; empty when nothing is."""
    try:
        return "" if digest(maps.picture(*place)) == wanted else f"its pixels in {place[0]} are not those packed"
    except ValueError as error:
        return str(error)
