"""Pictures from a folder or from a manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data import manifest, pictures
from ussl.data.folders import PICTURES, extension, walk
from ussl.hookspecs import hookimpl
from ussl.parts import Source


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
    for path in walk(folder):
        if extension(path) in PICTURES:
            paths.append(path)
        else:
            others[extension(path) or "no extension"] += 1
    if not paths:
        found = ", ".join(f"{count} {end}" for end, count in others.most_common(5)) or "nothing"
        raise ValueError(f"{folder}: no pictures ({' '.join(sorted(PICTURES))}) and no manifest; found {found}")
    return [{"path": path, "source": folder.name} for path in paths]


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer folders and manifests of pictures."""
    return {"images": Images}
