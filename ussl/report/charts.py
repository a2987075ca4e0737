"""Line charts as inline SVG: axes, round ticks, a title, and a description for those who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ussl.report.words import decades, measure, number, ticks

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 384, 10, 190
POINTS = 300  # a line has at most about twice as many
LOG_FROM = 100  # largest by smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Line:
    """A curve. `style`: "line", or "faint" for what lies behind one."""

    x: np.ndarray
    y: np.ndarray
    style: str = "line"
    dots: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float  # pixels
    stop: float
    log: bool = False

    def place(self, values: np.ndarray | float) -> np.ndarray:
        """Pixels of values."""
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high, x = (np.log10(v) if self.log else np.asarray(v) for v in (self.low, self.high, values))
            return self.start + (x - low) / (high - low) * (self.stop - self.start)


def history(step: np.ndarray, values: np.ndarray) -> list[Line]:
    """A noisy quantity by step: as it was, faint, and its running mean over a fortieth of the run."""
    window = len(values) // 40
    if window < 2:
        return [Line(step, values)]
    return [Line(*_envelope(step, values), "faint"), Line(*thin(step, running_mean(values, window)))]


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the finite values among `window` before and after each; NaN where there is none."""
    finite = np.isfinite(values)
    total, amount = (np.concatenate([[0.0], x.cumsum()]) for x in (np.where(finite, values, 0), finite))
    place = np.arange(len(values))
    first, last = np.maximum(place - window, 0), np.minimum(place + window + 1, len(values))
    amount = amount[last] - amount[first]
    return np.where(amount > 0, (total[last] - total[first]) / np.maximum(amount, 1), np.nan)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most twice `POINTS` of a smooth curve, its ends among them."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), 2 * POINTS)).round().astype(int))
    return x[keep], y[keep]


def _envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest of every bin, in their order, so that no spike is lost."""
    if len(x) <= 2 * POINTS:
        return x, y
    keep = []
    for place in np.array_split(np.arange(len(x)), POINTS):
        values = y[place]
        low, high = np.where(np.isfinite(values), values, np.inf), np.where(np.isfinite(values), values, -np.inf)
        keep += sorted({place[low.argmin()], place[high.argmax()]})
    return x[keep], y[keep]


def chart(title: str, lines: list[Line], levels: Mapping[str, float] | None = None, across: str = "step") -> Markup:
    """A figure of curves over `across`, with a horizontal line for each of `levels`; empty where nothing is finite."""
    levels = {name: value for name, value in (levels or {}).items() if np.isfinite(value)}
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    values = np.concatenate([*finite, np.array(list(levels.values()))])
    if not any(len(y) for y in finite):
        return Markup()
    x = np.concatenate([line.x for line in lines])
    start = 0 if levels else x.min()  # levels hold from the beginning
    across_axis = _Axis(*_range(start, x.max(), 0), LEFT, RIGHT)
    log = bool(values.min() > 0 and values.max() / values.min() >= LOG_FROM)
    low, high = (values.min(), values.max()) if log else _range(values.min(), values.max(), 0.06)
    up = _Axis(low, high, BOTTOM, TOP, log)
    body = [_grid(across_axis, up, across), *(_level(up, i, y) for i, y in enumerate(levels.values()))]
    body += [_curve(across_axis, up, line) for line in lines]
    told = _told(title, lines[-1], levels, across)
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, told, Markup("").join(body)
    )
    caption = Markup("<figcaption><span>{}</span>{}</figcaption>").format(title, _legend(levels))
    return Markup('<figure class="chart">{}{}</figure>').format(caption, drawing)


def _range(low: float, high: float, margin: float) -> tuple[float, float]:
    if low == high:
        around = abs(low) * 0.1 or 1.0
        return low - around, high + around
    return low - (high - low) * margin, high + (high - low) * margin


def _grid(across: _Axis, up: _Axis, name: str) -> Markup:
    text, line = Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>'), Markup('<path class="{}" d="{}"/>')
    parts = []
    for value, label in decades(up.low, up.high) if up.log else ticks(up.low, up.high):
        y = up.place(value)
        parts += [line.format("grid", f"M{LEFT} {y:.1f}H{RIGHT}"), text.format("up", LEFT - 7, y + 3.5, label)]
    for value, label in ticks(across.low, across.high):
        x = across.place(value)
        if value == int(value):  # there is no half step
            parts += [line.format("axis", f"M{x:.1f} {BOTTOM}v4"), text.format("across", x, BOTTOM + 16, label)]
    parts += [line.format("axis", f"M{LEFT} {BOTTOM}H{RIGHT}"), text.format("name", RIGHT, BOTTOM + 29, name)]
    return Markup("").join(parts)


def _level(up: _Axis, i: int, value: float) -> Markup:
    return Markup('<path class="level level{}" d="M{} {:.1f}H{}"/>').format(i, LEFT, up.place(value), RIGHT)


def _curve(across: _Axis, up: _Axis, line: Line) -> Markup:
    """A path with gaps where values are not finite; dots where asked for, or where a point stands alone."""
    x, y = across.place(line.x), up.place(line.y)
    drawn = np.isfinite(y)
    before, after = np.append(False, drawn[:-1]), np.append(drawn[1:], False)
    path = "".join(
        f"{'L' if joined else 'M'}{a:.1f} {b:.1f}"
        for a, b, shown, joined in zip(x, y, drawn, before, strict=True)
        if shown
    )
    dots = drawn & (line.dots | ~(before | after))
    circles = (
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"><title>{}: {}</title></circle>').format(
            line.style, x[i], y[i], number(line.x[i]), measure(line.y[i])
        )
        for i in np.flatnonzero(dots)
    )
    return Markup('<path class="{}" d="{}"/>{}').format(line.style, path, Markup("").join(circles))


def _legend(levels: Mapping[str, float]) -> Markup:
    if not levels:
        return Markup()
    sample = Markup('<svg class="key" viewBox="0 0 22 6" aria-hidden="true"><path class="{}" d="M0 3H22"/></svg>')
    names = {"trained": "line", **{name: f"level level{i}" for i, name in enumerate(levels)}}
    keys = (Markup("<span>{}{}</span>").format(sample.format(style), name) for name, style in names.items())
    return Markup('<span class="legend">{}</span>').format(Markup(" ").join(keys))


def _told(title: str, line: Line, levels: Mapping[str, float], across: str) -> str:
    """The chart in words."""
    at = np.flatnonzero(np.isfinite(line.y))
    first, last = at[0], at[-1]
    told = (
        f"{title}: {number(line.y[first])} at {across} {number(line.x[first])}, {number(line.y[last])} at "
        f"{across} {number(line.x[last])}, between {number(line.y[at].min())} and {number(line.y[at].max())}"
    )
    return "; ".join([told, *(f"{name} {number(value)}" for name, value in levels.items())])
