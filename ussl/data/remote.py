"""Files in a bucket, fetched through litdata, and the folder that keeps the latest of them on this machine."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

SCHEMES = ("s3", "gs")
PATIENCE = {"connect_timeout": 10, "read_timeout": 60}  # seconds; tries: AWS_MAX_ATTEMPTS, as everywhere with boto3
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WAIT = 0.05  # seconds between looks whether another process has left room


def address(path: str | os.PathLike[str]) -> str | None:
    """The address that a path is, s3://bucket/prefix; None: a folder. ValueError: no such place can be read.

    One slash after the colon will do: it is what is left where an address was taken for a path.
    """
    found = re.match(r"(\w[\w+.-]+):/+", str(path))
    if found is None:
        return None
    scheme, rest = found[1].lower(), str(path)[found.end() :].strip("/")
    if scheme not in SCHEMES:
        raise ValueError(
            f"{path}: {scheme}:// is not read; write s3://BUCKET/PREFIX (other S3-compatible storage as well, "
            f"with its endpoint), gs://BUCKET/PREFIX, or a folder"
        )
    if not rest:
        raise ValueError(f"{path}: names no bucket; write {scheme}://BUCKET/PREFIX")
    return f"{scheme}://{rest}"


class Bucket:
    """The files below an address. Who may read is said where boto3 and Google's client look: in the environment.

    It can be pickled and outlives a fork: every process makes its own connection.
    """

    def __init__(self, url: str, *, endpoint: str | None, region: str | None, anonymous: bool) -> None:
        self.url, self.endpoint, self.region, self.anonymous = url, endpoint, region, anonymous
        self._check()
        self._downloader: Any = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_downloader": None, "_process": 0}

    def read(self, name: str) -> bytes:
        """The content of a small file. ValueError: as `fetch`."""
        file = BytesIO()
        self.fetch(name, file)
        return file.getvalue()

    def fetch(self, name: str, file: IO[bytes]) -> None:
        """Write the content of a file into `file`. ValueError: it cannot be had, after several tries."""
        downloader = self._connected()
        try:
            downloader.download_fileobj(f"{self.url}/{name}", file)
        except Exception as error:  # three libraries raise what they like
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            raise ValueError(f"{self.url}/{name}: {_told(error)}") from error

    def _connected(self) -> Any:
        if self._process != os.getpid():
            self._downloader, self._process = self._connect(), os.getpid()
        return self._downloader

    def _connect(self) -> Any:
        try:
            from litdata.streaming.downloader import get_downloader
        except ImportError:
            raise ValueError("streaming needs a package: pip install 'ultrasound-ssl[stream]'") from None
        try:
            return get_downloader(self.url, "", [], self._options())
        except ModuleNotFoundError:
            raise ValueError(f"{self.url}: gs:// needs a package: pip install google-cloud-storage") from None

    def _options(self) -> dict[str, Any]:
        """What litdata hands to the client; without a `config` of ours it would try a thousand times."""
        if self.url.startswith("gs:"):
            return {}
        from botocore import UNSIGNED
        from botocore.config import Config

        config = Config(**PATIENCE, **({"signature_version": UNSIGNED} if self.anonymous else {}))
        said = {"endpoint_url": self.endpoint, "region_name": self.region}
        return {"config": config} | {key: value for key, value in said.items() if value is not None}

    def _check(self) -> None:
        """ValueError: an option without effect, or an endpoint that is none or gives a secret away."""
        given = {"endpoint": self.endpoint, "region": self.region, "anonymous": self.anonymous or None}
        idle = [name for name, value in given.items() if value is not None]
        if idle and not self.url.startswith("s3:"):
            raise ValueError(f"{', '.join(idle)}: without effect on {self.url}, only on s3://; leave it out")
        if self.endpoint is None:
            return
        parts = urlsplit(self.endpoint)
        if "@" in parts.netloc:
            raise ValueError("endpoint: leave key and secret out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"endpoint: write an address such as https://storage.example.org, not {self.endpoint}")


class ChunkCache:
    """The latest chunks of a bucket in a folder, at most `limit` bytes with those on their way, for all processes.

    A chunk is fetched by one process while others that want it wait; the one not asked for longest goes first. Locks
    are of the system (flock), so that a killed process holds none.
    """

    def __init__(self, folder: Path, limit: int, bucket: Bucket) -> None:
        self.folder, self.limit, self.bucket = folder, limit, bucket

    def open(self, name: str, size: int) -> BinaryIO:
        """A chunk of `size` bytes, to be read even if it is evicted meanwhile. ValueError: it cannot be had."""
        try:
            return self._opened(name)
        except FileNotFoundError:
            pass
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder / f".{name}.lock"):
                try:
                    return self._opened(name)  # another process was quicker
                except FileNotFoundError:
                    return self._download(name, size)
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            more = (
                "; write a smaller max_cache_gb, or cache: a folder on a larger disk" if error.errno in _FULL else ""
            )
            raise ValueError(f"{self.folder}: cannot keep {name}: {what}{more}") from error

    def drop(self, name: str) -> None:
        """Forget a chunk."""
        (self.folder / name).unlink(missing_ok=True)

    def _opened(self, name: str) -> BinaryIO:
        file = (self.folder / name).open("rb", buffering=0)
        os.utime(file.fileno())  # when it was asked for last
        return file

    def _download(self, name: str, size: int) -> BinaryIO:
        part = self.folder / f".{name}.{size}.part"
        self._reserve(part, size)
        try:
            file = part.open("w+b")
            try:
                self.bucket.fetch(name, file)
                file.flush()
                if (found := os.fstat(file.fileno()).st_size) != size:
                    raise ValueError(f"{self.bucket.url}/{name}: has {found} bytes, not {size}: upload it again")
                os.replace(part, self.folder / name)
            except BaseException:
                file.close()
                raise
            return file
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size: int) -> None:
        """Make room for `part`, and the file by which others know; waits while chunks on their way take all of it."""
        if size > self.limit:
            raise ValueError(
                f"{self.folder}: max_cache_gb {self.limit / 1e9:g} is less than a chunk: write at least "
                f"{2 * size / 1e9:.2g}"
            )
        part.unlink(missing_ok=True)  # of a process killed before
        while True:
            with _alone(self.folder / ".lock"):
                if self._room(size):
                    part.touch()
                    return
            time.sleep(_WAIT)

    def _room(self, size: int) -> bool:
        """Whether `size` bytes fit in, when the chunks not asked for longest are gone."""
        free = self.limit - size - sum(_reserved(part) for part in self.folder.glob(".*.part") if not _stale(part))
        for path, found in _latest_first(self.folder):
            free -= found
            if free < 0:
                path.unlink(missing_ok=True)
                free += found
        return free >= 0


def _latest_first(folder: Path) -> list[tuple[Path, int]]:
    """The chunks there are and their bytes, from the one asked for last."""
    chunks = []
    for path in folder.glob("[!.]*"):
        try:
            found = path.stat()
        except FileNotFoundError:  # another process found it damaged
            continue
        chunks.append((found.st_mtime_ns, path, found.st_size))
    return [(path, size) for _, path, size in sorted(chunks, reverse=True)]


def _reserved(part: Path) -> int:
    """The bytes that a chunk on its way will take."""
    return int(part.name.split(".")[-2])


def _stale(part: Path) -> bool:
    """Whether the process that fetched it is no more; then it is removed."""
    import fcntl

    with (part.parent / f"{part.name.rsplit('.', 2)[0]}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        part.unlink(missing_ok=True)
        return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other process or thread is between these lines for the same `path`."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _told(error: Exception) -> str:
    """What a storage library's exception says, in a line that helps."""
    response = getattr(error, "response", None)
    code = str(response.get("Error", {}).get("Code") if isinstance(response, dict) else getattr(error, "code", ""))
    if code in ("404", "NoSuchKey", "NoSuchBucket"):
        return "not there; write the address that the folder of `ussl data stream` was uploaded to"
    if code in ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return "not allowed to read it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or anonymous for public data"
    if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError"):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or anonymous for public data"
    return f"cannot be fetched: {' '.join(str(error).split())}"
