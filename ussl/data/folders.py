"""Looking through folders and tables as they come out of a zip file: other top folders, other letter case, spaces."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from ussl.data import manifest

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
    here = (folder for folder in downward(root, depth) if all(inside(folder, marker) for marker in markers))
    return next(here, None)


def downward(root: str | os.PathLike[str], depth: int = 2) -> Iterator[Path]:
    """`root` and the folders at most `depth` levels below it, level by level, in natural order."""
    level = [Path(root)]
    yield from level
    for _ in range(depth):
        level = [path for folder in level for path in _entries(folder) if path.is_dir()]
        yield from level


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


def header(path: str | os.PathLike[str]) -> list[str]:
    """The columns of a table, named by `word`, to tell tables apart; none where it has no such line."""
    line = _first_line(path)
    try:
        return [word(cell) for cell in next(csv.reader([line], delimiter=_delimiter(line)), [])]
    except csv.Error:
        return []


def records(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a table whose delimiter (`,` `;` or tab) its header tells, columns named by `word`.

    Raises:
        ValueError: as `table`, or two columns that would have one name.
    """
    rows = table(path, _delimiter(_first_line(path)))
    names: dict[str, str] = {}
    for name in rows[0]:
        if names.setdefault(word(name), name) != name:
            raise ValueError(f'{path}: its columns "{names[word(name)]}" and "{name}" would have one name; rename one')
    return [{short: row[name] for short, name in names.items() if short} for row in rows]


@lru_cache(4096)
def word(name: str) -> str:
    """A column or folder as the manifest names it: `Image_name` image_name, `pixel size(mm)` pixel_size_mm."""
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def stem(name: str | os.PathLike[str]) -> str:
    """What tables and files call a picture, to compare them: no folders, no end such as `.png`, small letters."""
    base = re.split(r"[/\\]", os.fspath(name))[-1].casefold().strip()
    return base.removesuffix(extension(base)) if extension(base) in PICTURES else base


def whole(text: str) -> str:
    """`12` of `12.0`, as spreadsheets with gaps write numbers that are names; any other text as it is."""
    return re.sub(r"(?<=[0-9])\.0+$", "", text)


def kept(cells: Mapping[str, str], *used: str) -> dict[str, str]:
    """What a table says besides the columns `used`, without empty cells; `table_` before names that mean another."""
    reserved = {*manifest.FIRST, *manifest.LAST, "rejected"}
    return {
        f"table_{name}" if name in reserved or name.startswith(manifest.FILES) else name: value
        for name, value in cells.items()
        if value and name not in used
    }


def between(path: str, folder: str | os.PathLike[str]) -> list[str]:
    """The folders from `folder` down to the file `path` below it, neither included, in small letters."""
    return path[len(os.path.join(folder, "")) :].casefold().split(os.sep)[:-1]


def other(path: str | os.PathLike[str]) -> str:
    """What a file is counted as that no reader has a use for: `.txt files`."""
    return f"{extension(path) or 'nameless'} files"


def unlike(folder: str | os.PathLike[str], name: str, expected: str) -> ValueError:
    """The error that `folder` is not the data set `name`: what was expected there, and what was found."""
    names = [path.name for path in _entries(Path(folder))]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    found = f"{', '.join(names[:6])}{more}" if names else "nothing"
    return ValueError(f"{folder}: not {name} as it is published: expected {expected}; found {found}")


def _first_line(path: str | os.PathLike[str]) -> str:
    """The first line that is not empty; a file that cannot be opened has none. `table` says what is wrong with it."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return next((line.rstrip("\n") for line in file if line.strip()), "")
    except OSError:
        return ""


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, in natural order."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / name for name in sorted(filter(_wanted, names), key=natural)]


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
