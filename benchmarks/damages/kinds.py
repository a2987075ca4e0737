"""What a kind of damaged file is, and what the functions that make such files have at hand."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

INDEXED = "indexed"
EMPTY = "rejected: the file is empty"
KINDS: list[Kind] = []


@dataclass
class Sample:
    """One file to be made.

    path: where it will lie; a kind of several formats or of odd names changes it.
    picture: (H, W) uint8 from 0 to 255, what it shows unless `shown` says otherwise.
    draw: of every random choice, so that equal files are made every time.
    number: of the file among those of its kind; it chooses where a kind has variants.
    shown: what must be read, exactly; None = only of its size is certain.
    """

    path: Path
    picture: np.ndarray
    draw: np.random.Generator
    number: int
    shown: np.ndarray | None = None

    def file(self, form: str, picture: np.ndarray | None = None, **options: Any) -> bytes:
        """The picture, or another, as Pillow saves it."""
        return saved(Image.fromarray(self.picture if picture is None else picture), form, **options)

    def cut(self, data: bytes, first: int = 1, last: int = 1) -> bytes:
        """The data without its end, of which `first` bytes stay and `last` bytes go at least."""
        return data[: self.draw.integers(first, len(data) - last + 1)]

    def flip(self, data: bytes, first: int = 0, last: int | None = None, most: int = 8) -> bytes:
        """The data with 1 to `most` bytes changed, all from `first` on and before `last`."""
        changed = bytearray(data)
        for at in self.draw.integers(first, len(data) if last is None else last, self.draw.integers(1, most + 1)):
            changed[at] ^= int(self.draw.integers(1, 256))
        return bytes(changed)

    def noise(self, length: int) -> bytes:
        """Random bytes."""
        return self.draw.bytes(length)

    def one_of(self, *variants: Any) -> Any:
        """The variants in turn, file by file."""
        return variants[self.number % len(variants)]


Make = Callable[[Sample], bytes | None]


@dataclass(frozen=True)
class Kind:
    """A kind of file: `make` gives its bytes, or None when it has put something at `path` itself.

    source: the plugin that reads it.
    expected: a regular expression that each of its outcomes matches as a whole. An outcome is `rejected: reason`, or
        `indexed`, with ` turned` or its size where it is not the size of the picture, ` altered` where the pixels are
        not those of `shown`, and ` blank` where it is flagged so.
    skip: why it cannot be tried here; empty = it can.
    """

    name: str
    source: str
    end: str
    expected: str
    make: Make = field(repr=False)
    skip: str = ""

    def seed(self, number: int) -> list[int]:
        """Of the random choices of a file."""
        return [zlib.crc32(f"{self.source} {self.name}".encode()), number]


def damage(source: str, *expected: str, end: str, skip: str = "") -> Callable[[Make], Make]:
    """Make a function a kind of its name. `end`: of the names of its files, which it may extend."""

    def register(make: Make) -> Make:
        name = make.__name__.replace("_", " ").strip()
        KINDS.append(Kind(name, source, end, "|".join(expected), make, skip))
        return make

    return register


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """An image as a file of a format of Pillow."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def as_root() -> str:
    """Why files without permissions cannot be tried; empty = they can."""
    return "root reads every file" if os.geteuid() == 0 else ""
