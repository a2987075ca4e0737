"""The picture of a corpus, as the first figure of the URFM paper: bars by organ and source, and a ring of organs."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ussl.data.contents import Contents
from ussl.report.words import decades, percent, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, LINE, PAPER = "#1c2430", "#5b6675", "#dfe3e8", "#fffffe"  # report/page.css has variables of these names
_EDGE = "#1b222c"  # of bars, on any paper
BARS, RING = 5.6, 5.2  # inches, widths
LOG_FROM = 100  # most by fewest images from which bars are logarithmic
_SIZE = 9  # points of text
_LINE = 0.155  # inches of a line of text
_AXIS = 0.62  # inches below the bars for values and their name
_OUT = 0.1  # inches that the line to a label goes straight out of the ring
_LETTERS = 15  # of a line beside the ring
_MARKS = (  # of sources: colours for all kinds of sight (Okabe & Ito 2008), and hatches for none
    ("#0072b2", ""),
    ("#e69f00", ""),
    ("#9bd0ee", "////"),
    ("#009e73", "\\\\\\\\"),
    ("#f0e442", "xxxx"),
    ("#cc79a7", "----"),
    ("#d55e00", "||||"),
    ("#b9c0c9", "++++"),
    ("#ffffff", ""),
)
_ORGANS, _SLICES, _SOURCES = 24, 16, len(_MARKS)  # the most that are drawn; the others together


def draw(contents: Contents) -> Figure:
    """Bars and ring side by side."""
    from matplotlib.figure import Figure

    stacks = _stacks(contents)
    shares = _shares(contents)
    height = max(_bars_height(stacks), _ring_height(shares))
    figure = Figure(figsize=(BARS + RING, height), facecolor=PAPER)
    halves: Any = figure.subfigures(1, 2, width_ratios=(BARS, RING))
    _bars(halves[0], stacks, (BARS, height))
    _ring(halves[1], shares, (RING, height))
    return figure


def draw_bars(contents: Contents) -> Figure:
    """The bars alone."""
    from matplotlib.figure import Figure

    stacks = _stacks(contents)
    figure = Figure(figsize=(BARS, _bars_height(stacks)), facecolor=PAPER)
    _bars(figure, stacks, (BARS, _bars_height(stacks)))
    return figure


def draw_ring(contents: Contents) -> Figure:
    """The ring alone."""
    from matplotlib.figure import Figure

    shares = _shares(contents)
    figure = Figure(figsize=(RING, _ring_height(shares)), facecolor=PAPER)
    _ring(figure, shares, (RING, _ring_height(shares)))
    return figure


@dataclass(frozen=True)
class _Stacks:
    """Bars to draw: by organ, images of each source; the sources as they are stacked, with all their images."""

    bars: dict[str, dict[str, int]]
    sources: dict[str, int]

    @property
    def log(self) -> bool:
        sums = [sum(bar.values()) for bar in self.bars.values()]
        return max(sums) >= LOG_FROM * min(sums)


def _stacks(contents: Contents) -> _Stacks:
    sources = _first({name: part.images for name, part in contents.sources.items()}, _SOURCES, "source")
    bars = _first({organ.name: organ.images for organ in contents.organs}, _ORGANS, "organ")
    stacks: dict[str, dict[str, int]] = {name: dict.fromkeys(sources, 0) for name in bars}
    for organ in contents.organs:
        stack = stacks[organ.name if organ.name in bars else [*bars][-1]]
        for source, images in organ.sources.items():
            stack[source if source in sources else [*sources][-1]] += images
    return _Stacks(stacks, sources)


def _shares(contents: Contents) -> dict[str, int]:
    return _first({organ.name: organ.images for organ in contents.organs}, _SLICES, "organ")


def _first(counts: Mapping[str, int], most: int, thing: str) -> dict[str, int]:
    """The first of them, and where there are more than `most` the others together."""
    if len(counts) <= most:
        return dict(counts)
    names = [*counts]
    rest = names[most - 1 :]
    return {name: counts[name] for name in names[: most - 1]} | {
        f"{len(rest)} other {thing}s": sum(counts[name] for name in rest)
    }


def wrapped(name: str, width: int) -> list[str]:
    """A name in at most two lines of `width` letters."""
    lines = textwrap.wrap(" ".join(name.split()), width) or [""]
    if len(lines) > 2:
        lines = [lines[0], lines[1][: width - 1].rstrip() + "…"]
    return lines


def _inches(text: str) -> float:
    """The width of a line of text."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text or " ", size=_SIZE).get_extents().width) / 72 + 0.02


def _rows(stacks: _Stacks) -> list[float]:
    """The height in inches that each bar takes."""
    return [0.11 + _LINE * max(len(wrapped(name, 22)), 1.4) for name in stacks.bars]


def _legend_columns(stacks: _Stacks) -> int:
    widest = max(_inches(_named(name, images)) for name, images in stacks.sources.items())
    return max(1, min(len(stacks.sources), int((BARS - 0.2) / (widest + 0.6))))


def _named(source: str, images: int) -> str:
    return f"{' '.join(wrapped(source, 24))} {images:,}"


def _bars_height(stacks: _Stacks) -> float:
    lines = math.ceil(len(stacks.sources) / _legend_columns(stacks))
    return 0.2 + sum(_rows(stacks)) + _AXIS + 0.22 * lines + 0.15


def _bars(figure: Any, stacks: _Stacks, size: tuple[float, float]) -> None:
    width, height = size
    names = {name: "\n".join(wrapped(name, 22)) for name in stacks.bars}
    left = max(_inches(line) for text in names.values() for line in text.split("\n")) + 0.15
    totals = [sum(bar.values()) for bar in stacks.bars.values()]
    right = max(_inches(f"{total:,}") for total in totals) + 0.15
    rows = _rows(stacks)
    axes = figure.add_axes(
        ((left / width), 1 - (0.2 + sum(rows)) / height, (width - left - right) / width, sum(rows) / height)
    )
    places = [sum(rows[:i]) + rows[i] / 2 for i in range(len(rows))]
    low = _low(totals) if stacks.log else 0.0
    for place, row, (bar, total) in zip(places, rows, zip(stacks.bars.values(), totals, strict=True), strict=True):
        _bar(axes, place, min(row - 0.1, 0.24), bar, low)
        axes.annotate(
            f"{total:,}", (total, place), (4, 0), textcoords="offset points", va="center", size=_SIZE, color=INK
        )
    axes.set_ylim(sum(rows), 0)
    axes.set_yticks(places, names.values(), size=_SIZE, color=INK)
    _values_axis(axes, stacks.log, low, max(totals))
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
            axes.barh(
                place, end - begin, thick, begin, fc=color, hatch=hatch, ec=_EDGE, lw=0.5, zorder=2, clip_on=False
            )
        before += images


def _values_axis(axes: Any, log: bool, low: float, most: int) -> None:
    if log:
        axes.set_xscale("log")
    axes.set_xlim(low, most)
    marked = decades(low, most) if log else ticks(0, most)
    if not log:
        marked = [(value, text) for value, text in marked if value == int(value)]
    while len(marked) > 2 and sum(_inches(text) + 0.15 for _, text in marked) > axes.bbox.width / axes.figure.dpi:
        marked = marked[::2]
    axes.set_xticks([value for value, _ in marked], [text for _, text in marked], size=_SIZE, color=SOFT)
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(SOFT)
    name = "images, logarithmic; bars are divided by their sources' shares" if log else "images"
    axes.annotate(name, (0, 0), (0, -28), "axes fraction", textcoords="offset points", size=_SIZE, color=SOFT)


def _legend(figure: Any, stacks: _Stacks, height: float) -> None:
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
        fontsize=_SIZE,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.5,
        borderpad=0.2,
    )


def _labels(shares: Mapping[str, int]) -> list[list[str]]:
    """The lines beside each slice: name and share."""
    total = sum(shares.values())
    labels = []
    for name, images in shares.items():
        *lines, last = wrapped(name, _LETTERS)
        part = percent(images / total) if images >= 0.0005 * total else "< 0.1 %"
        labels.append([*lines, f"{last} {part}"] if len(last) + len(part) < _LETTERS + 3 else [*lines, last, part])
    return labels


def _heights(labels: Sequence[Sequence[str]]) -> list[float]:
    return [_LINE * len(lines) + 0.06 for lines in labels]


def _ring_height(shares: Mapping[str, int]) -> float:
    return max(3.6, sum(_heights(_labels(shares))) + 0.3)


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
        wanted = [self.at(slice, _OUT)[1] for slice in found]
        heights = _heights([slice.lines for slice in found])
        return list(zip(found, spread(wanted, heights, self.low, self.high), strict=True))


def _ring(figure: Any, shares: Mapping[str, int], size: tuple[float, float]) -> None:
    """Slices clockwise, most first, each named at its side. The axes are in inches."""
    from matplotlib.patches import Wedge

    width, height = size
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    labels, total = _labels(shares), sum(shares.values())
    beside = max(_inches(line) for lines in labels for line in lines)
    radius = min(height / 2 - 0.3, width / 2 - beside - 0.4)
    circle = _Circle(width / 2, height / 2, radius, 0.15, height - 0.15)
    slices = _turned(circle, [images / total for images in shares.values()], labels)
    for i, slice in enumerate(slices):
        look = {"facecolor": _shade(i, len(slices)), "edgecolor": PAPER, "linewidth": 0.8}
        axes.add_patch(Wedge((circle.x, circle.y), radius, slice.stop, slice.start, width=0.4 * radius, **look))
    for right in (True, False):
        _name_slices(axes, circle, circle.named(slices, right), right)
    middle = f"{total:,}\n{'image' if total == 1 else 'images'}"
    axes.text(circle.x, circle.y, middle, ha="center", va="center", size=_SIZE + 1, color=INK)


def _turned(circle: _Circle, shares: Sequence[float], labels: Sequence[list[str]]) -> list[_Slice]:
    """The slices, begun at the top, or turned so far that labels lie near to their slices."""

    def slices(turn: int) -> list[_Slice]:
        ends = [90 - turn - 360 * sum(shares[:i]) for i in range(len(shares) + 1)]
        return [_Slice(ends[i], ends[i + 1], lines) for i, lines in enumerate(labels)]

    def moved(turn: int) -> float:
        found = slices(turn)
        placed = [*circle.named(found, True), *circle.named(found, False)]
        return sum((y - circle.at(slice, _OUT)[1]) ** 2 for slice, y in placed) + abs(turn) / 1000

    return slices(min(range(-180, 180, 5), key=moved))


def _name_slices(axes: Any, circle: _Circle, named: Sequence[tuple[_Slice, float]], right: bool) -> None:
    """The labels of one side, each with a line to its slice."""
    side = 1 if right else -1
    x = circle.x + side * (circle.radius + 0.3)
    for slice, y in named:
        line = (circle.at(slice, 0), circle.at(slice, _OUT), (x, y))
        axes.plot(*zip(*line, strict=True), color=SOFT, linewidth=0.6, solid_capstyle="butt")
        text = "\n".join(slice.lines)
        axes.text(x + side * 0.05, y, text, ha="left" if right else "right", va="center", size=_SIZE, color=INK)


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels of some heights, near to where they are wanted (rising), none over another.

    They lie from `low` to `high` if the heights together are at most that.
    """
    places: list[float] = []
    floor = low
    for middle, height in zip(wanted, heights, strict=True):
        places.append(max(middle, floor + height / 2))
        floor = places[-1] + height / 2
    ceiling = high
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling - heights[i] / 2)
        ceiling = places[i] - heights[i] / 2
    return places


def _shade(i: int, many: int) -> str:
    """From dark to light, so that neighbours differ in grey too."""
    dark, light = (12, 74, 110), (203, 222, 233)
    part = i / max(many - 1, 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(dark, light, strict=True))


def saved(figure: Figure, kind: str, dots: int) -> bytes:
    """The figure as a file: svg, pdf (letters as outlines and as text) or png, of `dots` an inch."""
    import matplotlib

    file = io.BytesIO()
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(kind)  # left out: equal pictures are equal files
    with matplotlib.rc_context({"svg.hashsalt": "ussl", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, dpi=dots, metadata={dated: None} if dated else None)
    return file.getvalue()


def inline(figure: Figure, name: str) -> str:
    """The figure as an SVG element for a page: its ids begin with `name`, its paper and ink are the page's."""
    text = saved(figure, "svg", 72).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for word, color in {"ink": INK, "soft": SOFT, "line": LINE, "paper": PAPER}.items():
        text = text.replace(color, f"var(--{word})")
    return re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
