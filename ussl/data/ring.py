"""A ring of the share that each organ has in a corpus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ussl.data.contents import Contents
from ussl.data.lettering import HEIGHT, INK, PAPER, SIZE, SOFT, first, inches, wrapped
from ussl.report.words import percent

WIDTH = 5.2  # inches
_OUT = 0.1  # inches that the line to a label goes straight out of the ring
_LETTERS = 15  # of a line beside the ring
_SLICES = 16  # the most that are drawn; the others together


def shares(contents: Contents) -> dict[str, int]:
    """Images by organ, most first."""
    return first({organ.name: organ.images for organ in contents.organs}, _SLICES, "organ")


def _labels(shares: Mapping[str, int]) -> list[list[str]]:
    """The lines beside each slice: name and share."""
    total = sum(shares.values())
    labels = []
    for name, images in shares.items():
        *lines, last = wrapped(name, _LETTERS, 3)
        part = percent(images / total) if images >= 0.0005 * total else "< 0.1 %"
        labels.append([*lines, f"{last} {part}"] if len(last) + len(part) < _LETTERS + 3 else [*lines, last, part])
    return labels


def _heights(labels: Sequence[Sequence[str]]) -> list[float]:
    return [HEIGHT * len(lines) + 0.06 for lines in labels]


def height(shares: Mapping[str, int]) -> float:
    """Inches that the labels need."""
    heights = _heights(_labels(shares))
    return max(3.6, sum(heights) / 2 + max(heights) + 0.4)  # labels can be had at both sides, half and half


@dataclass(frozen=True)
class _Slice:
    """A slice: its angles in degrees, clockwise from `start` to `stop`, and the lines of its label."""

    start: float
    stop: float
    lines: list[str]

    @property
    def middle(self) -> tuple[float, float]:
        """Its direction: cosine and sine."""
        angle = math.radians((self.start + self.stop) / 2)
        return math.cos(angle), math.sin(angle)


@dataclass(frozen=True)
class _Circle:
    """Where a ring is drawn, in inches, and from where to where its labels may lie."""

    x: float
    y: float
    radius: float
    low: float
    high: float

    def at(self, slice: _Slice, out: float) -> tuple[float, float]:
        """The point `out` inches outside of a slice's middle."""
        cosine, sine = slice.middle
        return self.x + (self.radius + out) * cosine, self.y + (self.radius + out) * sine

    def named(self, slices: Sequence[_Slice], right: bool) -> list[tuple[_Slice, float]]:
        """The slices of one side and the heights of their labels, from below."""
        found = sorted(
            (slice for slice in slices if (slice.middle[0] >= 0) == right), key=lambda slice: slice.middle[1]
        )
        wanted = [self.at(slice, 3 * _OUT)[1] for slice in found]
        heights = _heights([slice.lines for slice in found])
        return list(zip(found, spread(wanted, heights, self.low, self.high), strict=True))


def draw(figure: Any, shares: Mapping[str, int], height: float) -> None:
    """Slices clockwise, most first, each named at its side. The axes are in inches."""
    from matplotlib.patches import Wedge

    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    labels, total = _labels(shares), sum(shares.values())
    beside = max(inches(line) for lines in labels for line in lines)
    radius = min(height / 2 - 0.3, WIDTH / 2 - beside - 0.4)
    circle = _Circle(WIDTH / 2, height / 2, radius, 0.15, height - 0.15)
    slices = _turned(circle, [images / total for images in shares.values()], labels)
    for i, slice in enumerate(slices):
        look = {"facecolor": _shade(i, len(slices)), "edgecolor": PAPER, "linewidth": 0.8}
        axes.add_patch(Wedge((circle.x, circle.y), radius, slice.stop, slice.start, width=0.4 * radius, **look))
    for right in (True, False):
        _name_slices(axes, circle, circle.named(slices, right), right)
    middle = f"{total:,}\n{'image' if total == 1 else 'images'}"
    axes.text(circle.x, circle.y, middle, ha="center", va="center", size=SIZE + 1, color=INK)


def _turned(circle: _Circle, shares: Sequence[float], labels: Sequence[list[str]]) -> list[_Slice]:
    """The slices, begun at the top, or turned so far that labels lie near to their slices."""

    def slices(turn: float) -> list[_Slice]:
        ends = [90 - turn - 360 * sum(shares[:i]) for i in range(len(shares) + 1)]
        return [_Slice(ends[i], ends[i + 1], lines) for i, lines in enumerate(labels)]

    def moved(turn: float) -> tuple[bool, float]:
        """Whether labels find no room, and how far they lie from their slices."""
        sides = [circle.named(slices(turn), right) for right in (True, False)]
        crowded = any(sum(_heights([slice.lines for slice, _ in side])) > circle.high - circle.low for side in sides)
        far = sum((y - circle.at(slice, _OUT)[1]) ** 2 for side in sides for slice, y in side)
        return crowded, far + abs(turn) / 1000

    middles = [(slice.start + slice.stop) / 2 - 90 for slice in slices(0)]
    turns = [float(turn) for turn in range(-180, 180, 5)] + [(middle + 180.01) % 360 - 180 for middle in middles]
    return slices(min(turns, key=moved))


def _name_slices(axes: Any, circle: _Circle, named: Sequence[tuple[_Slice, float]], right: bool) -> None:
    """The labels of one side, each with a line to its slice."""
    side = 1 if right else -1
    x = circle.x + side * (circle.radius + 0.3)
    for slice, y in named:
        line = (circle.at(slice, 0), circle.at(slice, _OUT), (x, y))
        axes.plot(*zip(*line, strict=True), color=SOFT, linewidth=0.6, solid_capstyle="butt")
        text = "\n".join(slice.lines)
        axes.text(x + side * 0.05, y, text, ha="left" if right else "right", va="center", size=SIZE, color=INK)


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels of some heights, none over another, as near as can be to where they are wanted (rising).

    They lie from `low` to `high` if the heights together are at most that.
    """
    below = [sum(heights[:i]) + heights[i] / 2 for i in range(len(heights))]  # where each is in a pile from 0
    blocks: list[list[float]] = []  # labels that touch: how high their pile begins, and how many they are
    for middle, offset in zip(wanted, below, strict=True):
        blocks.append([middle - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (upper, many), (lower, few) = blocks.pop(), blocks.pop()
            blocks.append([(upper * many + lower * few) / (many + few), many + few])
    starts = [start for start, many in blocks for _ in range(int(many))]
    last = high - sum(heights)
    return [max(min(start, last), low) + offset for start, offset in zip(starts, below, strict=True)]


def _shade(i: int, many: int) -> str:
    """From dark to light, so that neighbours differ in grey too."""
    dark, light = (12, 74, 110), (203, 222, 233)
    part = i / max(many - 1, 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(dark, light, strict=True))
