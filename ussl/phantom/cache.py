"""Pictures kept in files of fixed records, each with its checksum: any number of processes may read and write them."""

from __future__ import annotations

import logging
import os
import zlib
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)
CHECK = 4  # bytes of a record that hold the checksum of the rest


def default_folder() -> Path:
    """Where this user's caches lie: $XDG_CACHE_HOME/ussl/phantom, or ~/.cache/ussl/phantom."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ussl" / "phantom"


class PictureCache:
    """Square grey pictures by file name and slot. A record half written, or never, fails its checksum: not there."""

    def __init__(self, folder: Path, size: int) -> None:
        """A cache of pictures (size, size); a folder that cannot be written is said in one line and not used."""
        self.folder, self.size = folder, size
        self.usable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)
        else:
            if not os.access(folder, os.W_OK):
                self._give_up(PermissionError("not writable"))

    def get(self, name: str, slot: int) -> np.ndarray | None:
        """The picture (H, W) of a slot, or None where it is not there whole."""
        count = self.size**2
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(slot * (count + CHECK))
                record = file.read(count + CHECK)
        except OSError:
            return None
        if len(record) < count + CHECK or zlib.crc32(record[:count]) != int.from_bytes(record[count:], "little"):
            return None
        return np.frombuffer(bytearray(record[:count]), np.uint8).reshape(self.size, self.size)

    def put(self, name: str, slot: int, picture: np.ndarray) -> None:
        """Keep a picture (H, W). Two processes that write one slot write the same bytes."""
        if not self.usable:
            return
        pixels = picture.tobytes()
        record = pixels + zlib.crc32(pixels).to_bytes(CHECK, "little")
        try:
            # neither truncated nor appended to: others may hold the file open
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(self.folder / name, flags, 0o644), "r+b", buffering=0) as file:
                file.seek(slot * len(record))
                file.write(record)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.usable = False
        reason = error.strerror or error
        log.warning("phantoms are not cached: %s: %s; set `cache` to a folder that is writable", self.folder, reason)
