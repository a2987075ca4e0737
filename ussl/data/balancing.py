"""Groups into parts of given shares, so that every class has these shares as nearly as groups allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROUNDS = 10  # through all groups, at most, to move single ones
_ABSENT = 1.0  # what it costs that a class is absent from a part, beside squared errors of shares


def balanced(groups: Sequence[Mapping[int, int]], shares: Sequence[float]) -> list[int]:
    """The part of each group: a mapping from class to how many of it the group holds.

    Large groups go first, each to where the squares of what shares of classes, and of all, are off by grow least; then
    single groups move, small ones first, while that gains, for which a class that a part lacks counts most. The order
    of `groups` decides between equals.
    """
    books = _Books(groups, shares)
    order = sorted(range(len(groups)), key=lambda i: -books.sizes[i])
    for i in order:
        books.move(i, min(range(len(shares)), key=lambda part: books.gain(i, part)))
    books.absence = _ABSENT
    for _ in range(ROUNDS):
        if not sum(_improve(books, i) for i in reversed(order)):
            break
    return books.part


class _Books:
    """How many of each class, and of all (class -1), each part holds more than its share. part: of each group."""

    def __init__(self, groups: Sequence[Mapping[int, int]], shares: Sequence[float]) -> None:
        self.sizes = [sum(group.values()) for group in groups]
        self.groups = [[*group.items(), (-1, size)] for group, size in zip(groups, self.sizes, strict=True)]
        self.total: dict[int, int] = {}
        for group in self.groups:
            for kind, count in group:
                self.total[kind] = self.total.get(kind, 0) + count
        self.wanted = [{kind: share * count for kind, count in self.total.items()} for share in shares]
        self.held = [dict.fromkeys(self.total, 0) for _ in shares]
        self.part = [-1] * len(groups)
        self.absence = 0.0

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
            error += count * (2 * (held[kind] - wanted[kind]) + count) / self.total[kind] ** 2
            error -= self.absence if held[kind] == 0 else 0
        return error

    def loss(self, i: int) -> float:
        """What the error shrinks by when group i leaves the part it is in."""
        held, wanted = self.held[self.part[i]], self.wanted[self.part[i]]
        error = 0.0
        for kind, count in self.groups[i]:
            error += count * (2 * (held[kind] - wanted[kind]) - count) / self.total[kind] ** 2
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
