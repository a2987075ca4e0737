"""Which part of a picture is the scan, and pictures without what a display shows around it: text, logos, rulers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ussl.data.colour import colourless, luminance
from ussl.data.fan import TIP, Form
from ussl.data.surround import SAMPLES, Cells, cells_of, fragments, grown

SHARE = 0.01  # of a picture: less than that around a scan is not worth speaking of
DENSE = 0.35  # of the surround may look like scan: with more, the outline is not that of the scan
LOOSE = 64  # parts of the longest side: what was found may end so far inside of an outline
HELD, HELD_FAN = 0.6, 0.4  # of an outline must be where it was found, on three sides of a picture or more; of a fan's
HELD_ALONE = 0.75  # on fewer sides
PAGES = 3  # at most, one in the other: a screenshot on a page
BOXED, SMALL = 0.97, 16  # share of its bounding box, and cells of its shorter side, that make it a page
MARGIN = 2  # cells around a scan that may hold some of it
CONTRAST = 28  # grey levels by which a mark differs from the background; compression leaves less than that
MARKS = 6  # samples of that contrast that make a mark

Kind = Literal["linear", "convex", "phased", "whole"]
Box = tuple[int, int, int, int]


def scan_mask(picture: np.ndarray) -> np.ndarray:
    """(H, W) bool, true where a picture, uint8 (H, W) or (H, W, 3), is scan: black inside of it included.

    The flat background around is told by its grey levels, whichever these are, the scan by being dense and wide. Its
    outline is a fan (two straight sides, two arcs, as far as they show) or else the convex hull of what was found, to
    about a 128th of the picture's longest side; several panels have an outline each. All of a picture is scan where
    none can be told from its surround. Costs about 5 ms at 512 pixels, and little more for larger pictures.

    ValueError: not such a picture.
    """
    mask = np.zeros(_checked(picture).shape[:2], dtype=bool)
    scan, (y, x, height, width) = _pages(picture)[-1]
    mask[y : y + height, x : x + width] = True if scan is None else scan.mask(height, width)
    return mask


def scan_box(picture: np.ndarray) -> Box:
    """y, x, height, width: the bounding box of a picture's scan, in pixels. ValueError: not a picture."""
    return _box(scan_mask(picture))


def burned_in(picture: np.ndarray) -> bool:
    """Whether a picture shows letters, rulers, logos, bars or calipers outside of its scan.

    Compression noise and the rim of the scan are none. What lies on the scan itself is not looked for, so that a
    picture that is all scan has none. ValueError: not a picture.
    """
    return any(scan is not None and scan.marked for scan, _ in _pages(_checked(picture)))


def kind(picture: np.ndarray) -> Kind:
    """The form of the (largest) scan: linear (any but a fan), convex or phased (a fan), or whole (no surround)."""
    scan = _pages(_checked(picture))[-1][0]
    if scan is None:
        return "whole"
    form = max(scan.forms, key=lambda form: form.region.sum())
    if form.fan is None:
        return "linear"
    return "phased" if form.fan.inner < TIP * form.fan.reach(form.rim) else "convex"


def cleaned(picture: np.ndarray, scan: Literal["keep", "mask", "crop"] = "keep", grey: bool = False) -> np.ndarray:
    """A picture without what is not scan.

    Args:
        picture: uint8 (H, W) or (H, W, 3).
        scan: `keep` leaves it as it is, `mask` makes black what lies outside of `scan_mask`, `crop` also cuts the
            picture to `scan_box`.
        grey: nearly colourless RGB (see `ussl.data.colour.colourless`) becomes one channel.

    ValueError: not a picture, or another word.
    """
    _checked(picture)
    if scan not in ("keep", "mask", "crop"):
        raise ValueError(f"scan is {scan!r}; write keep, mask or crop")
    if scan != "keep":
        mask = scan_mask(picture)
        picture = picture * (mask if picture.ndim == 2 else mask[..., None])
        if scan == "crop":
            y, x, height, width = _box(mask)
            picture = np.ascontiguousarray(picture[y : y + height, x : x + width])
    return luminance(picture) if grey and picture.ndim == 3 and colourless(picture) else picture


@dataclass(frozen=True)
class _Scan:
    """What was found in a picture."""

    cells: Cells
    forms: list[Form]
    region: np.ndarray  # (rows, columns) bool: the scan in cells
    added: np.ndarray  # of that, what lies outside of the forms

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) bool: the scan in pixels."""
        ys, xs = ((np.arange(n, dtype=np.float32) + 0.5) / np.float32(self.cells.side) for n in (height, width))
        mask = _covered(self.forms, ys, xs)
        if self.added.any():
            mask |= self.added.take(ys.astype(np.intp), 0).take(xs.astype(np.intp), 1)
        return mask

    @property
    def marked(self) -> bool:
        """Whether something stands out from the background, away from the scan."""
        outside = ~grown(self.region, MARGIN)
        away = self.cells.away > CONTRAST
        return int((away & outside.repeat(SAMPLES, 0).repeat(SAMPLES, 1)).sum()) >= MARKS


def _pages(picture: np.ndarray) -> list[tuple[_Scan | None, Box]]:
    """What was found, and in which box of the picture: in all of it, and in each page found in the one before."""
    box = (0, 0, *picture.shape[:2])
    scan = _scan_of(picture)
    pages = [(scan, box)]
    while scan is not None and len(pages) < PAGES:
        inner = _page(scan, pages[-1][1])
        if inner is None:
            break
        y, x, height, width = inner
        within = _scan_of(picture[y : y + height, x : x + width], goes_on=False)
        if within is None or not _framed(within, scan.cells.levels):
            break
        scan = within
        pages.append((scan, inner))
    return pages


def _page(scan: _Scan, box: Box) -> Box | None:
    """The box of what was found in `box`, a little inside of its edge; None where it is no box."""
    top, left, rows, columns = _box(scan.region)
    if scan.region[top : top + rows, left : left + columns].mean() < BOXED or min(rows, columns) < SMALL:
        return None
    edge = max(1, min(rows, columns) // 100)
    y, x = (math.ceil((start + edge) * scan.cells.side) for start in (top, left))
    height, width = (int((length - 2 * edge) * scan.cells.side) for length in (rows, columns))
    return box[0] + y, box[1] + x, min(height, box[2] - y), min(width, box[3] - x)


def _framed(scan: _Scan, levels: tuple[int, ...]) -> bool:
    """Whether a background other than `levels` fills at least half of two opposite sides of the picture."""
    away, new = scan.cells.away, scan.cells.levels
    if not any(min(abs(level - other) for other in levels) > 4 for level in new):
        return False
    share = [(side <= 3).mean() for side in (away[0], away[-1], away[:, 0], away[:, -1])]
    return bool(min(share[:2]) >= 0.5 or min(share[2:]) >= 0.5)


def _scan_of(picture: np.ndarray, goes_on: bool = True) -> _Scan | None:
    """The scan in a picture; None where it cannot be told from a surround. goes_on: as `fragments` takes it."""
    cells = cells_of(picture)
    found = [] if cells is None else fragments(cells, goes_on)
    if cells is None or not found:
        return None
    forms = _forms(found)
    covered = _covered(forms, *(np.arange(n) + 0.5 for n in cells.scan.shape))
    region = _believed(covered, np.logical_or.reduce(found), any(map(_is_fan, forms)))
    outside = ~region
    if outside.mean() < SHARE or cells.scan[outside].mean() > DENSE:
        return None
    return _Scan(cells, forms, region, region & ~covered)


def _forms(found: list[np.ndarray]) -> list[Form]:
    """The form of each piece; one of all where these are parts of one fan that a dark band divides."""
    if len(found) > 1 and _is_fan(whole := Form(np.logical_or.reduce(found))):
        return [whole]
    return [Form(piece) for piece in found]


def _is_fan(form: Form) -> bool:
    return form.fan is not None and form.fan.outer is not None


def _covered(forms: list[Form], ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    return np.logical_or.reduce([form.covers(ys, xs) for form in forms])


def _believed(covered: np.ndarray, found: np.ndarray, fan: bool) -> np.ndarray:
    """`covered` (rows, columns), and the surround on those sides of the picture where its outline is not trusted.

    Seen from a side, an outline should be where `found` ends: the dark inside of a scan that reaches the picture's
    edge has a ragged end. Where there is surround on three sides or more, they are judged together, and those of a
    `fan` more mildly; but below a scan as wide at its top, the surround must be good, or good on both sides of it.
    """
    near = grown(found, max(1, round(max(covered.shape) / LOOSE)))
    held, beyond = zip(*(_seen_from(np.rot90(covered, turn), np.rot90(near, turn)) for turn in range(4)), strict=True)
    seen = [share for share in held if share is not None]
    good = [share is not None and share >= HELD_ALONE for share in held]
    if len(seen) < 3:
        doubted = [turn for turn in range(4) if not good[turn]]
    elif sum(seen) < (HELD_FAN if fan else HELD) * len(seen):
        return np.ones_like(covered)
    else:
        doubted = [0] * (_wide_at_its_top(covered) and not good[0] and not (good[1] and good[3]))
    region = covered.copy()
    for turn in doubted:
        region |= np.rot90(beyond[turn], -turn)
    return region


def _wide_at_its_top(covered: np.ndarray) -> bool:
    """Whether a region is nearly as wide in its upper quarter as anywhere: that of a linear probe, not a fan."""
    width = covered.sum(1)
    width = width[width > 0]
    return bool(width[: max(1, len(width) // 4)].max() >= 0.9 * width.max())


def _seen_from(covered: np.ndarray, near: np.ndarray) -> tuple[float | None, np.ndarray]:
    """From below: share of the outline that is `near` what was found, None where next to none; and all below it."""
    rows, columns = covered.shape
    last = rows - 1 - covered[::-1].argmax(0)
    some = covered.any(0)
    seen = some & (last < rows - 1)
    below = (np.arange(rows)[:, None] > last) & some
    if seen.sum() <= 0.1 * some.sum():
        return None, below
    return float(near[last, np.arange(columns)][seen].mean()), below


def _box(mask: np.ndarray) -> Box:
    (top, bottom), (left, right) = ((some[0], some[-1] + 1) for some in (np.flatnonzero(mask.any(a)) for a in (1, 0)))
    return int(top), int(left), int(bottom - top), int(right - left)


def _checked(picture: np.ndarray) -> np.ndarray:
    """The same. ValueError: not a picture."""
    colour = picture.ndim == 3 and picture.shape[2] == 3
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or colour) or 0 in picture.shape:
        raise ValueError(f"a picture is uint8 (H, W) or (H, W, 3), not {picture.dtype} {picture.shape}")
    return picture
