"""Where on its canvas a picture holds a scan, so that crops do not show the black around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ussl.parts import Batch

BLACK = 10  # grey levels of 255 up to which a pixel may be surround: compression leaves some noise there
CELL = 4  # pixels: the sector is known to that precision
STEP = 2  # pixels: every second row and column is looked at, which costs a quarter
FILLED = 0.75  # of a cell's pixels must not be black: thin letters and rulers of the display are not scan


class Sector:
    """The scan sector of every picture of a batch: all that is not black, and what is black inside of it.

    Black inside (a cyst, a shadow) counts: a cell is of the sector when scan lies on both sides of it in its row and
    in its column. A picture without black surround is all sector. The device is never waited for.
    """

    def __init__(self, batch: Batch) -> None:
        sums = enclosed(_lit(batch)).cumsum(1).cumsum(2)
        self.sums = pad(sums, (1, 0, 1, 0))  # (B, rows + 1, columns + 1) cells of the sector above and left

    def share(self, boxes: Tensor) -> Tensor:
        """(B, n) how much of boxes (B, n, 4) y, x, height, width lies in the sector, to the precision of a cell."""
        rows, columns = self.sums.shape[1] - 1, self.sums.shape[2] - 1
        y, x, height, width = boxes.unbind(-1)
        top, bottom = _touched(y, height, rows)
        left, right = _touched(x, width, columns)
        inside = self._sum(bottom, right) - self._sum(top, right) - self._sum(bottom, left) + self._sum(top, left)
        return inside / ((bottom - top) * (right - left)).clamp(min=1)

    def _sum(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(B, n) cells of the sector above `rows` and left of `columns`."""
        return self.sums.flatten(1).gather(1, rows * self.sums.shape[2] + columns)


def _touched(start: Tensor, length: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """First and behind the last of an axis' cells that [start, start + length) touches."""
    first, behind = (start / CELL).floor(), ((start + length) / CELL).ceil()
    return first.clamp(0, cells).to(torch.int64), behind.clamp(0, cells).to(torch.int64)


def _lit(batch: Batch) -> Tensor:
    """(B, rows, columns) bool: cells with enough pixels that are not black, inside the picture."""
    pixels = batch.pixels[:, :, ::STEP, ::STEP].amax(1)
    down, across = (torch.arange(0, n, STEP, device=pixels.device) for n in batch.pixels.shape[2:])
    y, x, height, width = batch.box[:, :, None].unbind(1)  # (B, 1)
    inside = ((down >= y) & (down < y + height))[:, :, None] & ((across >= x) & (across < x + width))[:, None]
    lit = ((pixels > BLACK) & inside).to(torch.float32)
    side = CELL // STEP
    lit = pad(lit, (0, -lit.shape[2] % side, 0, -lit.shape[1] % side))  # a cell does not depend on the canvas
    return avg_pool2d(lit[:, None], side)[:, 0] >= FILLED


def enclosed(cells: Tensor) -> Tensor:
    """`cells`, bool (B, rows, columns), and those between some in their row and between some in their column."""
    between = torch.ones_like(cells)
    for axis in (1, 2):
        before = cells.cumsum(axis)
        between &= (before > 0) & (before < before.amax(axis, keepdim=True))
    return cells | between
