"""The grid of patches of an image and their fixed sin-cos positions, shared by encoders and decoders."""

from __future__ import annotations

import torch
from torch import Tensor


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of square patches; ValueError, naming a size that fits, when they do not fill the image."""
    if height % patch or width % patch:
        fit = " x ".join(str(max(round(side / patch), 1) * patch) for side in (height, width))
        raise ValueError(f"an image of {height} x {width} does not divide into patches of {patch}: use {fit}")
    return height // patch, width // patch


def sincos(width: int, rows: int, columns: int, cls: bool = True) -> Tensor:
    """Position embedding of a grid, row by row: (1 + N, D) with a first row of zeros for cls, else (N, D); float32.

    The first half of the channels says the column, the second the row; each half is sines, then cosines, of the
    position times 10000^(-i / (D / 4)) (He et al. 2022, arXiv:2111.06377, as released).
    ValueError when `width` is not divisible by 4.
    """
    if width % 4 or width < 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {width}: try {max(width // 4 * 4, 4)}")
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    grid = torch.cat([_axis(width // 2, column.flatten()), _axis(width // 2, row.flatten())], dim=1)
    return torch.cat([grid.new_zeros(1, width), grid]) if cls else grid


def _axis(width: int, place: Tensor) -> Tensor:
    """(N, width) sines and cosines of positions (N,) along one axis, computed in float64."""
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = place.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
