"""What tells one picture from another: its size, a digest of its pixels, a hash that its copies share, and flags."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

BITS = 256  # of the perceptual hash
TINY = 32  # pixels of the shorter side below which a picture shows too little to learn from
BLANK_LEVELS = 8  # grey levels of 255 from the median: further away a pixel shows something
BLANK_SHARE = 0.005  # of the pixels; a picture of which fewer show something is blank
_COARSE, _SIDE = 64, 32  # rows and columns in which the scan is told from its surround, and of which the hash is made
_DARK = 0.04  # of the range of a picture's grey levels: what is not above it may be surround
_NEIGHBOURHOOD = 3.0  # cells of _SIDE: standard deviation of the Gaussian that contrast is measured over
_NOISE = 4.0  # grey levels: contrast far below is not amplified
_LOWEST = 4  # squared frequency below which coefficients tell of the surround and of gain, not of anatomy


def fingerprint(picture: np.ndarray) -> dict[str, Any]:
    """The columns width, height, channels, digest, hash and flag of a picture, uint8 (H, W) or (H, W, 3).

    flag: `blank` (of one grey level, but for noise), `tiny` (a side shorter than `TINY` pixels) and `burned_in` (text,
    rulers or calipers outside of the scan), joined by `;`; None where it is none of these.
    """
    grey = Image.fromarray(picture).convert("L")
    return {
        "width": grey.width,
        "height": grey.height,
        "channels": 1 if picture.ndim == 2 else picture.shape[2],
        "digest": digest(picture),
        "hash": perceptual(grey),
        "flag": ";".join(_flags(picture, grey)) or None,
    }


def digest(picture: np.ndarray) -> str:
    """32 hexadecimal digits that differ where a pixel, the size or the channels do: of SHA-256, the first half."""
    seal = hashlib.sha256(repr(picture.shape).encode())
    seal.update(np.ascontiguousarray(picture).data)
    return seal.hexdigest()[:32]


def perceptual(grey: Image.Image) -> str:
    """`BITS` bits, in hexadecimal, of which copies of a grey picture share most and other pictures about half.

    The scan is told from its dark surround and its contrast evened out, so that neither a scanner's sector nor gain
    or gamma count; the bits are the signs of the lowest cosine coefficients of what is left (as in pHash, Zauner
    2010), under a window that weighs the middle, where a cut edge displaces least.
    """
    means = Image.Resampling.BOX if min(grey.size) > _COARSE else Image.Resampling.BILINEAR
    cells = np.asarray(grey.resize((_COARSE, _COARSE), means))
    scan = _halved(_scan(cells).astype(np.float64))
    evened = _evened(_halved(cells.astype(np.float64)), scan)
    window, cosines, _ = _tables()
    coefficients = cosines @ (evened * window) @ cosines.T
    return np.packbits(coefficients.ravel()[_order()] > 0).tobytes().hex()


def _scan(cells: np.ndarray) -> np.ndarray:
    """Cells that are not dark, and dark ones between such in both their row and their column: a cyst, a shadow."""
    ranked = np.sort(cells, axis=None)
    low, high = int(ranked[ranked.size // 100]), int(ranked[-ranked.size // 20])
    lit = cells > low + max(_DARK * (high - low), 3)
    between = np.ones_like(lit)
    for axis in (0, 1):
        before = lit.cumsum(axis)
        between &= (before > 0) & (before < before.max(axis, keepdims=True))
    return lit | between


def _halved(cells: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 cells."""
    return cells.reshape(_SIDE, 2, _SIDE, 2).mean((1, 3))


def _evened(cells: np.ndarray, scan: np.ndarray) -> np.ndarray:
    """Cells of the scan less the mean around, in units of the deviation around; 0 outside."""
    blur = _tables()[2]
    share = blur @ scan @ blur + 1e-2
    rest = (cells - blur @ (cells * scan) @ blur / share) * scan
    return rest / (np.sqrt(blur @ (rest * rest) @ blur / share) + _NOISE)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The window (rows, columns), the cosine transform (frequencies, cells) and the Gaussian blur (cells, cells)."""
    cell = np.arange(_SIDE) + 0.5
    arch = np.sin(np.pi * cell / _SIDE)
    cosines = np.cos(np.pi * np.arange(_SIDE)[:, None] * cell / _SIDE)
    blur = np.exp(-0.5 * ((cell[:, None] - cell) / _NEIGHBOURHOOD) ** 2) / (_NEIGHBOURHOOD * np.sqrt(2 * np.pi))
    return np.outer(arch, arch), cosines, blur


@cache
def _order() -> np.ndarray:
    """(BITS,) positions of the coefficients in use, the lowest frequencies first."""
    row, column = np.indices((_SIDE, _SIDE))
    squared = (row**2 + column**2).ravel()
    ranked = np.argsort(squared, kind="stable")
    return ranked[squared[ranked] >= _LOWEST][:BITS]


def _flags(picture: np.ndarray, grey: Image.Image) -> list[str]:
    """Which of the words of `flag` a picture deserves."""
    if _is_blank(grey):
        return ["blank", "tiny"] if min(grey.size) < TINY else ["blank"]
    from ussl.data.scan import burned_in

    found = ["tiny"] if min(grey.size) < TINY else []
    return [*found, "burned_in"] if burned_in(picture) else found


def _is_blank(grey: Image.Image) -> bool:
    counts = np.array(grey.histogram())
    median = int(np.searchsorted(counts.cumsum(), counts.sum() / 2))
    shown = counts.sum() - counts[max(0, median - BLANK_LEVELS) : median + BLANK_LEVELS + 1].sum()
    return bool(shown < BLANK_SHARE * counts.sum())
