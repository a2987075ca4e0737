"""Pictures that `ussl data pack` has decoded before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ussl.data import shards
from ussl.hookspecs import hookimpl
from ussl.parts import Source


class Pack(shards.InShards):
    """Pictures from the folder that `ussl data pack` wrote, at memory speed."""

    def __init__(self, *, path: Path | None = None) -> None:
        """Pictures of a pack.

        Args:
            path: the folder of the pack, in which pack.json lies.
        """
        super().__init__()
        self.path = path

    def rows(self) -> Iterator[dict[str, Any]]:
        """All columns of the manifest that was packed, and where each picture lies."""
        if self.path is None:
            raise ValueError("no data: write --data PACK, the folder that `ussl data pack` wrote")
        return iter(shards.rows(self.path))


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer packs."""
    return {"pack": Pack}
