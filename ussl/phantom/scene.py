"""The medium that beams pass through: tissue on the grid of beams, and the shapes it is painted with.

Shape key: A samples along a beam · L beams. Lengths are millimetres, levels decibels relative to liver parenchyma.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Point = tuple[float, float]  # x, z, or two half axes, mm
NOISE = 48  # period of a noise table, in cells
DECIBEL = np.float32(np.log(10) / 20)  # nepers


class Tissue(NamedTuple):
    """What a beam meets."""

    echo: float  # dB, backscatter
    attenuation: float  # dB / cm / MHz, one way


LIVER = Tissue(0, 0.5)
FAT = Tissue(-7, 0.6)
DENSE = Tissue(3, 0.7)  # skin, fibroglandular and connective tissue
MUSCLE = Tissue(-7, 0.8)
FLUID = Tissue(-60, 0.05)
BLOOD = Tissue(-32, 0.18)
BONE = Tissue(-12, 9.0)
GAS = Tissue(-14, 9.0)
STONE = Tissue(6, 14.0)


class Scene:
    """Echogenicity, attenuation, mirrors and reverberation at every sample of every beam, and the true masks."""

    def __init__(
        self,
        x: np.ndarray,
        z: np.ndarray,
        depth: np.ndarray,
        rng: np.random.Generator,
        reach: float = 40.0,
        bent: float = 1.0,
    ) -> None:
        """From anatomical x, z (A, L) and the depth below the probe's face (A,) in mm; `rng` is a patient's.

        Shapes depart from those painted by waves of a fraction of `reach` (mm), `bent` times as far as usual.
        """
        self.rng, self.reach = rng, reach
        self.step = float(depth[1] - depth[0])
        self.depth = np.repeat(depth.astype(np.float32)[:, None], x.shape[1], axis=1)
        self.x, self.z = self._wobble(x.astype(np.float32), z.astype(np.float32), bent)
        self.echo = np.zeros(x.shape, np.float32)
        self.attenuation = np.full(x.shape, LIVER.attenuation, np.float32)
        self.mirror = np.zeros(x.shape, np.float32)  # amplitude of coherent reflection
        self.haze = np.zeros(x.shape, np.float32)  # amplitude of reverberation, which skips the medium's attenuation
        self.cover = np.zeros(x.shape[1], np.float32)  # (L,) dB that a beam loses at the skin
        self.organ = np.zeros(x.shape, bool)
        self.lesion = np.zeros(x.shape, bool)

    def _wobble(self, x: np.ndarray, z: np.ndarray, bent: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates moved by slow waves in random directions: no organ is a drawn ellipse."""
        moved = [x, z]
        for part, swing in ((3.0, 0.015), (6.0, 0.005), (12.0, 0.001)):
            for axis in (0, 1):
                turn, phase = self.rng.uniform(0, 2 * np.pi, 2)
                strength = bent * swing * self.reach * self.rng.uniform(0.5, 1.3)
                rate = 2 * np.pi * part / self.reach
                angle = x * np.float32(rate * np.cos(turn)) + z * np.float32(rate * np.sin(turn))
                moved[axis] = moved[axis] + np.float32(strength) * np.sin(angle + np.float32(phase))
        return moved[0], moved[1]

    def fill(self, inside: np.ndarray, tissue: Tissue) -> None:
        """Replace what is inside, mirrors and haze included, by a tissue."""
        np.putmask(self.echo, inside, tissue.echo)
        np.putmask(self.attenuation, inside, tissue.attenuation)
        np.putmask(self.mirror, inside, 0)

    def rim(self, distance: np.ndarray, level: float, width: float = 0.4, faces: float = 2.0) -> None:
        """A rough interface where a distance (A, L) is zero; it fades as cos(incidence) ** faces."""
        width = max(width, 0.8 * self.step)
        near = np.flatnonzero(np.abs(distance) < 2 * width)
        flat, across = distance.ravel(), distance.shape[1]
        ahead = np.minimum(near + across, distance.size - 1)
        cosine = np.minimum(np.abs(flat[ahead] - flat[near]) / self.step, 1)
        patch = np.float32(self.reach / 14)
        rough = noise(self.rng, self.x.ravel()[near] / patch, self.z.ravel()[near] / patch)
        nepers = (level + 5.5 * rough - 1.5) * DECIBEL
        amplitude = np.exp(nepers - (flat[near] / width) ** 2) * cosine**faces
        mirror = self.mirror.reshape(-1)
        mirror[near] = np.maximum(mirror[near], amplitude)

    def surface(self, depth: float, wave: float, period: float) -> np.ndarray:
        """Signed distance (A, L) to a wavy sheet that follows the probe's face; positive below it."""
        rng = self.rng
        phase, ratio = rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 2.7)
        angle = self.x[:1] * (2 * np.pi / period)
        line = depth + wave * (np.sin(angle + phase) + 0.5 * np.sin(ratio * angle + 2 * phase))
        return self.depth - line.astype(np.float32)

    def grain(
        self,
        inside: np.ndarray,
        level: float,
        along: float,
        across: float,
        angle: float = 0.0,
        bend: float = 0.0,
    ) -> None:
        """Modulate echoes by cells `along` x `across` mm at an angle (rad), curved by `bend` (1/mm): fibres, septa."""
        where, cells = self._cells(inside, along, across, angle, bend)
        self.echo.reshape(-1)[where] += level * cells

    def sheets(
        self, inside: np.ndarray, level: float, along: float, across: float, angle: float = 0.0, bend: float = 0.0
    ) -> None:
        """Coherent sheets, `level` dB over liver, in a grain of `along` x `across` mm: fibres, fascia, fat septa."""
        where, cells = self._cells(inside, along, across, angle, bend)
        mirror = self.mirror.reshape(-1)
        mirror[where] += np.exp(DECIBEL * level) * np.maximum(cells - 0.6, 0)

    def septa(self, inside: np.ndarray, level: float, along: float, across: float) -> None:
        """Thin bright walls around lobules of `along` x `across` mm."""
        where, cells = self._cells(inside, along, across)
        self.echo.reshape(-1)[where] += level * np.exp(-((cells / 0.3) ** 2))

    def _cells(
        self, inside: np.ndarray, along: float, across: float, angle: float = 0.0, bend: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flat positions inside, and there smooth noise in turned and bent cells."""
        where = np.flatnonzero(inside)
        x, z = self.x.ravel()[where], self.z.ravel()[where]
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = x * cos + z * sin, z * cos - x * sin
        return where, noise(self.rng, u / np.float32(along), (v + np.float32(bend) * u * u) / np.float32(across))


def noise(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smooth noise of about unit deviation at positions in cells, periodic after NOISE of them."""
    table = np.empty((NOISE + 1, NOISE + 1), np.float32)
    table[:-1, :-1] = 1.5 * rng.standard_normal((NOISE, NOISE), dtype=np.float32)
    table[-1], table[:, -1] = table[0], table[:, 0]
    row, column = np.floor(v), np.floor(u)
    v, u = v - row, u - column
    corner = (row.astype(np.int32) % NOISE) * (NOISE + 1) + column.astype(np.int32) % NOISE
    flat = table.ravel()
    upper, lower = flat[corner], flat[corner + NOISE + 1]
    upper += u * (flat[corner + 1] - upper)
    lower += u * (flat[corner + NOISE + 2] - lower)
    return upper + v * (lower - upper)


def ellipse(scene: Scene, centre: Point, half: Point, angle: float = 0.0) -> np.ndarray:
    """Signed distance (A, L), to first order, to an ellipse with half axes along x and z turned by an angle (rad)."""
    dx, dz = scene.x - np.float32(centre[0]), scene.z - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (dx * cos + dz * sin) / np.float32(half[0]), (dz * cos - dx * sin) / np.float32(half[1])
    near = np.sqrt(u * u + v * v) + np.float32(1e-6)
    slope = np.sqrt((u / np.float32(half[0])) ** 2 + (v / np.float32(half[1])) ** 2) + np.float32(1e-6)
    return near * (near - 1) / slope


def place(centre: Point, angle: float, u: float, v: float) -> Point:
    """The point u along and v across an axis through a centre, turned by an angle (rad)."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return centre[0] + float(u) * cos - float(v) * sin, centre[1] + float(u) * sin + float(v) * cos


def tube(scene: Scene, start: Point, end: Point, radius: Point, sag: float = 0.0) -> np.ndarray:
    """Signed distance (A, L) to a vessel that tapers from start to end and sags sideways by `sag` mm."""
    (x, z), dx, dz = map(float, start), float(end[0] - start[0]), float(end[1] - start[1])
    length = float(np.hypot(dx, dz))
    px, pz = scene.x - x, scene.z - z
    t = np.clip(px * (dx / length**2) + pz * (dz / length**2), 0, 1)
    bow = 4 * sag / length * t * (1 - t)
    qx, qz = px - t * dx + bow * dz, pz - t * dz - bow * dx
    return np.sqrt(qx * qx + qz * qz) - (radius[0] + (radius[1] - radius[0]) * t)


def melt(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """The union of two signed distances, its corner rounded over `width` mm."""
    blend = np.clip(0.5 + 0.5 * (second - first) / width, 0, 1)
    return second + (first - second) * blend - width * blend * (1 - blend)
