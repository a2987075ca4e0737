"""The form of a scan: the convex hull of what was found of it, or the fan that a convex or phased probe makes.

Points are (y, x) in cells of a grid; a cell covers [i, i + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

TURN = np.deg2rad(2.0)  # between the directions in which a region's extent is taken
NEAR = 2  # directions to both sides that a straight side, known to a cell, may be spread over
SIDES = 4  # straight sides of a region that are tried as those of a fan
APART = 5  # directions between two of them
SHORT = 0.08  # of the perimeter: what is shorter is no side
RIM = 0.5  # cells that the middle of a region's outermost cells lies inside of its outline
FIT = 1.2  # cells from a side up to which outermost cells belong to it
HALF = (np.deg2rad(6), np.deg2rad(72))  # between a fan's axis and its sides
TIP = 0.12  # inner radius over the farthest: below, there is no room for an arc
BINS = 24  # of angles, in each of which a fan's radii are found
ROUND = 0.018  # of the longest side: up to that far from each other, and a cell, radii are those of one arc
COVERED = 0.95  # of what was found must lie in a fan
ARC = 0.12  # what a fan whose far end is an arc may fill less of the found than one without, or than the hull


@dataclass(frozen=True)
class Fan:
    """A sector of an annulus, perhaps cut straight; `outer` is None when its far end is no arc."""

    apex: np.ndarray  # (2,)
    sides: np.ndarray  # (2, 2) unit vectors along the sides, away from the apex
    inner: float
    outer: float | None

    @property
    def axis(self) -> np.ndarray:
        """(2,) unit vector down the middle."""
        middle = self.sides.sum(0)
        return middle / np.hypot(*middle)

    def reach(self, points: np.ndarray) -> float:
        """How far from the apex points (n, 2) lie at most."""
        return float(np.hypot(*(points - self.apex).T).max())

    def covers(self, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
        """(len(ys), len(xs)) bool: between the sides and the arcs."""
        apex = self.apex.astype(ys.dtype)
        dy, dx = ys[:, None] - apex[0], xs - apex[1]
        far = dy * dy + dx * dx
        inside = far >= max(self.inner, 0.0) ** 2
        if self.outer is None:
            return inside
        inside &= far <= self.outer**2
        for (y, x), (other_y, other_x) in (self.sides, self.sides[::-1]):
            towards = float(np.sign(y * other_x - x * other_y))  # the other side lies there
            inside &= dx * (towards * float(y)) >= dy * (towards * float(x))
        return inside


class Form:
    """The form that a scan has of which `region`, bool (rows, columns), was found."""

    def __init__(self, region: np.ndarray) -> None:
        self.region = region
        self.ends = [_ends(region, axis) for axis in (0, 1)]  # of rows, of columns
        self._hull = self.hull(*(np.arange(n) + 0.5 for n in region.shape))
        self.fan = self._best_fan()

    def covers(self, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
        """(len(ys), len(xs)) bool: whether points lie in the form."""
        return self.hull(ys, xs) if self.fan is None else self._cut(self.fan, ys, xs)

    def hull(self, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
        """(len(ys), len(xs)) bool: in the convex hull of the region, to half a cell."""
        rows, first, last = self.ends[0]
        top, bottom = rows[0], rows[-1] + 1
        left, right = envelope(rows + 0.5, first, ys), -envelope(rows + 0.5, -last, ys)
        within = (ys >= top) & (ys <= bottom)
        return within[:, None] & (xs >= left[:, None]) & (xs <= right[:, None])

    @cached_property
    def rim(self) -> np.ndarray:
        """(n, 2) middles of the region's outermost cells of every row and column."""
        (rows, first, last), (columns, top, bottom) = self.ends
        rows, columns = rows + 0.5, columns + 0.5
        sides = [(rows, first + 0.5), (rows, last - 0.5), (top + 0.5, columns), (bottom - 0.5, columns)]
        return np.concatenate([np.stack(side, 1) for side in sides])

    def _best_fan(self) -> Fan | None:
        """The fan that what was found fills best; None where the hull does better."""
        count = self.region.sum()
        best, found = count / self._hull.sum(), None
        middles = [np.arange(n) + 0.5 for n in self.region.shape]
        for one, two in combinations(self._sides(), 2):
            fan = self._fan(one, two)
            if fan is None:
                continue
            covered = self._cut(fan, *middles)
            both = (covered & self.region).sum()
            score = both / (covered | self.region).sum() + ARC * (fan.outer is not None)
            if both >= COVERED * count and score > best:
                best, found = score, fan
        return found

    def _cut(self, fan: Fan, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
        """The fan, ended by the hull where it has no arc, and where the picture of it was cut straight."""
        inside = fan.covers(ys, xs)
        if fan.outer is None:
            return inside & self.hull(ys, xs)
        for axis, at in enumerate((ys[:, None], xs)):
            some, first, last = self.ends[axis]
            for end, outwards in ((some[0], -1), (some[-1] + 1, 1)):
                beyond = (at - end) * outwards
                straight = (last - first)[0 if outwards < 0 else -1] > 0.2 * (self.ends[1 - axis][0].size)
                if straight and (inside & (beyond > 2)).any():
                    inside &= beyond <= 0
        return inside

    def _sides(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """A point of each straight side, moved on to the outline, and a unit vector along it; longest first."""
        rim = self.rim
        angle = np.arange(round(2 * np.pi / TURN)) * TURN
        normal = np.stack([np.sin(angle), np.cos(angle)])  # (2, directions)
        reach = (rim @ normal).max(0)
        length = (np.roll(reach, 1) + np.roll(reach, -1) - 2 * reach * np.cos(TURN)) / np.sin(TURN)
        perimeter = length.sum()
        length[::45] *= [not self._on_edge(n) for n in range(4)]
        for n in range(4):
            if self._on_edge(n):
                length[np.arange(45 * n - 1, 45 * n + 2)] = 0
        near = sum(np.roll(length, shift) for shift in range(-NEAR, NEAR + 1))
        found: list[tuple[np.ndarray, np.ndarray]] = []
        while len(found) < SIDES and near.max() > SHORT * perimeter:
            best = int(near.argmax())
            members = rim[reach[best] - rim @ normal[:, best] <= FIT + 2 * TURN * length[best]]
            found.append(_line(members, normal[:, best]))
            near[np.arange(best - APART, best + APART + 1) % near.size] = 0
        return found

    def _on_edge(self, direction: int) -> bool:
        """Whether the region reaches the picture's right (0), lower (1), left (2) or upper (3) edge."""
        some = self.ends[0 if direction % 2 else 1][0]
        return bool(some[0] == 0) if direction > 1 else bool(some[-1] == self.region.shape[direction % 2 ^ 1] - 1)

    def _fan(self, one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> Fan | None:
        """The fan between two sides, if they can be those of one."""
        (p, along), (q, other) = one, two
        cross = along[0] * other[1] - along[1] * other[0]
        if abs(cross) < np.sin(2 * HALF[0]):
            return None
        apex = p + along * (((q - p)[0] * other[1] - (q - p)[1] * other[0]) / cross)
        sides = np.stack([p - apex, q - apex])
        length = np.hypot(*sides.T)[:, None]
        if length.min() < 2:
            return None
        sides = sides / length
        half = np.arccos(np.clip(sides[0] @ sides[1], -1, 1)) / 2
        if not HALF[0] < half < HALF[1]:
            return None
        radii = self._radii(Fan(apex, sides, 0.0, None), half)
        return None if radii is None else Fan(apex, sides, *radii)

    def _radii(self, fan: Fan, half: float) -> tuple[float, float | None] | None:
        """Inner and outer radius; no outer one where the far end is no arc, none at all where the near one is not."""
        away = self.rim - fan.apex
        radius = np.hypot(*away.T)
        axis = fan.axis
        angle = np.arctan2(axis[0] * away[:, 1] - axis[1] * away[:, 0], away @ axis)
        if (np.abs(angle) > half + 0.15).mean() > 0.02:
            return None
        bins = ((angle / half + 1) / 2 * BINS).astype(np.intp).clip(0, BINS - 1)
        cut = np.any((self.rim < 1) | (self.rim > np.array(self.region.shape) - 1), axis=1)  # by the picture's edge
        apart = max(1.0, ROUND * max(self.region.shape))
        near, _ = _extremes(-radius, bins, cut)
        far, bounded = _extremes(radius, bins, cut)
        inner = float(radius.min()) if radius.min() <= TIP * radius.max() else _arc(-near, 0.5, apart)
        outer = float(radius.max()) if bounded > 0.75 * BINS else _arc(far, 0.8, apart)
        if inner is None:
            return None
        return inner - RIM, None if outer is None else outer + RIM


def _extremes(radius: np.ndarray, bins: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest radius in every bin, without those at points that are `cut`, and how many those are."""
    most, free = np.full(BINS, -np.inf), np.ones(BINS, dtype=bool)
    np.maximum.at(most, bins, radius)
    free[bins[cut & (radius >= most[bins])]] = False
    return most[free & np.isfinite(most)], int((~free).sum())


def envelope(at: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The lower convex envelope of points (at, values), at `wanted`: the highest line below all of them, by slope."""
    slope = np.tan(np.deg2rad(np.arange(-88, 89)))[:, None]
    return ((values - slope * at).min(1, keepdims=True) + slope * wanted).max(0)


def _ends(region: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the rows (axis 0) or columns with something, its first cell in each, and behind its last one."""
    lines = region if axis == 0 else region.T
    some = np.flatnonzero(lines.any(1))
    lines = lines[some]
    return some, lines.argmax(1), lines.shape[1] - lines[:, ::-1].argmax(1)


def _line(points: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line of least squares through points (n, 2), moved out along `normal` to the outline: point, direction."""
    middle = points.mean(0)
    (yy, xy), (_, xx) = np.cov((points - middle).T) if len(points) > 1 else np.zeros((2, 2))
    angle = 0.5 * np.arctan2(2 * xy, yy - xx)
    along = np.array([np.cos(angle), np.sin(angle)])
    if abs(along @ normal) > 0.3:  # too few points to tell
        along = np.array([-normal[1], normal[0]])
    return middle + RIM * normal, along


def _arc(radii: np.ndarray, share: float, apart: float) -> float | None:
    """The radius of an arc, near the `share` quantile of those found; None when fewer than 0.6 of them agree."""
    if len(radii) < BINS / 4:
        return None
    middle = float(np.sort(radii)[int(share * (len(radii) - 1))])
    agree = np.abs(radii - middle) <= apart
    return float(np.median(radii[agree])) if agree.mean() >= 0.6 else None
