"""Pictures in a bucket, in the chunks that `ussl data stream` made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ussl.data.remote import Bucket, ChunkCache, address
from ussl.data.shards import SHAPE, digest
from ussl.data.stream import FORMAT, HEAD, PLACE, ROWS, picture_of
from ussl.hookspecs import hookimpl
from ussl.parts import Source

_NEEDED = (*PLACE, *SHAPE, "packed_digest")
_AGAIN = "upload the folder of `ussl data stream` again"


class Stream(Source):
    """Pictures in object storage (s3://, gs://), fetched in chunks that a folder keeps; its sampler is `chunked`.

    Credentials come from the environment, as boto3 and Google's client look for them.
    """

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        endpoint: str | None = None,
        region: str | None = None,
        anonymous: bool = False,
        cache: Path | None = None,
        max_cache_gb: float | None = None,
    ) -> None:
        """Pictures of a stream.

        Args:
            path: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or the folder that `ussl data stream` wrote.
            endpoint: address of S3-compatible storage that is not Amazon's, such as https://storage.example.org.
            region: of the bucket, where the environment does not say it.
            anonymous: send no credentials, for public buckets.
            cache: folder for chunks; ussl/stream in the user's cache folder when not given.
            max_cache_gb: most of a stream that is kept there, in 10^9 bytes; 100 when not given.
        """
        self.path = path
        self._folder: Path | None = None
        self._bucket: Bucket | None = None
        if path is not None and (url := address(path)):
            self._bucket = Bucket(url, endpoint=endpoint, region=region, anonymous=anonymous)
        elif path is not None:
            self._folder = Path(os.path.abspath(os.path.expanduser(path)))
            given = {"endpoint": endpoint, "region": region, "anonymous": anonymous or None}
            _check_idle(given | {"cache": cache, "max_cache_gb": max_cache_gb}, path)
        if max_cache_gb is not None and not 0 < max_cache_gb < float("inf"):
            raise ValueError(f"max_cache_gb is {max_cache_gb:g}: write a number above 0")
        self.cache, self.limit = cache, int((100 if max_cache_gb is None else max_cache_gb) * 1e9)
        self._said: dict[str, Any] | None = None
        self._kept: ChunkCache | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the pack, in the stream's order, and where each picture lies."""
        import pyarrow
        import pyarrow.parquet

        content = self._read(ROWS)
        if hashlib.sha256(content).hexdigest() != self._head["rows_sha256"]:
            raise ValueError(f"{self._name(ROWS)}: not the table that {HEAD} tells of; {_AGAIN}")
        try:
            table = pyarrow.parquet.read_table(BytesIO(content))
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self._name(ROWS)}: damaged ({' '.join(str(error).split())}); {_AGAIN}") from None
        self._check_limit()
        columns = {name: _cells(table.column(name)) for name in table.column_names}
        return (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        """The picture of a row, its digest checked. ValueError: no row of a stream; out of reach; damaged."""
        if missing := [name for name in _NEEDED if row.get(name) is None]:
            raise ValueError(f"{row['path']}: not a row of a stream, for want of {', '.join(missing)}")
        chunk = self._chunk(row)
        for _ in range(2):  # what a disk has spoilt is fetched again
            with self._open(chunk) as file:
                picture = picture_of(row, file.fileno())
            if picture.size and digest(picture) == row["packed_digest"]:
                return picture
            if self._bucket is not None:
                self._chunks.drop(chunk["file"])
        raise ValueError(f"{self._name(chunk['file'])}: damaged at the picture {row['path']}; {_AGAIN}")

    def _chunk(self, row: Mapping[str, Any]) -> dict[str, Any]:
        chunks, number = self._head["chunks"], int(row["chunk"])
        if not 0 <= number < len(chunks):
            raise ValueError(f"{row['path']}: in chunk {number}, and {self._name(HEAD)} tells of {len(chunks)}")
        return dict(chunks[number])

    def _open(self, chunk: Mapping[str, Any]) -> BinaryIO:
        if self._folder is None:
            return self._chunks.open(chunk["file"], chunk["bytes"])
        path = self._folder / chunk["file"]
        try:
            return path.open("rb", buffering=0)
        except OSError as error:
            raise ValueError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None

    @property
    def _chunks(self) -> ChunkCache:
        """The cache of this stream, and of no other that was at its address before."""
        assert self._bucket is not None
        if self._kept is None:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ussl" / "stream"
            key = hashlib.sha256(f"{self._bucket.url} {json.dumps(self._head, sort_keys=True)}".encode()).hexdigest()
            folder = (home if self.cache is None else self.cache) / key[:16]
            self._kept = ChunkCache(folder, self.limit, self._bucket)
        return self._kept

    @property
    def _head(self) -> dict[str, Any]:
        """What stream.json says. ValueError: not a stream, or one of another version."""
        if self._said is None:
            content = self._read(HEAD)
            try:
                said = json.loads(content)
                version, _, _ = said["format"], said["rows_sha256"], said["chunks"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self._name(HEAD)}: damaged; {_AGAIN}") from None
            if version != FORMAT:
                raise ValueError(f"{self._name(HEAD)}: format {version}, not {FORMAT}; write it with this version")
            self._said = said
        return self._said

    def _read(self, name: str) -> bytes:
        if self._bucket is not None:
            return self._bucket.read(name)
        if self._folder is None:
            raise ValueError("no data: write --data s3://BUCKET/PREFIX, or the folder that `ussl data stream` wrote")
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            why = (error.strerror or "unreadable").lower()
            raise ValueError(f"{self._folder}: not a stream: {name}: {why}") from None

    def _name(self, file: str) -> str:
        return f"{self._folder if self._bucket is None else self._bucket.url}/{file}"

    def _check_limit(self) -> None:
        """ValueError: the cache cannot hold a chunk, which training would find out late."""
        largest = max(chunk["bytes"] for chunk in self._head["chunks"])
        if self._bucket is not None and largest > self.limit:
            least = 2 * largest / 1e9
            raise ValueError(f"max_cache_gb {self.limit / 1e9:g} is less than a chunk; write {least:.2g} or more")


def _check_idle(given: Mapping[str, Any], path: str | Path) -> None:
    """ValueError: options for buckets, given for a folder."""
    if idle := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(idle)}: without effect on the folder {path}, only on s3:// and gs://")


def _cells(column: Any) -> list[Any]:
    """Python values of a column; equal texts are one object, which spares much memory."""
    import pyarrow

    if not pyarrow.types.is_string(column.type):
        return list(column.to_pylist())
    coded = column.combine_chunks().dictionary_encode()
    texts = coded.dictionary.to_pylist()
    return [None if i is None else texts[i] for i in coded.indices.to_pylist()]


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer object storage."""
    return {"stream": Stream}
