"""Near-duplicates among many pictures by their perceptual hashes, without comparing every picture with every other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from ussl.data.fingerprint import BITS

DISTANCE = 52  # differing bits of `BITS` up to which two pictures count as copies or as frames of one look
ORDERS = 64  # ways to sort the hashes
WINDOW = 16  # neighbours that a hash is compared with in each
_KEY = 32  # bits that each order sorts by
_MOST_WAITING = 1 << 22  # pairs that are kept before they are joined
_BLOCK = 8192  # hashes that are compared at once: what fits a core's cache
_SHIFT = 40  # bits for the position of a picture; above them the distance
_NONE = np.int64(1 << 62)
_HASH = re.compile(f"[0-9a-fA-F]{{{BITS // 4}}}")

Hits = tuple[np.ndarray, np.ndarray, np.ndarray]  # (n,) int64 the one, (n,) int64 the other, (n,) their distance


def near(hashes: Sequence[str | None], distance: int = DISTANCE) -> np.ndarray:
    """(n,) int64: the number of each picture's cluster, counted from 0 in order of appearance.

    A cluster holds what is joined by steps of at most `distance` bits; a picture without hash is one by itself. Pairs
    are found among the `WINDOW` neighbours in `ORDERS` sorted orders of the hashes (Charikar 2002, doi
    10.1145/509907.509965), so that cost grows as the number of pictures. Up to `WINDOW` different hashes all pairs
    are found; of a million, 99 of 100 at 40 bits and 8 of 10 at 52 (`benchmarks/duplicates.py`). Hashes that are
    equal are one, so black pictures and still loops cost nothing.

    Raises:
        ValueError: a hash that is not of `BITS` bits.
    """
    words, member = _distinct(hashes, np.zeros(len(hashes), dtype=np.int64))
    joined = np.append(_joined(words, distance), -1)  # the last: of pictures without hash
    lone = member < 0
    labels = np.where(lone, len(words) + np.cumsum(lone), joined[member])
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def nearest(
    hashes: Sequence[str | None],
    classes: np.ndarray,
    wanted: Callable[[np.ndarray, np.ndarray], np.ndarray],
    distance: int = DISTANCE,
) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the nearest of another class that counts, and how many bits differ.

    Each is compared with its neighbours in that class, as in `near`, on both sides: so that of a loop beside a test
    picture every frame finds it, however many they are.

    Args:
        hashes: of the pictures; None finds none.
        classes: (n,) int64 of each picture, such as its split.
        wanted: given classes (m,) of pictures and of others, says which (m,) bool of these count.
        distance: bits, at most.

    Returns (n,) int64 positions, -1 where there is none, and (n,) int64 bits, -1 likewise.
    """
    words, member = _distinct(hashes, classes)
    some, first = np.unique(member, return_index=True)
    first = first[some >= 0]  # the first picture of each distinct hash and class
    kind = classes[first]
    best = np.full(len(words) + 1, _NONE, dtype=np.int64)  # the last: of pictures without hash
    for target in np.unique(kind):
        there = np.flatnonzero(kind == target)
        asking = np.flatnonzero((kind != target) & wanted(kind, np.full_like(kind, target)))
        if len(asking):
            _compare(words[asking], words[there], first[there], best, asking)
    found = np.where(best[member] >> _SHIFT <= distance, best[member], _NONE)
    return np.where(found < _NONE, found & (1 << _SHIFT) - 1, -1), np.where(found < _NONE, found >> _SHIFT, -1)


def _compare(ours: np.ndarray, theirs: np.ndarray, named: np.ndarray, best: np.ndarray, places: np.ndarray) -> None:
    """Lower `best` at the places of our hashes to the distance, above the name, of their neighbours among theirs."""
    for chosen in _orders():
        mine, yours = _keys(ours, chosen), _keys(theirs, chosen)
        order, other = np.argsort(mine, kind="stable"), np.argsort(yours, kind="stable")
        at = np.searchsorted(yours[other], mine[order])
        columns, names = np.ascontiguousarray(theirs[other].T), named[other]
        for start in range(0, len(order), _BLOCK):
            part, near_to = order[start : start + _BLOCK], at[start : start + _BLOCK]
            own, least = np.ascontiguousarray(ours[part].T), best[places[part]]
            for step in range(-min(WINDOW, len(other)), min(WINDOW, len(other))):
                there = (near_to + step).clip(0, len(other) - 1)
                bits = np.bitwise_count(own ^ columns[:, there]).sum(0, dtype=np.int64)
                np.minimum(least, bits << _SHIFT | names[there], out=least)
            best[places[part]] = least


def _distinct(hashes: Sequence[str | None], classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, BITS / 64) uint64 hashes, each once a class, sorted; (n,) int64 which of them a picture has, -1 for none."""
    given = np.array([value is not None for value in hashes], dtype=bool)
    known = [value for value in hashes if value is not None]
    for value in known:
        if not _HASH.fullmatch(value):
            raise ValueError(f"hash {value!r}: not {BITS // 4} hexadecimal digits; index the pictures again")
    raw = bytes.fromhex("".join(known))
    words = np.frombuffer(raw, dtype=">u8").astype(np.uint64).reshape(-1, BITS // 64)
    table = np.column_stack([words, classes[given].astype(np.uint64)])
    member = np.full(len(hashes), -1, dtype=np.int64)
    order = np.lexsort(table.T[::-1])
    new = np.ones(len(order), dtype=bool)
    new[1:] = (table[order[1:]] != table[order[:-1]]).any(1)
    member[np.flatnonzero(given)[order]] = np.cumsum(new) - 1
    return words[order[new]], member


def _hits(words: np.ndarray, distance: int) -> Iterator[Hits]:
    """Pairs of at most `distance` bits among the neighbours of every order; a pair may come several times."""
    for chosen in _orders():
        order = np.argsort(_keys(words, chosen), kind="stable")
        for start in range(0, len(order), _BLOCK):
            part = order[start : start + _BLOCK + WINDOW]
            columns = np.ascontiguousarray(words[part].T)
            for step in range(1, min(WINDOW + 1, len(part))):
                ones = min(_BLOCK, len(part) - step)
                bits = np.bitwise_count(columns[:, :ones] ^ columns[:, step : step + ones]).sum(0, dtype=np.uint16)
                hit = np.flatnonzero(bits <= distance)
                if len(hit):
                    yield part[hit], part[hit + step], bits[hit].astype(np.int64)


@cache
def _orders() -> list[list[int]]:
    """The bits that each order sorts by, drawn in a way that is the same on every machine."""

    def drawn(order: int) -> list[int]:
        return sorted(range(BITS), key=lambda bit: hashlib.sha256(f"{order}/{bit}".encode()).digest())[:_KEY]

    return [drawn(order) for order in range(ORDERS)]


def _keys(words: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """(m,) uint32 numbers of the chosen bits of each hash."""
    keys = np.zeros(len(words), dtype=np.uint32)
    for bit in chosen:
        keys = keys << np.uint32(1) | (words[:, bit // 64] >> np.uint64(bit % 64) & np.uint64(1)).astype(np.uint32)
    return keys


def _joined(words: np.ndarray, distance: int) -> np.ndarray:
    """(m,) labels, equal where steps of pairs lead from one hash to another."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels = np.arange(len(words))
    pairs = [np.empty((2, 0), dtype=np.int64)]
    waiting = 0

    def join() -> np.ndarray:
        one, other = np.concatenate(pairs, axis=1)
        graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(words), len(words)))
        return connected_components(graph, directed=False)[1][labels]

    for one, other, _ in _hits(words, distance):
        ends = labels[np.stack([one, other])]
        new = ends[:, ends[0] != ends[1]]
        pairs.append(new)
        waiting += new.shape[1]
        if waiting > _MOST_WAITING:
            labels, pairs, waiting = join(), pairs[:1], 0
    return join()
