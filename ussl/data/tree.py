"""A folder looked through once: its pictures, the masks that belong to them, and all else counted by kind."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ussl.data import pairing
from ussl.data.folders import PICTURES, extension, other, walk

_TABLES = frozenset({".csv", ".tsv", ".xlsx", ".xls", ".parquet"})
_MASKS = PICTURES | {".json"}  # files that may be a mask: see ussl.data.masks
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT = {name: split for split, names in _SPLITS.items() for name in names}


@dataclass(frozen=True)
class Tree:
    """What lies below a folder.

    pictures: paths below the folder, slashes between levels, in natural order.
    masks: {picture: {column: mask}} by the same paths, of files below folders named masks, labels or annotations.
    aside: how many other files there are, by kind, the masks among them.
    mask_folders: the names of the folders that masks lie in, as they are written.
    """

    pictures: list[str]
    masks: dict[str, dict[str, str]]
    aside: Counter[str]
    mask_folders: list[str]


def look_through(root: str | os.PathLike[str]) -> Tree:
    """Sort the files below `root` out, opening none. ValueError: a folder cannot be listed."""
    pictures, masks, aside = [], [], Counter[str]()
    for path in below(root):
        if pairing.is_mask(path) and extension(path) in _MASKS:
            masks.append(path)
        elif extension(path) in PICTURES:
            pictures.append(path)
        else:
            aside[kind(path)] += 1
    found, lost = pairing.pair(pictures, masks)
    for path in lost:
        aside["masks without a picture" if extension(path) in PICTURES else kind(path)] += 1
    aside["masks"] += len(masks) - len(lost)
    folders = {piece for path in masks for piece in path.split("/")[:-1] if piece.casefold() in pairing.FOLDERS}
    return Tree(pictures, found, +aside, sorted(folders))


def below(root: str | os.PathLike[str]) -> Iterator[str]:
    """The files under `root` in natural order, as paths below it with slashes."""
    top = os.path.join(os.fspath(root), "")
    for path in walk(root):
        yield path[len(top) :].replace(os.sep, "/")


def kind(path: str) -> str:
    """What a file that is no picture is counted as: tables, or by its extension."""
    return "tables" if extension(path) in _TABLES else other(path)


def split_of(folder: str) -> str | None:
    """train, val or test, of a folder named so (Training, valid, test_set); None = it is named otherwise."""
    return _SPLIT.get(re.sub(r"[ _-]*set$", "", folder.casefold().strip()))
