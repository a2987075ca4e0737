"""`ussl data stream`: a pack rewritten in random order, into chunks that training fetches from a bucket in turn."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ussl.data import manifest, shards
from ussl.data.manifest import FILES
from ussl.data.sampling import shuffled
from ussl.data.shards import SHAPE, digest
from ussl.errors import RunFailed
from ussl.run import write_json

HEAD, ROWS, LITDATA = "stream.json", "rows.parquet", "index.json"  # the last is litdata's own
FORMAT = 1
PLACE = ("chunk", "chunk_offset")  # columns: the chunk's number, and where in it the picture begins
_MOST = 2048  # MiB: litdata counts the bytes of a chunk in 32 bits

Row = Mapping[str, Any]


def command(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Write the pictures of the pack `args.pack` into the folder `args.out`, as chunks. Returns the exit code."""
    if not 0 < args.chunk_mb <= _MOST:
        raise ValueError(f"--chunk-mb {args.chunk_mb:g}: write a number above 0, at most {_MOST}")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: write 0 or more")
    pack, out = Path(os.path.abspath(args.pack)), Path(os.path.abspath(args.out))
    rows = shards.rows(pack)
    size = int(args.chunk_mb * 2**20)
    _check_size(rows, size)
    with _written(out, args.overwrite) as folder:
        ordered = [rows[i] for i in shuffled(len(rows), args.seed).tolist()]
        chunks = _write(folder, ordered, size, args.seed)
    total = sum(chunk["bytes"] for chunk in chunks)
    print(f"streamed  {len(rows):,} pictures in {len(chunks):,} chunks, {total / 1e9:.3g} GB: {out}")
    print(f"next      upload it: aws s3 sync {out} s3://BUCKET/PREFIX")
    print("          and train: --data s3://BUCKET/PREFIX --source.name stream --sampler.name chunked")
    return 0


def _check_size(rows: Sequence[Row], size: int) -> None:
    """ValueError: a picture is larger than a chunk."""
    largest = max(int(np.prod([row[name] for name in SHAPE])) for row in rows)
    if largest + 64 > size:  # with its header
        least = (largest + 64) / 2**20
        raise ValueError(
            f"--chunk-mb {size / 2**20:g}: less than the largest picture; write {least:.4f} or more, 64 is usual"
        )


def _write(folder: Path, rows: Sequence[Row], size: int, seed: int) -> list[dict[str, Any]]:
    """Chunks, rows and head of a stream into an empty folder, all on the disk. What the head says of the chunks."""
    entries: list[dict[str, Any]] = []
    chunks: list[dict[str, Any]] = []
    for path in _chunks(folder, rows, size):
        ends = _ends(path)
        some = rows[len(entries) : len(entries) + len(ends)]
        entries += [_entry(row, len(chunks), end) for row, end in zip(some, ends, strict=True)]
        _check_chunk(path, entries[-len(ends) :])
        chunks.append({"file": path.name, "bytes": path.stat().st_size, "pictures": len(ends)})
    root = os.path.commonpath([os.path.dirname(row["path"]) for row in rows])
    for entry in entries:
        entry["path"] = Path(os.path.relpath(entry["path"], root)).as_posix()
    manifest.write(entries, folder / ROWS)
    of_rows = hashlib.sha256((folder / ROWS).read_bytes()).hexdigest()
    head = {"format": FORMAT, "seed": seed, "pictures": len(rows), "rows_sha256": of_rows, "chunks": chunks}
    write_json(folder / HEAD, head)
    return chunks


def _chunks(folder: Path, rows: Sequence[Row], size: int) -> Iterator[Path]:
    """Chunks as they are finished. ValueError: a picture is not the one that was packed."""
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        raise ValueError("streaming needs a package: pip install 'ultrasound-ssl[stream]'") from None
    writer, maps = BinaryWriter(str(folder), chunk_bytes=size), shards.Maps()
    for i, row in enumerate(tqdm(rows, desc="streaming", unit=" pictures", disable=None)):
        picture = maps.picture(row["shard"], row["offset"], *(row[name] for name in SHAPE))
        if digest(picture) != row["packed_digest"]:
            raise ValueError(f"{row['path']}: its pixels in {row['shard']} are not those packed: pack it again")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "An item was larger", UserWarning)  # it is the offsets, of tiny pictures
            path = writer.add_item(i, picture)
        if path is not None:
            yield Path(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "An item was larger", UserWarning)
        last = writer.done()
    yield from map(Path, last)
    writer.merge(1)


def _ends(chunk: Path) -> list[int]:
    """Where each picture of a chunk ends, as litdata wrote it: their number and offsets, 32 bits each, are first."""
    with chunk.open("rb") as file:
        (count,) = np.fromfile(file, np.uint32, 1)
        return list(np.fromfile(file, np.uint32, int(count) + 1)[1:].tolist())


def _entry(row: Row, chunk: int, end: int) -> dict[str, Any]:
    """A row of a stream; the pixels are the last thing of what litdata keeps of a picture."""
    left_out = ("shard", "offset", "reader")
    kept = {name: cell for name, cell in row.items() if name not in left_out and not name.startswith(FILES)}
    return kept | {"chunk": chunk, "chunk_offset": end - int(np.prod([row[name] for name in SHAPE]))}


def _check_chunk(path: Path, entries: Sequence[Row]) -> None:
    """RunFailed: what was written is not what is read. The chunk is on the disk then."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        for entry in entries:
            if digest(picture_of(entry, file.fileno())) != entry["packed_digest"]:
                raise RunFailed(f"{path}: not as it was written: is the disk failing?")


def picture_of(row: Row, file: int) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8, read where the row says in the open chunk; fewer bytes give an array of (0,)."""
    height, width, channels = (int(row[name]) for name in SHAPE)
    count = height * width * channels
    data = os.pread(file, count, int(row["chunk_offset"]))
    if len(data) < count:
        return np.empty(0, np.uint8)
    return np.frombuffer(data, np.uint8).reshape((height, width, channels) if channels > 1 else (height, width))


@contextmanager
def _written(out: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when all is written, and is removed when it cannot be.

    What a killed process left of it is removed first.
    """
    import fcntl

    _check_out(out, overwrite)
    part, old = (out.with_name(f".{out.name}.{end}") for end in ("part", "old"))
    part.mkdir(parents=True, exist_ok=True)
    lock = os.open(part, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{out}: another `ussl data stream` is writing it; wait for its end") from None
        for path in part.iterdir():
            path.unlink()
        try:
            yield part
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                os.replace(out, old)
            os.replace(part, out)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(lock)


def _check_out(out: Path, overwrite: bool) -> None:
    """ValueError: something is there that is no stream, or one that is to stay."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; write the name of a folder")
    names = set(os.listdir(out)) if out.is_dir() else set()
    strange = sorted(name for name in names - {HEAD, ROWS, LITDATA} if not name.startswith("chunk-"))
    if strange or (names and HEAD not in names):
        raise ValueError(
            f"{out}: holds other things than a stream ({(strange or sorted(names))[0]}): write another -o"
        )
    if names and not overwrite:
        raise ValueError(f"{out}: there is a stream already: write another -o, or --overwrite")
    if overwrite and not names:
        raise ValueError(f"--overwrite: there is no stream in {out}; leave it out")
