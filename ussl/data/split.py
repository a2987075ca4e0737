"""`ussl data split`: pictures into train, val and test, by patient, with every class in its share."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data import columns, manifest
from ussl.data.balancing import balanced
from ussl.data.completing import complete
from ussl.data.duplicates import near

Row = Mapping[str, Any]
Rows = Sequence[Row]
INSTEAD = ("organ", "source")  # what classes are where no picture has a label
NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def command(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Split the pictures of `args.manifest`, write it with a column `split`, and say what came of it."""
    path = columns.located(args.manifest)
    out = _out(args.out, path)
    ratio = _ratio(args.ratio)
    rows = manifest.read(path)
    stratify, group = _column(rows, "stratify", args.stratify, "label"), _column(rows, "group", args.group, "patient")
    there = sum(1 for row in rows if row.get("split"))
    if there and not args.overwrite:
        raise ValueError(
            f"{path}: {there:,} of {len(rows):,} pictures have a split already, perhaps the published one: "
            "--overwrite makes another"
        )
    for i, why in complete(rows, args.workers).items():
        raise ValueError(
            f"{rows[i]['path']}: {why}; its copies cannot be kept beside it. `ussl data audit --drop` leaves out what "
            "cannot be read"
        )
    splits = assign(rows, ratio, stratify, group, args.seed)
    manifest.write(({**row, "split": split} for row, split in zip(rows, splits, strict=True)), out)
    for line in _lines(rows, splits, stratify, group):
        print(line)
    print(f"written: {out}")
    return 0


def assign(
    rows: Rows,
    ratio: Sequence[float] = (3, 1, 1),
    stratify: str | None = "label",
    group: str | None = "patient",
    seed: int = 0,
) -> list[str]:
    """The split of each row: train, val and test for a ratio of three numbers, train and test for two.

    Never divided: rows of one source with the same `group`, frames without `group` of one file, equal digests, and
    near-duplicates by `hash` (`ussl.data.duplicates.near`; those flagged blank are no one's duplicates). Every class
    of `stratify`, and all together, have shares as near to the ratio as that allows, and every class is in every
    split where it can be. The same rows give the same split in any order and on any machine.

    Args:
        rows: of a manifest.
        ratio: of images, two or three numbers above 0.
        stratify: column of the classes; the organ, else the source, where no row has a label; None: all are one class.
        group: column that is never divided; rows without a value stand alone. None: no column.
        seed: another seed, another split.

    Raises:
        ValueError: it cannot be done; one line with the numbers.
    """
    if not rows:
        raise ValueError("there are no rows to split")
    shares = _shares(ratio)
    classes = _classes(rows, stratify)
    values = _values(rows, group)
    groups = _groups(rows, values, group)
    asked = classes_of(rows, stratify) == stratify
    _check_feasible(classes if asked else [None] * len(rows), groups, len(shares), group)
    code: dict[str | None, int] = {None: 0}
    code |= {name: i for i, name in enumerate(sorted({kind for kind in classes if kind is not None}), 1)}
    members: list[Counter[int]] = [Counter() for _ in range(max(groups) + 1)]
    for number, kind in zip(groups, classes, strict=True):
        members[number][code[kind]] += 1
    order = _shuffled(rows, values, groups, seed)
    parts = balanced([dict(sorted(members[number].items())) for number in order], shares)
    part = dict(zip(order, parts, strict=True))
    return [NAMES[len(shares)][part[number]] for number in groups]


def classes_of(rows: Rows, stratify: str | None = "label") -> str | None:
    """The column that `assign` takes the classes from. ValueError: there is no such column."""
    there = _filled(rows)
    if stratify is None or stratify in there:
        return stratify
    if stratify == "label":
        return next((name for name in INSTEAD if name in there), None)
    raise ValueError(f"stratify {stratify}: no row has it; the columns are {', '.join(there)}")


def _said(row: Row, column: str | None) -> str | None:
    """What a row says in a column, as text; None for nothing, as which NaN counts."""
    value = row.get(column) if column else None
    return None if value is None or value == "" or value != value else str(value)


def _filled(rows: Rows) -> list[str]:
    """The columns in which some row has a value, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if any(_said(row, name) is not None for row in rows)]


def _shares(ratio: Sequence[float]) -> list[float]:
    text = ":".join(f"{part:g}" for part in ratio)
    if len(ratio) not in NAMES or not all(0 < part < float("inf") for part in ratio):
        raise ValueError(f"ratio {text}: write two or three numbers above 0, such as 3:1:1 (train:val:test) or 4:1")
    return [part / sum(ratio) for part in ratio]


def _classes(rows: Rows, stratify: str | None) -> list[str | None]:
    column = classes_of(rows, stratify)
    return [_said(row, column) for row in rows]


def _values(rows: Rows, group: str | None) -> list[str | None]:
    """What rows are grouped by: their source and their value of the column, as one text."""
    if group not in (None, "patient", *(there := _filled(rows))):
        raise ValueError(f"group {group}: no row has it; the columns are {', '.join(there)}")
    return [None if (value := _said(row, group)) is None else f"{row.get('source')}\0{value}" for row in rows]


def _groups(rows: Rows, values: Sequence[str | None], group: str | None) -> list[int]:
    """The number of each row's group, from 0: rows that values, files, digests or near-duplicates join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shown = [None if "blank" in str(row.get("flag") or "").split(";") else row.get("hash") for row in rows]
    ends: list[tuple[int, tuple[str, Any]]] = [(i, ("near", number)) for i, number in enumerate(near(shown).tolist())]
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is not None:
            ends.append((i, ("value", value)))
        elif group is not None:
            ends.append((i, ("file", str(row["path"]))))
        if row.get("digest"):
            ends.append((i, ("digest", row["digest"])))
    code: dict[tuple[str, Any], int] = {}
    hubs = [len(rows) + code.setdefault(hub, len(code)) for _, hub in ends]
    size = len(rows) + len(code)
    graph = coo_array((np.ones(len(ends), dtype=bool), ([i for i, _ in ends], hubs)), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][: len(rows)], return_inverse=True)[1].tolist()


def _check_feasible(classes: Sequence[str | None], groups: Sequence[int], parts: int, group: str | None) -> None:
    """ValueError: fewer groups than splits, of all or of a class."""
    unit = f"{group or 'picture'}s"
    images, own = Counter(classes), defaultdict(set)
    if (count := len(set(groups))) < parts:
        raise ValueError(f"{len(groups)} images of {count} {unit} ({_ALIKE}) cannot be divided into {parts} splits")
    for kind, number in zip(classes, groups, strict=True):
        own[kind].add(number)
    for kind in sorted(kind for kind in own if kind is not None):
        if len(own[kind]) < parts:
            raise ValueError(
                f"{kind!r} has {images[kind]} images of {len(own[kind])} {unit} ({_ALIKE}) and cannot be in {parts} "
                "splits: leave it out, join it with another class, or write --stratify none"
            )


_ALIKE = "those with near-duplicates in common count as one"


def _shuffled(rows: Rows, values: Sequence[str | None], groups: Sequence[int], seed: int) -> list[int]:
    """The groups in an order that seed and contents decide, not that of the rows nor where the pictures lie."""
    paths = [os.path.abspath(row["path"]) for row in rows]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    keys: dict[int, str] = {}
    for row, path, value, number in zip(rows, paths, values, groups, strict=True):
        key = value or row.get("digest") or f"{os.path.relpath(path, folder)}\0{row.get('frame') or 0}"
        keys[number] = min(key, keys.get(number, key))
    return sorted(keys, key=lambda number: hashlib.sha256(f"{seed}\0{keys[number]}".encode()).digest())


def _out(given: str | None, path: Path) -> Path:
    """Where to write. ValueError: not the name of a manifest."""
    out = Path(os.path.abspath(given or path.with_name(f"{path.stem}.split.parquet")))
    if out.suffix.lower() not in manifest.SUFFIXES:
        raise ValueError(f"--out {given}: write a name with .parquet or .csv at its end")
    if out.is_dir():
        raise ValueError(f"--out {given or out}: this is a folder")
    return out


def _ratio(text: str) -> tuple[float, ...]:
    """The numbers of a ratio such as 3:1:1 or 0.7:0.15:0.15. ValueError: it is not one."""
    try:
        ratio = tuple(float(part) for part in text.split(":"))
        _shares(ratio)
    except ValueError:
        raise ValueError(
            f"--ratio {text}: write two or three numbers above 0, such as 3:1:1 (train:val:test) or 4:1"
        ) from None
    return ratio


def _column(rows: Rows, option: str, given: str | None, default: str) -> str | None:
    """The column that an option names. ValueError: no row has a value there, though it was asked for."""
    if given is None:
        return default
    if given == "none":
        return None
    if given not in (there := _filled(rows)):
        raise ValueError(f"--{option} {given}: no row has such a column; there are {', '.join(there)}; or write none")
    return given


def _lines(rows: Rows, splits: Sequence[str], stratify: str | None, group: str | None) -> Iterator[str]:
    """What classes and groups were, and images and groups of every class in each split."""
    from ussl.data.summary import aligned

    column, values = classes_of(rows, stratify), _values(rows, group)
    if column != stratify:
        instead = f"the classes are those of the column {column}" if column else "all are one class"
        yield f"no picture has a {stratify}: {instead}"
    if group and (alone := values.count(None)):
        yield f"{alone:,} pictures have no {group}: each stands alone, but for its copies and the frames of its file"
    images: Counter[tuple[str | None, str]] = Counter()
    own: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    classes = [_said(row, column) or f"no {column}" for row in rows]
    for row, kind, split, value in zip(rows, classes, splits, values, strict=True):
        for line in (kind, None):  # None: of all
            images[line, split] += 1
            own[line, split].add(value or str(row["path"]))
    parts = [part for part in NAMES[3] if part in splits]
    table = [[f"images ({group}s)" if group else "images", *parts]]
    listed: list[str | None] = [*sorted(set(classes))] if column else []
    for line in [*listed, None]:
        cells = [(images[line, part], len(own[line, part])) for part in parts]
        table.append([line or "all", *(f"{n:,} ({m:,})" if group else f"{n:,}" for n, m in cells)])
    yield from aligned(table, 1)
