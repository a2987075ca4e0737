"""The grid of patches of an image and the positions of its patches, shared by encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of square patches; ValueError, naming a size that fits, when they do not fill the image."""
    if height % patch or width % patch:
        fit = " x ".join(str(max(round(side / patch), 1) * patch) for side in (height, width))
        raise ValueError(f"an image of {height} x {width} does not divide into patches of {patch}: use {fit}")
    return height // patch, width // patch


def sincos(
    width: int, rows: int, columns: int, cls: bool = True, first: Literal["column", "row"] = "column"
) -> Tensor:
    """Position embedding of a grid, row by row: (1 + N, D) with a first row of zeros for cls, else (N, D); float32.

    The first half of the channels says the column, the second the row; each half is sines, then cosines, of the
    position times 10000^(-i / (D / 4)) (He et al. 2022, arXiv:2111.06377, as released). MoCo-v3 (arXiv:2104.02057)
    has the halves the other way round: `first` is then the row.
    ValueError when `width` is not divisible by 4.
    """
    if width % 4 or width < 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {width}: try {max(width // 4 * 4, 4)}")
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = (column, row) if first == "column" else (row, column)
    grid = torch.cat([_axis(width // 2, place.flatten()) for place in places], dim=1)
    return torch.cat([grid.new_zeros(1, width), grid]) if cls else grid


def _axis(width: int, place: Tensor) -> Tensor:
    """(N, width) sines and cosines of positions (N,) along one axis, computed in float64."""
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = place.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class FixedPositions:
    """Sin-cos positions (N, D) of the patches of any grid; made once a grid, device and type, never saved."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._made: dict[Any, Tensor] = {}

    def __call__(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """Those of `grid`, on the device and of the type of `like`."""
        key = (grid, like.device, like.dtype)
        if key not in self._made:
            self._made[key] = sincos(self.width, *grid, cls=False).to(like.device, like.dtype)
        return self._made[key]


def at(tokens: Tensor, where: Tensor) -> Tensor:
    """Tokens (..., N, C) at grid positions (..., A), leading dimensions alike or of length 1: (..., A, C)."""
    tokens = tokens.expand(*where.shape[:-1], *tokens.shape[-2:])
    return tokens.gather(-2, where[..., None].expand(*where.shape, tokens.shape[-1]))


def resized_by_timm(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (1, 1 + N, D) of cls and a square grid for another grid, as timm does it: antialiased bicubic."""
    from timm.layers import resample_abs_pos_embed

    side = _side(positions)
    return resample_abs_pos_embed(positions, new_size=list(grid), old_size=[side, side])


def resized_by_dino(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (1, 1 + N, D) of cls and a square grid for another grid, as DINO does it (arXiv:2104.14294).

    Bicubic without antialiasing. The released code adds .1 to the rows and columns asked for, lest rounding lose one,
    and interpolates by that factor; so must we, to place the samples where it does.
    """
    side = _side(positions)
    if grid == (side, side):
        return positions
    cls, rest = positions.split([1, side * side], 1)
    factors = tuple((count + 0.1) / side for count in grid)
    square = rest.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    resized = F.interpolate(square, scale_factor=factors, mode="bicubic", align_corners=False)
    assert resized.shape[-2:] == grid
    return torch.cat([cls, resized.flatten(2).transpose(1, 2)], 1)


def for_grid(
    positions: Tensor, grid: tuple[int, int], resize: Callable[[Tensor, tuple[int, int]], Tensor] = resized_by_timm
) -> Tensor:
    """Positions (1, N, D) or (1, 1 + N, D) of a square grid as (1, 1 + N, D) of `grid`; others as they are."""
    count = positions.shape[1]
    if round(count**0.5) ** 2 == count:  # none for cls, to which nothing is then added
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    return resize(positions, grid) if _side(positions) ** 2 == positions.shape[1] - 1 else positions


def _side(positions: Tensor) -> int:
    """Rows of the square grid of positions (1, 1 + N, D)."""
    return round((positions.shape[1] - 1) ** 0.5)
