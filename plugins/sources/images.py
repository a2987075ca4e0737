"""Pictures from a folder or from a manifest."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data import manifest, pictures
from ussl.hookspecs import hookimpl
from ussl.parts import Source

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})


class Images(Source):
    """PNG, JPEG, TIFF and BMP pictures: all of a folder, or those that a manifest (.csv, .parquet) lists.

    A folder with a manifest.csv or manifest.parquet at its top is read through it, so that masks lying beside the
    pictures are not taken for pictures. Of any other folder all pictures are taken, in natural order (2 before 10),
    hidden files and `__MACOSX` left out; `source` is then the folder's name, and organs and labels are not guessed.
    """

    def __init__(self, *, path: Path | None = None) -> None:
        self.path = path

    def rows(self) -> Iterator[dict[str, Any]]:
        if self.path is None:
            raise ValueError("no data: write --data FOLDER, or --data MANIFEST (.csv or .parquet)")
        path = Path(os.path.abspath(self.path))
        if path.is_dir():
            table = _manifest_of(path)
            return iter(_listing(path) if table is None else manifest.read(table))
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if path.suffix.lower() not in manifest.SUFFIXES:
            raise ValueError(f"{path}: data is a folder of pictures or a manifest (.csv or .parquet), not this file")
        return iter(manifest.read(path))

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        return pictures.read(row["path"], row.get("frame") or 0)


def _manifest_of(folder: Path) -> Path | None:
    """The manifest at the top of a folder."""
    found = [folder / f"manifest{suffix}" for suffix in manifest.SUFFIXES if (folder / f"manifest{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: holds {found[0].name} and {found[1].name}; write which: --data {found[0]}")
    return found[0] if found else None


def _listing(folder: Path) -> list[dict[str, Any]]:
    """One row a picture under `folder`, without opening any."""
    paths, others = [], Counter[str]()
    for path in _walk(folder):
        extension = os.path.splitext(path)[1].lower()
        if extension in EXTENSIONS:
            paths.append(path)
        else:
            others[extension or "no extension"] += 1
    if not paths:
        found = ", ".join(f"{count} {extension}" for extension, count in others.most_common(5)) or "nothing"
        raise ValueError(f"{folder}: no pictures ({' '.join(sorted(EXTENSIONS))}) and no manifest; found {found}")
    return [{"path": path, "source": folder.name} for path in paths]


def _walk(folder: Path) -> Iterator[str]:
    """Files under `folder` in natural order; linked folders are followed, each once."""
    visited = set()

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: {(error.strerror or 'cannot be listed').lower()}")

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(filter(_wanted, folders), key=_natural)
        yield from (os.path.join(parent, file) for file in sorted(filter(_wanted, files), key=_natural))


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """A key that sorts a2 before a10, and never calls two names equal."""
    pieces = re.split("([0-9]+)", name.casefold())
    return [(text, int(number)) for text, number in zip(pieces[::2], [*pieces[1::2], "0"], strict=True)], name


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer folders and manifests of pictures."""
    return {"images": Images}
