"""Where beams go, and how beams become a picture: linear and convex probes, scan conversion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

MARGIN = 12  # beams simulated beyond each side of the picture, so that no echo wraps around


@dataclass(frozen=True)
class Frame:
    """The geometry of one picture: a probe's face, the depth, and the canvas it is drawn on."""

    radius: float  # mm, of a convex probe's face; 0 = linear
    half: float  # half the width: mm of a linear face, rad of a convex one
    depth: float  # mm
    size: int  # px, of the square canvas
    crop: float = 0.0  # 0 = the whole fan is on the canvas, 1 = its height fills the canvas

    @property
    def lines(self) -> int:
        """Beams in the simulation."""
        return self.size + 2 * MARGIN

    @property
    def samples(self) -> int:
        """Samples of a beam."""
        return 2 * self.size

    @property
    def step(self) -> float:
        """Millimetres between samples."""
        return self.depth / self.samples

    @cached_property
    def depths(self) -> np.ndarray:
        """(A,) mm below the face."""
        return (np.arange(self.samples) + 0.5) * self.step

    @cached_property
    def pitch(self) -> np.ndarray:
        """(A,) mm between beams at every depth."""
        pitch = 2 * self.half / (self.size - 1)
        return pitch * (self.radius + self.depths) if self.radius else np.full(self.samples, pitch)

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """x and z (A, L) of every sample, mm; z = 0 at the middle of the face."""
        beam = (np.arange(self.lines) - MARGIN) / (self.size - 1) * 2 - 1
        if not self.radius:
            x, z = np.broadcast_arrays(beam[None] * self.half, self.depths[:, None])
            return x, z
        radius = self.radius + self.depths[:, None]
        return radius * np.sin(beam * self.half), radius * np.cos(beam * self.half) - self.radius

    @property
    def extent(self) -> tuple[float, float, float]:
        """Width, top and bottom of the picture in mm."""
        if not self.radius:
            return 2 * self.half, 0.0, self.depth
        width = 2 * (self.radius + self.depth) * np.sin(min(self.half, np.pi / 2))
        return float(width), float(self.radius * (np.cos(self.half) - 1)), self.depth

    @property
    def pixel(self) -> float:
        """Millimetres in a pixel of the canvas."""
        width, top, bottom = self.extent
        fitted, filled = max(width, bottom - top), bottom - top
        return (fitted + self.crop * (filled - fitted)) / self.size

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """(2, H, W) sample and beam numbers of every pixel, and whether it lies in the picture (H, W)."""
        _, top, bottom = self.extent
        at = (np.arange(self.size) + 0.5 - self.size / 2) * self.pixel
        x, z = at[None], at[:, None] + (top + bottom) / 2
        if self.radius:
            depth = np.hypot(x, z + self.radius) - self.radius
            beam = np.arctan2(x, z + self.radius) / self.half
        else:
            depth, beam = np.broadcast_arrays(z, x / self.half)
        inside = (np.abs(beam) <= 1) & (depth >= 0) & (depth <= self.depth)
        rows = np.clip(depth / self.step - 0.5, 0, self.samples - 1)
        columns = np.clip((beam + 1) / 2 * (self.size - 1) + MARGIN, 0, self.lines - 1)
        return np.stack([rows, columns]), inside

    def picture(self, grey: np.ndarray) -> np.ndarray:
        """Scan-convert grey values (A, L) to (H, W): averaged over about a pixel, black outside."""
        places, inside = self._places
        smooth = ndimage.gaussian_filter1d(grey, 0.5 * self.pixel / self.step, axis=0, truncate=2.5)
        smooth = ndimage.gaussian_filter1d(smooth, 0.5 * self.pixel / self.pitch.mean(), axis=1, truncate=2.5)
        return ndimage.map_coordinates(smooth, places, order=1, mode="nearest") * inside

    def stencil(self, mask: np.ndarray) -> np.ndarray:
        """Scan-convert a mask (A, L) to (H, W), without interpolation."""
        places, inside = self._places
        rows, columns = np.rint(places).astype(np.intp)
        return mask[rows, columns] & inside
