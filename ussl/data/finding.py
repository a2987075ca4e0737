"""The scan in every picture of a batch, found on the device, which is never waited for.

The same cells, backgrounds and pieces as `ussl.data.surround` finds in one picture, for a batch at once. The outline
is the convex hull of the pieces, not a fan fitted to them, and a screenshot on a page is not looked into.

Shapes: B pictures of R x R cells (see `ussl.data.grid`), R = CELLS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool1d, max_pool2d, pad

from ussl.data import surround
from ussl.data.grid import Grid
from ussl.data.scan import DENSE, HELD_ALONE, LOOSE, SHARE
from ussl.data.surround import BLACK, CALM, CELLS

ROUNDS = 6  # of spreading along rows and columns, enough to get around what lies in a scan
LEVEL = 0.35  # slope up to which the upper end of a scan is level rather than a side of a fan
TOUCHED = 0.1  # of a scan's rows or columns with surround behind: less is none
HELD = 0.5  # of the hull must be where pieces end, on three sides of a picture or more


def scan_cells(grid: Grid) -> Tensor:
    """(B, R, R) bool: the cells that are scan, all of a picture where it cannot be told from its surround."""
    samples, inside = grid.samples, grid.inside
    mean = samples.to(torch.float32).mean((2, 4))
    spread = samples.amax((2, 4)) - samples.amin((2, 4))
    levels = _levels(mean, spread, grid)  # (B, 256)
    distance = _distance(levels)
    flat = (_at(distance, _whole(mean)) <= 1) & (spread <= CALM) & inside
    noise = 1 + 0.6 * (spread * flat).sum((1, 2)) / flat.sum((1, 2)).clamp(min=1)
    dense = _dense(_at(distance, samples.to(torch.int64)), noise, grid)
    pieces = _pieces(dense, grid)
    region = _believed(pieces, grid)
    outside = inside & ~region
    total = inside.sum((1, 2))
    known = levels.any(1) & pieces.any(2).any(1) & (outside.sum((1, 2)) >= SHARE * total)
    known &= (outside & dense).sum((1, 2)) <= DENSE * outside.sum((1, 2))
    return torch.where(known[:, None, None], region, inside)


def _whole(mean: Tensor) -> Tensor:
    return (mean + 0.5).to(torch.int64)


def _at(table: Tensor, index: Tensor) -> Tensor:
    """The entries of table (B, 256) that index (B, ...) names."""
    return table.gather(1, index.flatten(1)).view_as(index)


def _levels(mean: Tensor, spread: Tensor, grid: Grid) -> Tensor:
    """(B, 256) bool: the grey levels of the backgrounds that reach each picture's rim."""
    peaks = _peaks(mean, spread, grid)
    sides = torch.cat(
        [mean[:, :: CELLS - 1], mean[:, :, :: CELLS - 1].transpose(1, 2)], 1
    )  # (B, 4, R) the last ones repeat
    across, down = grid.inside[:, 0], grid.inside[:, :, 0]
    known = torch.stack([across, across, down, down], 1)
    grey = torch.arange(256, device=mean.device)
    near = (sides[..., None] - grey).abs() <= 1.5
    share = (near & known[..., None]).sum((1, 2)) / known.sum((1, 2))[:, None] * peaks
    least = (surround.MINOR * share.amax(1, keepdim=True)).clamp(min=surround.ON_RIM)
    levels = peaks & (share >= least)
    bright = levels & (grey > BLACK)
    lit = ((sides[:, 0] > BLACK) & across).sum(1) > 0.95 * across.sum(1)
    return torch.where((bright.any(1) & lit)[:, None], bright, levels)


def _peaks(mean: Tensor, spread: Tensor, grid: Grid) -> Tensor:
    """(B, 256) bool: grey levels at which many cells are flat, as `surround` finds them."""
    found = torch.zeros(len(mean), 256, dtype=torch.bool, device=mean.device)
    least = surround.LEAST * grid.inside.sum((1, 2))[:, None]
    for most, sharp in ((0, 0.0), (1, surround.SHARP), (CALM, surround.SHARP)):
        flat = ((spread <= most) & grid.inside).flatten(1)
        count = torch.zeros(len(mean), 256, device=mean.device)
        count.scatter_add_(1, _whole(mean).flatten(1), flat.to(count.dtype))  # whole numbers: exact in any order
        sums = pad(count, (9, 8)).cumsum(1)
        near, wide = sums[:, 10:266] - sums[:, 7:263], sums[:, 17:273] - sums[:, :256]
        found |= (near >= least) & (near >= sharp * wide) & (count == max_pool1d(count, 9, 1, 4))
    return found


def _distance(levels: Tensor) -> Tensor:
    """(B, 256) uint8: grey levels from the nearest of `levels` (B, 256), 255 where there is none."""
    grey = torch.arange(256, device=levels.device)
    away = (grey[:, None] - grey).abs()
    return torch.where(levels[:, None], away, 255).amin(2).to(torch.uint8)


def _dense(away: Tensor, noise: Tensor, grid: Grid) -> Tensor:
    """(B, R, R) bool: cells around which enough samples are off the background, as `surround` finds them."""
    half = surround.WINDOW // 2
    bright = max_pool2d(away.amax((2, 4)).to(torch.float32), surround.WINDOW, 1, half)
    limit = (surround.RINGING * bright).maximum(noise[:, None, None]).to(torch.uint8)
    off = away > limit[:, :, None, :, None]
    share = off.to(torch.float32).mean((2, 4))
    share = avg_pool2d(pad(share[:, None], (half,) * 4, mode="replicate"), surround.WINDOW, 1)[:, 0]
    full, dim = share >= surround.FULL - 1e-6, bright < surround.DIM
    sparse = full | (dim & (share >= surround.SPARSE))
    sparse = ~_grown(~sparse, half)
    return (full | (dim & sparse)) & grid.inside


def _grown(region: Tensor, cells: int) -> Tensor:
    """(B, R, R) bool: `region` and so many cells around it."""
    return max_pool2d(region.to(torch.float32)[:, None], 2 * cells + 1, 1, cells)[:, 0] > 0


def _pieces(dense: Tensor, grid: Grid) -> Tensor:
    """(B, R, R) bool: pieces of scan, which are wide somewhere, and all that is joined to them and not narrow."""
    ring = pad(torch.zeros_like(dense), (1,) * 4, value=True)
    solid = ~_spread(ring, ~pad(dense, (1,) * 4))[:, 1:-1, 1:-1]
    solid = grid.repeated(solid)
    short = grid.count.amin(1)
    opened, *wide = (_opened(solid, short, part) & grid.inside for part in (surround.NARROW, *surround.WIDE))
    seeds = opened
    for some in reversed(wide):
        seeds = torch.where(some.any(2).any(1)[:, None, None], some, seeds)
    pieces = _spread(seeds & opened, opened)
    return pieces | (_grown(pieces, 1) & dense)


def _opened(region: Tensor, short: Tensor, part: float) -> Tensor:
    """What squares of `part` of each picture's `short` side cover inside of `region`; it goes on beyond the edge."""
    size = (part * short + 1.5).to(torch.int64)[:, None, None]
    most = int(part * CELLS + 1.5)
    for inner in (False, True):  # first shrunk, then grown again
        for step in range(1, most):
            ahead = step % 2 == inner
            changed = ~_shrunk(~region, ahead) if inner else _shrunk(region, ahead)
            region = torch.where(step < size, changed, region)
    return region


def _shrunk(region: Tensor, ahead: bool) -> Tensor:
    """A cell stays where those below, right, and below right (`ahead`), or on the other sides, are of the region."""
    for axis in (1, 2):
        length = region.shape[axis]
        edge = region.narrow(axis, length - 1 if ahead else 0, 1)
        rest = region.narrow(axis, 1 if ahead else 0, length - 1)
        region = region & torch.cat([rest, edge] if ahead else [edge, rest], axis)
    return region


def _spread(seeds: Tensor, through: Tensor) -> Tensor:
    """Cells of `through` (B, rows, columns) that are joined to `seeds` by rows and columns, with few turns."""
    reached = seeds & through
    for _ in range(ROUNDS):
        for axis in (1, 2):
            reached = _along(reached, through, axis) | _along(reached.flip(axis), through.flip(axis), axis).flip(axis)
    return reached


def _along(reached: Tensor, through: Tensor, axis: int) -> Tensor:
    """`reached` and what lies behind it along `axis`, up to the next cell that is not of `through`."""
    so_far = reached.cumsum(axis, dtype=torch.int32)
    at_wall = so_far.masked_fill(through, 0).cummax(axis).values
    return through & (so_far > at_wall)


@dataclass(frozen=True)
class _End:
    """Where pieces end, seen along the rays from one side of the picture, and where their convex hull does."""

    depth: Tensor  # (B, R) cells before the first piece
    hull: Tensor  # (B, R) float, of the lines below all depths the highest
    some: Tensor  # (B, R) bool: rays that meet a piece
    place: Tensor  # (B, R, R) int64: how many cells of its ray are before each cell
    axis: int  # of the grid that rays run along

    def behind(self, depth: Tensor) -> Tensor:
        """(B, R, R) bool: the cells that are not before `depth` (B, R) on their rays."""
        return self.place >= depth.unsqueeze(self.axis) - 0.5


def _end(pieces: Tensor, grid: Grid, axis: int, last: bool) -> _End:
    """The end seen from the top (axis 1), the bottom (axis 1, last), the left (axis 2) or the right (axis 2, last)."""
    count = grid.count[:, axis - 1, None]  # (B, 1)
    place = torch.arange(CELLS, device=pieces.device).expand(len(pieces), -1)
    place = count - 1 - place if last else place
    depth = (pieces.flip(axis) if last else pieces).to(torch.int64).argmax(axis)
    depth = depth - (CELLS - count) if last else depth
    some = pieces.any(axis)
    hull = _lower_envelope(depth.to(torch.float32), some)
    place = place.unsqueeze(3 - axis).expand_as(pieces)
    return _End(depth, hull, some, place, axis)


def _believed(pieces: Tensor, grid: Grid) -> Tensor:
    """(B, R, R) bool: the outline of `pieces` filled; all of a picture, or up to some sides, as `scan` decides."""
    ends = [_end(pieces, grid, axis, last) for axis in (1, 2) for last in (False, True)]
    region = _outline(ends)
    held, seen = zip(*(_held(end, grid) for end in ends), strict=True)
    share, many = torch.stack(held, 1), torch.stack(seen, 1)  # (B, 4)
    around = many.sum(1) >= 3
    together = (share * many).sum(1) >= HELD * many.sum(1)
    filled = ~around[:, None] & ~(many & (share >= HELD_ALONE))
    for side, end in enumerate(ends):
        before = ~end.behind(end.depth) & end.some.unsqueeze(end.axis)
        region = region | (before & filled[:, side, None, None])
    return torch.where((around & ~together)[:, None, None], grid.inside, region & grid.inside)


def _outline(ends: list[_End]) -> Tensor:
    """(B, R, R) bool: the hull, without rows and columns that have no piece and without what a hollow top leaves out.

    A convex probe's face is hollow: where the hull is level at the top, the pieces themselves end the scan.
    """
    top, _, left, _ = ends
    region = top.some[:, None] & left.some[:, :, None]
    for end in ends[2:]:
        region = region & end.behind(end.hull)
    slope = torch.diff(top.hull, append=top.hull[:, -1:]).abs()
    return region & top.behind(torch.where(slope < LEVEL, top.depth.to(top.hull.dtype), top.hull))


def _held(end: _End, grid: Grid) -> tuple[Tensor, Tensor]:
    """(B,) the share of the hull at which pieces end, and whether there is surround before enough of it."""
    seen = end.some & (end.hull > 0.5)
    loose = (grid.count.amax(1, keepdim=True) / LOOSE).round().clamp(min=1)
    held = (seen & (end.depth - end.hull <= loose)).sum(1) / seen.sum(1).clamp(min=1)
    return held, seen.sum(1) > TOUCHED * end.some.sum(1)


def _lower_envelope(values: Tensor, known: Tensor) -> Tensor:
    """(B, R): the highest of the lines of some slopes below all `known` of the values (B, R)."""
    at = torch.arange(CELLS, device=values.device, dtype=torch.float32)
    slope = torch.tan(torch.deg2rad(torch.arange(-88, 89, 2, device=values.device, dtype=torch.float32)))[:, None]
    lowest = torch.where(known, values, torch.inf)[:, None] - slope * at  # (B, slopes, R)
    lowest = lowest.amin(2, keepdim=True).nan_to_num(posinf=0.0)
    return (lowest + slope * at).amax(1)
