"""Looking through folders and tables as they come out of a zip file: other top folders, other letter case, spaces."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})


def walk(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Files under `folder` in natural order (2 before 10), hidden ones and `__MACOSX` left out.

    Linked folders are followed, each once. ValueError: a folder cannot be listed.
    """
    visited = set()

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: {(error.strerror or 'cannot be listed').lower()}")

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(filter(_wanted, folders), key=natural)
        yield from (os.path.join(parent, file) for file in sorted(filter(_wanted, files), key=natural))


def natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """A key that sorts a2 before a10, and never calls two names equal."""
    pieces = re.split("([0-9]+)", name.casefold())
    return [(text, int(number)) for text, number in zip(pieces[::2], [*pieces[1::2], "0"], strict=True)], name


def extension(path: str | os.PathLike[str]) -> str:
    """The end of a file's name from its last dot, in small letters."""
    return os.path.splitext(path)[1].lower()


def locate(root: str | os.PathLike[str], *markers: str, depth: int = 2) -> Path | None:
    """`root`, or the first folder at most `depth` levels below it, that holds all `markers`; None = there is none.

    A marker is a file or folder, with slashes where it lies deeper, in any letter case.
    """
    level = [Path(root)]
    for _ in range(depth + 1):
        for folder in level:
            if all(inside(folder, marker) for marker in markers):
                return folder
        level = [path for folder in level for path in _entries(folder) if path.is_dir()]
    return None


def inside(folder: str | os.PathLike[str], name: str) -> Path | None:
    """The file or folder `name` (may have slashes) in `folder`, in any letter case; None = it is not there."""
    path = Path(folder)
    for piece in name.split("/"):
        exact = path / piece
        found = exact if exact.exists() else None
        if found is None and path.is_dir():
            found = next((entry for entry in _entries(path) if entry.name.lower() == piece.lower()), None)
        if found is None:
            return None
        path = found
    return path


def table(path: str | os.PathLike[str], delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a delimited table with a header, names and cells stripped; empty lines are left out.

    Raises:
        ValueError: no such file, not text, no rows, or a row of another length; names the file.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter=delimiter)]
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table in UTF-8 ({error})") from None
    lines = [line for line in lines if any(line)]
    if len(lines) < 2:
        raise ValueError(f"{path}: the table has no rows")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(lines[0]):
            raise ValueError(f"{path}: row {number} has {len(line)} cells under {len(lines[0])} columns")
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, in natural order."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / name for name in sorted(filter(_wanted, names), key=natural)]


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
