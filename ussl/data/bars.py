"""Bars of images by organ, stacked by source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ussl.data.contents import Contents
from ussl.data.lettering import HEIGHT, INK, LINE, SIZE, SOFT, first, inches, wrapped
from ussl.report.words import decades, ticks

WIDTH = 5.6  # inches
LOG_FROM = 100  # most by fewest images from which bars are logarithmic
_EDGE = "#1b222c"  # of bars, on any paper
_AXIS = 0.62  # inches below the bars for values and their name
_MARKS = (  # of sources: colours for all kinds of sight (Okabe & Ito 2008), and hatches for none
    ("#0072b2", ""),
    ("#e69f00", ""),
    ("#9bd0ee", "///"),
    ("#009e73", "\\\\\\"),
    ("#f0e442", "xx"),
    ("#cc79a7", "--"),
    ("#d55e00", "||"),
    ("#b9c0c9", "++"),
    ("#ffffff", ""),
)
_ORGANS, _SOURCES = 24, len(_MARKS)  # the most that are drawn; the others together


@dataclass(frozen=True)
class Stacks:
    """Bars to draw: by organ, images of each source; the sources as they are stacked, with all their images."""

    bars: dict[str, dict[str, int]]
    sources: dict[str, int]

    @property
    def log(self) -> bool:
        """Whether the shortest bar would not be seen beside the longest."""
        sums = [sum(bar.values()) for bar in self.bars.values()]
        return max(sums) >= LOG_FROM * min(sums)


def stacks(contents: Contents) -> Stacks:
    """The bars of a corpus, most images first."""
    sources = first({name: part.images for name, part in contents.sources.items()}, _SOURCES, "source")
    bars = first({organ.name: organ.images for organ in contents.organs}, _ORGANS, "organ")
    stacks: dict[str, dict[str, int]] = {name: dict.fromkeys(sources, 0) for name in bars}
    for organ in contents.organs:
        stack = stacks[organ.name if organ.name in bars else [*bars][-1]]
        for source, images in organ.sources.items():
            stack[source if source in sources else [*sources][-1]] += images
    return Stacks(stacks, sources)


def _rows(stacks: Stacks) -> list[float]:
    """The height in inches that each bar takes."""
    return [0.11 + HEIGHT * max(len(wrapped(name, 22)), 1.4) for name in stacks.bars]


def _legend_columns(stacks: Stacks) -> int:
    widest = max(inches(_named(name, images)) for name, images in stacks.sources.items())
    return max(1, min(len(stacks.sources), int((WIDTH - 0.2) / (widest + 0.6))))


def _named(source: str, images: int) -> str:
    return f"{' '.join(wrapped(source, 24))} {images:,}"


def height(stacks: Stacks) -> float:
    """Inches that bars, axis and legend take."""
    lines = math.ceil(len(stacks.sources) / _legend_columns(stacks))
    return 0.2 + sum(_rows(stacks)) + _AXIS + 0.22 * lines + 0.15


def draw(figure: Any, stacks: Stacks, height: float) -> None:
    """Bars, values and legend on a figure of that height in inches, from its top."""
    names = {name: "\n".join(wrapped(name, 22)) for name in stacks.bars}
    left = max(inches(line) for text in names.values() for line in text.split("\n")) + 0.15
    totals = [sum(bar.values()) for bar in stacks.bars.values()]
    right = max(inches(f"{total:,}") for total in totals) + 0.15
    rows = _rows(stacks)
    below = 1 - (0.2 + sum(rows)) / height
    axes = figure.add_axes((left / WIDTH, below, 1 - (left + right) / WIDTH, sum(rows) / height))
    places = [sum(rows[:i]) + row / 2 for i, row in enumerate(rows)]
    low = _low(totals) if stacks.log else 0.0
    beside = {"textcoords": "offset points", "va": "center", "size": SIZE, "color": INK}
    for place, row, bar, total in zip(places, rows, stacks.bars.values(), totals, strict=True):
        _bar(axes, place, min(row - 0.1, 0.24), bar, low)
        axes.annotate(f"{total:,}", (total, place), (4, 0), **beside)
    axes.set_ylim(sum(rows), 0)
    axes.set_yticks(places, names.values(), size=SIZE, color=INK)
    _values_axis(axes, stacks.log, low, max(totals))
    name = "images, logarithmic; bars are divided by their sources' shares" if stacks.log else "images"
    start = min(left, WIDTH - inches(name)) / WIDTH
    figure.text(start, below - 0.4 / height, name, va="center", size=SIZE, color=SOFT)
    _legend(figure, stacks, height)


def _low(totals: Sequence[int]) -> float:
    """Where logarithmic bars begin: the decade below the shortest."""
    return 10.0 ** math.floor(math.log10(min(totals)) - 0.15)


def _bar(axes: Any, place: float, thick: float, bar: Mapping[str, int], low: float) -> None:
    """Sources side by side; a logarithmic bar (`low` above 0) is divided as a linear one is."""
    total, before = sum(bar.values()), 0
    for (color, hatch), images in zip(_MARKS, bar.values(), strict=False):
        begin, end = before, before + images
        if low:
            begin, end = (low * (total / low) ** (x / total) for x in (begin, end))
        if images:
            look = {"facecolor": color, "hatch": hatch, "edgecolor": _EDGE, "linewidth": 0.5}
            axes.barh(place, end - begin, thick, begin, zorder=2, clip_on=False, **look)
        before += images


def _values_axis(axes: Any, log: bool, low: float, most: int) -> None:
    if log:
        axes.set_xscale("log")
    axes.set_xlim(low, most)
    marked = decades(low, most) if log else ticks(0, most)
    marked = [(value, text) for value, text in marked if value == int(value)]  # there is no part of an image
    while len(marked) > 2 and sum(inches(text) + 0.15 for _, text in marked) > axes.bbox.width / axes.figure.dpi:
        marked = marked[::2]
    axes.set_xticks([value for value, _ in marked], [text for _, text in marked], size=SIZE, color=SOFT)
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(SOFT)


def _legend(figure: Any, stacks: Stacks, height: float) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=color, hatch=hatch, edgecolor=_EDGE, linewidth=0.5, label=_named(name, images))
        for (color, hatch), (name, images) in zip(_MARKS, stacks.sources.items(), strict=False)
    ]
    top = 1 - (0.2 + sum(_rows(stacks)) + _AXIS) / height
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, top),
        ncols=_legend_columns(stacks),
        frameon=False,
        fontsize=SIZE,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.5,
        borderpad=0.2,
    )
