"""The region inside a drawn line, also where the line has gaps."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

RADII = (1, 2, 4, 8)  # pixels: gaps up to twice as wide are closed
_MARGIN = max(RADII) + 1


def filled(line: np.ndarray) -> np.ndarray:
    """(H, W) bool: a line (H, W) bool with what it encloses; empty when there is no line.

    A line that encloses nothing has its gaps closed, the smallest first, and where this does not help an ellipse is
    fitted to it. ValueError: that cannot be either.
    """
    if not line.any():
        return line.copy()
    region: np.ndarray = ndimage.binary_fill_holes(line)
    if _encloses(region, line):
        return region
    wide = np.pad(line, _MARGIN)  # so that closing does not depend on the border
    for radius in RADII:
        closed = _filled_across(wide, radius)
        if _encloses(closed, wide):
            return closed[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] | line
    return line | _ellipse(line)


def _encloses(region: np.ndarray, line: np.ndarray) -> bool:
    """Whether a filled line encloses more than the holes within its own width."""
    return 2 * int((region & ~line).sum()) >= int(line.sum())


def _filled_across(line: np.ndarray, radius: int) -> np.ndarray:
    """What a line encloses once it is drawn wider by `radius` on each side, and narrowed again when filled."""
    grown = ndimage.binary_fill_holes(ndimage.distance_transform_edt(~line) <= radius)
    region: np.ndarray = ndimage.distance_transform_edt(grown) > radius
    return region


def _ellipse(line: np.ndarray) -> np.ndarray:
    """(H, W) bool: inside of the ellipse that fits a line best."""
    y, x = np.nonzero(line)
    centre, spread = np.array([x.mean(), y.mean()]), max(float(np.hypot(x.std(), y.std())), 1e-9)
    a, b, c, d, e, f = _conic((x - centre[0]) / spread, (y - centre[1]) / spread)
    middle = np.linalg.solve([[2 * a, b], [b, 2 * c]], [-d, -e])
    if (np.abs(middle) > 10).any():  # an ellipse far larger than the line: the line is nearly straight
        raise ValueError("the line is open and no ellipse fits it")
    rows, columns = np.indices(line.shape)
    u, v = (columns - centre[0]) / spread, (rows - centre[1]) / spread
    inside: np.ndarray = a * u * u + b * u * v + c * v * v + d * u + e * v + f <= 0
    return inside


def _conic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(6,) of the ellipse a x² + b xy + c y² + d x + e y + f = 0, negative inside, that fits points (n,) best.

    Least squares under 4ac - b² = 1: Fitzgibbon et al. 1999, doi 10.1109/34.765658, in the two blocks of Halíř and
    Flusser 1998. ValueError: the points lie on no ellipse.
    """
    squares, straight = np.stack([x * x, x * y, y * y], 1), np.stack([x, y, np.ones_like(x)], 1)
    try:
        across = -np.linalg.solve(straight.T @ straight, straight.T @ squares)
        scatter = squares.T @ squares + squares.T @ straight @ across
        values, vectors = np.linalg.eig(np.linalg.solve([[0, 0, 2], [0, -1, 0], [2, 0, 0]], scatter))
    except np.linalg.LinAlgError:
        raise ValueError("the line is open and no ellipse fits it") from None
    vectors = np.real(vectors[:, np.abs(np.imag(values)) < 1e-9])
    bent = 4 * vectors[0] * vectors[2] - vectors[1] ** 2
    if not (bent > 1e-9).any():
        raise ValueError("the line is open and no ellipse fits it")
    first = vectors[:, np.argmax(bent)]
    first = first * np.sign(first[0])  # so that the inside is negative
    return np.concatenate([first, across @ first])
