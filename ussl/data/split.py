"""`ussl data split`: pictures into train, val and test, by patient, with every class in its share."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ussl.data.balancing import balanced
from ussl.data.duplicates import near

Rows = Sequence[Mapping[str, Any]]
INSTEAD = ("organ", "source")  # what classes are where no picture has a label
NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def assign(
    rows: Rows,
    ratio: Sequence[float] = (3, 1, 1),
    stratify: str | None = "label",
    group: str | None = "patient",
    seed: int = 0,
) -> list[str]:
    """The split of each row: train, val and test for a ratio of three numbers, train and test for two.

    Never divided: rows of one source with the same `group`, equal digests, and near-duplicates by `hash`
    (`ussl.data.duplicates.near`; those flagged blank are no one's duplicates). Every class of `stratify`, and all
    together, have shares as near to the ratio as that allows, and every class is in every split. The same rows give the
    same split in any order and on any machine.

    Args:
        rows: of a manifest.
        ratio: of images, two or three numbers above 0.
        stratify: column of the classes; the organ, else the source, where no row has a label; None: all are one class.
        group: column that is never divided; rows without a value stand alone. None: no column.
        seed: another seed, another split.

    Raises:
        ValueError: it cannot be done; one line with the numbers.
    """
    shares = _shares(ratio)
    classes = _classes(rows, stratify)
    values = _values(rows, group)
    groups = _groups(rows, values)
    _check_feasible(classes if stratify in _filled(rows) else [None] * len(rows), groups, values, len(shares), group)
    names = sorted({kind for kind in classes if kind is not None})
    code = {name: i for i, name in enumerate(names)} | {None: len(names)}
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


def _filled(rows: Rows) -> list[str]:
    """The columns in which some row has a value, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, "")))


def _shares(ratio: Sequence[float]) -> list[float]:
    text = ":".join(f"{part:g}" for part in ratio)
    if len(ratio) not in NAMES or not all(0 < part < float("inf") for part in ratio):
        raise ValueError(f"ratio {text}: write two or three numbers above 0, such as 3:1:1 (train:val:test) or 4:1")
    return [part / sum(ratio) for part in ratio]


def _classes(rows: Rows, stratify: str | None) -> list[str | None]:
    column = classes_of(rows, stratify)
    return [None if column is None or row.get(column) in (None, "") else str(row[column]) for row in rows]


def _values(rows: Rows, group: str | None) -> list[str | None]:
    """What rows are grouped by: their source and their value of the column, as one text."""
    if group not in (None, "patient", *_filled(rows)):
        raise ValueError(f"group {group}: no row has it; the columns are {', '.join(_filled(rows))}")
    if group is None:
        return [None] * len(rows)
    return [None if row.get(group) in (None, "") else f"{row.get('source')}\0{row[group]}" for row in rows]


def _groups(rows: Rows, values: Sequence[str | None]) -> list[int]:
    """The number of each row's group, from 0: rows that values, digests or clusters of near-duplicates join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not rows:
        raise ValueError("there are no rows to split")
    blank = ["blank" in str(row.get("flag") or "").split(";") for row in rows]
    clusters = near([None if b else row.get("hash") for row, b in zip(rows, blank, strict=True)])
    ends = [(i, ("near", int(cluster))) for i, cluster in enumerate(clusters)]
    ends += [(i, ("value", value)) for i, value in enumerate(values) if value is not None]
    ends += [(i, ("digest", row["digest"])) for i, row in enumerate(rows) if row.get("digest")]
    code: dict[Any, int] = {}
    hubs = [len(rows) + code.setdefault(hub, len(code)) for _, hub in ends]
    size = len(rows) + len(code)
    graph = coo_array((np.ones(len(ends), dtype=bool), ([i for i, _ in ends], hubs)), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][: len(rows)], return_inverse=True)[1].tolist()


def _check_feasible(
    classes: Sequence[str | None], groups: Sequence[int], values: Sequence[str | None], parts: int, group: str | None
) -> None:
    """ValueError: fewer groups than splits, of all or of a class."""
    unit = f"{group or 'picture'}s"
    counts, own = Counter(groups), defaultdict(set)
    if len(counts) < parts:
        raise ValueError(
            f"{len(groups)} images of {len(counts)} {unit} (near-duplicates count as one) cannot be {parts} splits"
        )
    for kind, number in zip(classes, groups, strict=True):
        own[kind].add(number)
    for kind in sorted(kind for kind in own if kind is not None):
        if len(own[kind]) < parts:
            images = sum(1 for other in classes if other == kind)
            raise ValueError(
                f"{kind!r} has {images} images of {len(own[kind])} {unit} (near-duplicates count as one), which cannot "
                f"be in {parts} splits: leave it out, join it with another class, or write --stratify none"
            )


def _shuffled(rows: Rows, values: Sequence[str | None], groups: Sequence[int], seed: int) -> list[int]:
    """The groups in an order that seed and contents decide, not that of the rows nor where the pictures lie."""
    folder = os.path.commonpath([os.path.dirname(row["path"]) or "." for row in rows])
    keys: dict[int, str] = {}
    for row, value, number in zip(rows, values, groups, strict=True):
        key = value or row.get("digest") or f"{os.path.relpath(row['path'], folder)}\0{row.get('frame') or 0}"
        keys[number] = min(key, keys.get(number, key))
    return sorted(keys, key=lambda number: hashlib.sha256(f"{seed}\0{keys[number]}".encode()).digest())
