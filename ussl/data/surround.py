"""What a picture shows beside its scan: the flat background of a display, and the pieces of it that are no writing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CELLS = 128  # on a picture's longest side: outlines are known to that precision
SAMPLES = 4  # in a row of a cell: larger cells are looked at there only
BLACK = 10  # grey levels of 255 up to which a background is black
CALM = 12  # grey levels between the darkest and the brightest sample of a cell that may be background
LEAST = 0.03  # share of a picture that a background takes
SHARP = 0.6  # share of the calm cells within 8 levels of a background that are within 1: the dark of a scan is not so
ON_RIM = 0.05  # share of a picture's rim that a background takes
MINOR = 0.3  # a background takes that share of the rim, compared with the one that takes most
RINGING = 0.12  # share of a contrast that JPEG compression leaves around it in a flat background
DIM = 40  # grey levels above the background: what is not brighter than that is no writing
FULL, SPARSE = 0.5, 0.06  # share of samples off the background that make a scan, beside bright and among dim ones
WINDOW = 5  # cells over which that share is taken
WIDE = (0.16, 0.08, 0.05)  # of a picture's short side: scans are that wide somewhere, or that, or that; logos are not
LARGE = 0.12  # of the area of the largest: such a piece of the last of these widths is scan as well
NARROW = 0.04  # of it: what is not that wide is a bar, a letter, or what joins one to a scan


@dataclass(frozen=True)
class Cells:
    """A picture in cells of `side` pixels."""

    scan: np.ndarray  # (rows, columns) bool: shows something that is dense, as scans are and letters are not
    away: np.ndarray  # (SAMPLES rows, SAMPLES columns) uint8: grey levels from the nearest background
    side: float
    levels: tuple[int, ...]  # of the backgrounds


def cells_of(picture: np.ndarray) -> Cells | None:
    """The cells of a picture, uint8 (H, W) or (H, W, 3); None where it has no flat background."""
    grey, side = _sampled(picture)
    low, high = _blocks(grey, np.minimum), _blocks(grey, np.maximum)
    mean = _blocks(grey, np.add) / SAMPLES**2
    spread = high - low
    levels = _levels(mean, spread)
    if not levels:
        return None
    distance = np.abs(np.arange(256)[:, None] - np.array(levels)).min(1).astype(np.uint8)
    flat = (distance[_whole(mean)] <= 1) & (spread <= CALM)
    away = distance[grey]
    return Cells(_dense(away, 1 + 0.6 * float(spread[flat].mean())), away, side, levels)


def fragments(cells: Cells, goes_on: bool = True) -> list[np.ndarray]:
    """The pieces of scan, each (rows, columns) bool, without holes; empty where all is too narrow to be one.

    goes_on: beyond the picture's edge; what lies at the edge of a page may be narrow.
    """
    solid = filled(cells.scan)
    sizes = (int(part * min(solid.shape) + 1.5) for part in (NARROW, *WIDE))
    opened, *wide = (_opened(solid, size, goes_on) for size in sizes)
    pieces, count = ndimage.label(opened)
    seeds = next((some for some in wide if some.any()), opened)
    area = np.bincount(pieces.ravel(), minlength=count + 1)
    large = np.flatnonzero(area >= LARGE * area[1:].max(initial=1))
    chosen = np.union1d(pieces[seeds], np.intersect1d(pieces[wide[-1]], large))
    found = []
    for number in chosen[chosen > 0]:
        piece = pieces == number
        found.append(filled(piece | (grown(piece) & cells.scan)))
    return found


def filled(region: np.ndarray) -> np.ndarray:
    """`region` and its holes."""
    pieces, _ = ndimage.label(~np.pad(region, 1))
    return (pieces != pieces[0, 0])[1:-1, 1:-1]


def grown(region: np.ndarray, cells: int = 1) -> np.ndarray:
    """`region` and so many cells around it, those at its corners too."""
    return ndimage.maximum_filter(region, 2 * cells + 1, mode="constant")


def _opened(region: np.ndarray, size: int, goes_on: bool) -> np.ndarray:
    """What squares of `size` cells inside of `region` cover; `goes_on`: beyond its edge as it is there."""
    mode = "nearest" if goes_on else "constant"
    kept = ndimage.minimum_filter(region, size, mode=mode)
    return ndimage.maximum_filter(kept, size, mode=mode, origin=0 if size % 2 else -1)


def _sampled(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """(SAMPLES rows, SAMPLES columns) the brightest channel at the samples of every cell, and a cell's side."""
    longest = max(picture.shape[:2])
    side = longest / min(CELLS, -(-longest // 2))
    down, across = (_places(length, side) for length in picture.shape[:2])
    picture = picture.take(down, 0)
    if picture.ndim == 3:
        red, green, blue = (picture[..., channel] for channel in range(3))
        picture = np.maximum(np.maximum(red, green), blue)
    whole = np.array_equal(across, np.arange(picture.shape[1]))
    return picture if whole else picture.take(across, 1), side


def _places(length: int, side: float) -> np.ndarray:
    """Where on an axis the samples of its cells are, in pixels."""
    cells = int(np.ceil(length / side - 1e-9))
    return ((np.arange(cells * SAMPLES) + 0.5) / SAMPLES * side).astype(np.intp).clip(max=length - 1)


def _blocks(samples: np.ndarray, by: np.ufunc) -> np.ndarray:
    """(rows, columns) `by` of the samples of every cell, as int."""
    rows = samples[::SAMPLES].astype(np.int16)
    for i in range(1, SAMPLES):
        rows = by(rows, samples[i::SAMPLES])
    cells = rows[:, ::SAMPLES]
    for i in range(1, SAMPLES):
        cells = by(cells, rows[:, i::SAMPLES])
    return cells


def _whole(mean: np.ndarray) -> np.ndarray:
    return (mean + 0.5).astype(np.intp)


def _levels(mean: np.ndarray, spread: np.ndarray) -> tuple[int, ...]:
    """The grey levels of the backgrounds that reach the picture's rim."""
    rim = np.concatenate([mean[0], mean[-1], mean[:, 0], mean[:, -1]])
    share = {level: float((np.abs(rim - level) <= 1.5).mean()) for level in _peaks(mean, spread)}
    least = max(ON_RIM, MINOR * max(share.values(), default=0.0))
    levels = tuple(level for level, part in share.items() if part >= least)
    if any(level > BLACK for level in levels) and (mean[0] > BLACK).mean() > 0.95:
        levels = tuple(level for level in levels if level > BLACK)  # black is the end of a scan's depth then
    return levels


def _peaks(mean: np.ndarray, spread: np.ndarray) -> list[int]:
    """Grey levels at which many cells are flat: without any noise, or calm and few of them a little off."""
    found: set[int] = set()
    for most, sharp in ((0, 0.0), (1, SHARP), (CALM, SHARP)):
        count = np.bincount(_whole(mean[spread <= most]).ravel(), minlength=256)
        padded = np.pad(count, 8).cumsum()
        padded = np.concatenate([[0], padded])
        near, wide = padded[10:266] - padded[7:263], padded[17:273] - padded[:256]
        highest = ndimage.maximum_filter1d(count, 9, mode="constant")
        peak = (near >= LEAST * mean.size) & (near >= sharp * wide) & (count == highest)
        found |= set(np.flatnonzero(peak).tolist())
    return sorted(found)


def _dense(away: np.ndarray, noise: float) -> np.ndarray:
    """(rows, columns) bool: cells around which enough samples are off the background by more than it may be noisy."""
    bright = ndimage.maximum_filter(_blocks(away, np.maximum), WINDOW, mode="nearest")
    limit = np.maximum(noise, RINGING * bright).astype(np.uint8)
    off = away > limit.repeat(SAMPLES, 0).repeat(SAMPLES, 1)
    share = ndimage.uniform_filter(_blocks(off, np.add) / SAMPLES**2, WINDOW, mode="nearest")
    full, dim = share >= FULL - 1e-6, bright < DIM
    sparse = ndimage.minimum_filter(full | (dim & (share >= SPARSE)), WINDOW, mode="nearest")
    return full | (dim & sparse)
