"""Groups into parts of given shares, so that every class has these shares as nearly as groups allow."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

ROUNDS = 10  # through all groups, at most, to move single ones
ATTEMPTS = 16  # with other orders, at most, where a part lacks a class
_GROUP = 0.01  # what the share of groups counts beside that of members
_ABSENT = 1.0  # what it costs that a class is absent from a part, beside squared errors of shares


def balanced(groups: Sequence[Mapping[int, int]], shares: Sequence[float]) -> list[int]:
    """The part of each group: a mapping from class to how many of it the group holds.

    Large groups go first, each to where the squares of what shares of classes, and of all, are off by grow least; then
    single groups move, small ones first, while that gains, for which a class that a part lacks counts most. Where
    some part still lacks a class, other orders are tried. The order of `groups` decides between equals.
    """
    best = _settled(groups, shares, sorted(range(len(groups)), key=lambda i: -sum(groups[i].values())), 0.0)
    for attempt in range(ATTEMPTS):
        if not best.lacking():
            break
        mixed = sorted(range(len(groups)), key=lambda i: hashlib.sha256(f"{attempt}/{i}".encode()).digest())
        best = min(best, _settled(groups, shares, mixed, _ABSENT), key=_Books.lacking)
    return best.part


def _settled(groups: Sequence[Mapping[int, int]], shares: Sequence[float], order: list[int], absence: float) -> _Books:
    """Groups put into parts in an order, and moved until nothing gains; absence: its cost before they move."""
    books = _Books(groups, shares)
    books.absence = absence
    for i in order:
        books.move(i, min(range(len(shares)), key=lambda part: books.gain(i, part)))
    books.absence = _ABSENT
    for _ in range(ROUNDS):
        if not sum(_improve(books, i) for i in reversed(order)):
            break
    return books


class _Books:
    """How many of each class, of groups with that class, and of all (class -1), each part holds. part: of each group.

    Groups count as their members do: else the large ones would all lie in the largest part.
    """

    def __init__(self, groups: Sequence[Mapping[int, int]], shares: Sequence[float]) -> None:
        self.groups = [
            [*group.items(), *((("groups", kind), 1) for kind in group), (-1, sum(group.values()))] for group in groups
        ]
        self.total: dict[Hashable, int] = {}
        for group in self.groups:
            for kind, count in group:
                self.total[kind] = self.total.get(kind, 0) + count
        self.scale = {kind: n**2 / (_GROUP if isinstance(kind, tuple) else 1) for kind, n in self.total.items()}
        self.wanted = [{kind: share * count for kind, count in self.total.items()} for share in shares]
        self.held = [dict.fromkeys(self.total, 0) for _ in shares]
        self.part = [-1] * len(groups)
        self.absence = 0.0

    def lacking(self) -> int:
        """How often a part lacks a class that has groups enough for all parts."""
        enough = [key[1] for key, n in self.total.items() if isinstance(key, tuple) and n >= len(self.held)]
        return sum(1 for held in self.held for kind in enough if held[kind] == 0)

    def move(self, i: int, part: int) -> None:
        """Put group i into a part, out of the one it is in."""
        for kind, count in self.groups[i]:
            if self.part[i] >= 0:
                self.held[self.part[i]][kind] -= count
            self.held[part][kind] += count
        self.part[i] = part

    def gain(self, i: int, part: int) -> float:
        """What the error grows by when group i, from nowhere, comes into a part."""
        held, wanted = self.held[part], self.wanted[part]
        error = 0.0
        for kind, count in self.groups[i]:
            error += count * (2 * (held[kind] - wanted[kind]) + count) / self.scale[kind]
            error -= self.absence if held[kind] == 0 else 0
        return error

    def loss(self, i: int) -> float:
        """What the error shrinks by when group i leaves the part it is in."""
        held, wanted = self.held[self.part[i]], self.wanted[self.part[i]]
        error = 0.0
        for kind, count in self.groups[i]:
            error += count * (2 * (held[kind] - wanted[kind]) - count) / self.scale[kind]
            error -= self.absence if held[kind] == count else 0
        return error


def _improve(books: _Books, i: int) -> bool:
    """Whether group i was moved, because that makes the error smaller."""
    here = books.part[i]
    others = [part for part in range(len(books.held)) if part != here]
    best = min(others, key=lambda part: books.gain(i, part))
    better = books.gain(i, best) - books.loss(i) < -1e-12
    if better:
        books.move(i, best)
    return better
