"""What the sources of `ussl data index` list, each file once, before any is opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ussl.data.accounts import counted
from ussl.data.measure import Item, Row, frame, plain
from ussl.data.merging import Before
from ussl.errors import RunFailed
from ussl.layers import Layer
from ussl.notice import once
from ussl.parts import Source

GOES_ON = "what was read is kept, and the same command goes on from there"


@dataclass
class Root:
    """A folder or file that was named, and what reads it; path None where the source needs no data."""

    path: str | None
    source: Source
    written: Layer  # its options, all of them

    def __post_init__(self) -> None:
        self.identity = self._identity()

    def check(self) -> None:
        """RunFailed when the folder is no longer there, so that its files are not to blame."""
        if self.identity is not None and self._identity() != self.identity:
            raise RunFailed(f"{self.path}: is no longer there; {GOES_ON}")

    def _identity(self) -> tuple[int, int] | None:
        if self.path is None:
            return None
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino if os.path.isdir(self.path) else 0


@dataclass
class Found:
    """What the sources list, each picture or file once."""

    items: list[Item] = field(default_factory=list)
    twice: int = 0  # items that were met before
    aside: Counter[str] = field(default_factory=Counter)


def list_all(roots: Sequence[Root], name: str, before: Before) -> Found:
    """Everything that the sources list. ValueError: a folder that is not what the source reads, or holds nothing."""
    found, known = Found(), before.files()
    met: set[tuple[str, int]] = set()
    owner: dict[tuple[str, str], int] = {}  # of patients: the first root
    shared: set[tuple[str, str]] = set()
    for number, root in enumerate(roots):
        listed = 0
        for row in _listed(root, name):
            path = plain({"path": row["path"]})["path"]
            listed += 1
            if (path, frame(row)) in met:
                found.twice += 1
                continue
            met.add((path, frame(row)))
            if row.get("patient"):
                patient = str(row.get("source")), str(row["patient"])
                if owner.setdefault(patient, number) != number:
                    shared.add(patient)
            found.items.append(Item(number, row, known.get(path)))
        aside = getattr(root.source, "aside", Counter())
        found.aside.update(aside)
        if not listed:
            raise ValueError(
                f"{root.path or name}: {name} finds no pictures there; found {counted(aside) or 'nothing'}"
            )
    if shared:
        once(
            f"{len(shared)} patients or videos, such as {min(shared)[1]}, are in several roots and count as the same; "
            "where they are not, index one root after the other with --add and a --source name of its own"
        )
    return found


def _listed(root: Root, name: str) -> Iterator[Row]:
    """What one source lists; what it cannot is a ValueError."""
    try:
        for row in root.source.listing():
            if not row.get("path"):
                raise ValueError(f"source ({name}) lists a picture without a path: {dict(row)}")
            yield dict(row)
    except OSError as error:
        raise ValueError(f"{error.filename or root.path}: {(error.strerror or str(error)).lower()}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:  # a plugin's fault
        raise ValueError(f"source ({name}): {type(error).__name__}: {error}") from error
