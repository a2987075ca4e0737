"""What samplers share: keyed orders, columns as numbers, exact shares, and turns that pass from epoch to epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ussl.data.schedule import Rows
from ussl.notice import once

NOT_SAID = "not said"  # the organ of rows that have none
_MEMBERS = (0, 1)  # keys the order of a group's rows; epochs have keys of one number
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio


def numbers(count: int, seed: int, *key: int) -> np.ndarray:
    """(count,) uint64, random by `seed` and `key` alone.

    Raw Philox numbers (Salmon et al. 2011, doi 10.1145/2063384.2063405), which NumPy keeps as they are between
    versions; it does not promise that of `permutation`.
    """
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=key)
    return np.random.Philox(sequence).random_raw(count)


def shuffled(count: int, seed: int, *key: int) -> np.ndarray:
    """(count,) int64: the numbers from 0 in an order that `seed` and `key` decide."""
    return np.argsort(numbers(count, seed, *key), kind="stable")


def coded(rows: Rows, column: str) -> tuple[np.ndarray, list[str]]:
    """Which value of a column each row has: (n,) int64 places in the list of values, -1 where it has none."""
    cells = [row.get(column) for row in rows]
    names: dict[str, int] = {}
    places = {cell: -1 if _missing(cell) else names.setdefault(str(cell), len(names)) for cell in dict.fromkeys(cells)}
    return np.fromiter(map(places.__getitem__, cells), np.int64, len(cells)), list(names)


def required(rows: Rows, column: str, instead: str = "") -> tuple[np.ndarray, list[str]]:
    """As `coded`; ValueError when no row has a value. `instead`: what else the user might write."""
    codes, names = coded(rows, column)
    if not names:
        known = dict.fromkeys(name for row in rows for name, cell in row.items() if not _missing(cell))
        raise ValueError(
            f"the sampler needs the column `{column}`, and no row has it; "
            f"the columns there are: {', '.join(known) or 'none'}{instead}"
        )
    return codes, names


def groups(rows: Rows, column: str) -> np.ndarray:
    """Which rows belong together: (n,) int64, one number for a value of `column` within a source.

    A row without a value is a group of its own; a note says how many there are.
    """
    codes, _ = coded(rows, column)
    sources, names = coded(rows, "source")
    alone = codes < 0
    joint = codes * (len(names) + 1) + sources + 1
    joint[alone] = joint.max(initial=0) + 1 + np.arange(alone.sum())
    if alone.any():
        once(f"{alone.sum():,} of {len(rows):,} images have no {column}: each counts as a {column} of its own")
    return np.unique(joint, return_inverse=True)[1]


def drawn(rows: Rows, group: np.ndarray, column: str | None, draw: int) -> np.ndarray:
    """(groups,) uint64, random by `draw` and by what each group is: other rows, or another order, change nothing.

    A group of `groups` is known by its source and value; a row by itself by its digest, else by the end of its path.
    """
    first = np.unique(group, return_index=True)[1].tolist()
    found = [_known(rows[i], column) for i in first]
    keys = (hashlib.blake2b(f"{draw}\0{known}".encode(), digest_size=8).digest() for known in found)
    return np.frombuffer(b"".join(keys), dtype="<u8")


def _known(row: Mapping[str, Any], column: str | None) -> str:
    if column is not None and not _missing(row.get(column)):
        return f"{row.get('source')}\0{row[column]}"
    if digest := row.get("digest"):
        return str(digest)
    return f"{'/'.join(str(row.get('path')).split('/')[-2:])}\0{row.get('frame') or 0}"


def apportioned(weights: np.ndarray, total: int) -> np.ndarray:
    """`total` in whole numbers in proportion to `weights`, by largest remainder; the first of equals is favoured."""
    exact = weights * total / weights.sum()
    counts = np.floor(exact + 1e-9).astype(np.int64)
    neediest = np.argsort(np.round(counts - exact, 9), kind="stable")
    counts[neediest[: total - counts.sum()]] += 1
    return counts


def rotated(groups: np.ndarray, counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Of every group g, `counts[g]` rows for an epoch: (counts.sum(),) int64 row numbers, group by group.

    A group's rows stand in a random order; each epoch goes on where the last one stopped, and over from the start:
    no row is left out twice before all have come, none comes twice an epoch unless the group is smaller than its
    count. When an epoch ends with the group's last row, the next one shuffles the group anew.
    """
    sizes = np.bincount(groups, minlength=len(counts))
    period = sizes // np.gcd(sizes, counts)  # epochs until one ends with the last row
    lap = (epoch // period).astype(np.uint64)
    keys = _mixed(numbers(len(groups), seed, *_MEMBERS) + lap[groups] * _GOLDEN)
    return stretches(np.lexsort((keys, groups)), sizes, epoch % period * counts % sizes, counts)


def stretches(members: np.ndarray, sizes: np.ndarray, start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of `members`, groups of `sizes` one after the other, `counts` of each from `start` on, round and round."""
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (np.repeat(start, counts) + within) % np.repeat(sizes, counts)
    return members[np.repeat(np.cumsum(sizes) - sizes, counts) + place]


def _missing(cell: Any) -> bool:
    return cell is None or cell == "" or cell != cell  # NaN differs from itself


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Unrelated numbers for numbers that differ a little (splitmix64, doi 10.1145/2660193.2660195)."""
    x = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
