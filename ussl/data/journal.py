"""What an interrupted `ussl data index` had measured, so that the same command goes on from there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ussl.data.measure import Item, Measured, stamp
from ussl.notice import once

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of file systems that have none


class Journal:
    """A file of one line an item, beside the output, which one process at a time may hold.

    Lines are appended and have a checksum: one torn by a kill or a full disk is left out when the file is read again.

    Args:
        out: the manifest that is being made.
        belongs: whose measurements these are; those of another source, option, root or program are thrown away.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be written.
    """

    def __init__(self, out: Path, belongs: Mapping[str, Any]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self.path = out.with_name(f".{out.name}.journal")
        self.file = self.path.open("a+b")
        self._lock(out)
        head = _line("journal", json.dumps(belongs, sort_keys=True).encode())
        self.known: dict[str, bytes] = {}
        self.empty = True
        self._load(head)

    def find(self, item: Item) -> bytes | None:
        """What an earlier run measured of the item, if its files are as they were."""
        text = self.known.get(_key(item))
        found = text and Measured.from_bytes(text)
        if not found or any(stamp(path) != at for path, at in found.stamps.items()):
            return None
        found.read = 0  # by this run
        return found.to_bytes()

    def add(self, item: Item, measured: bytes) -> None:
        """Note what was measured; it survives the end of this process."""
        self.empty = False
        self.file.write(_line(_key(item), measured))
        self.file.flush()

    def close(self) -> None:
        """Let go of the file, which stays if it holds anything."""
        if self.empty:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):  # of what could not be written when the disk was full
            self.file.close()

    def remove(self) -> None:
        """Delete the file: the manifest holds what it held."""
        self.empty = True
        self.close()

    def _lock(self, out: Path) -> None:
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of those forked from it
        except (BlockingIOError, PermissionError):
            self.file.close()
            raise ValueError(
                f"{out}: another `ussl data index` is writing it; wait for it or write another -o"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def _load(self, head: bytes) -> None:
        self.file.seek(0)
        first = self.file.readline()
        if first != head:
            if self.file.readline():
                once(f"{self.path} is of another source, option, root or program: what it holds is read again")
            self.file.truncate(0)
            self.file.write(head)
            self.file.flush()
            return
        end = len(head)
        for line in self.file:
            if not line.endswith(b"\n"):  # torn: what is appended must not continue it
                self.file.truncate(end)
                break
            end += len(line)
            checksum, _, content = line.rstrip(b"\n").partition(b" ")
            if checksum == _checksum(content):
                key, _, measured = content.partition(b" ")
                self.known[key.decode()] = measured
        self.empty = not self.known


def _line(key: str, measured: bytes) -> bytes:
    content = key.encode() + b" " + measured
    return _checksum(content) + b" " + content + b"\n"


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def _key(item: Item) -> str:
    """Of what the listing says of the item: another label in a table is another item."""
    text = json.dumps([item.root, item.row], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
