"""Benign and malignant lesions: shapes, margins, echoes and shadows whose distributions overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ussl.phantom.scene import FLUID, Point, Scene, Tissue

WAVES = np.arange(2, 15)  # lobes and spicules around an outline


@dataclass(frozen=True)
class Traits:
    """How one lesion looks. Levels in dB relative to the tissue it grows in."""

    aspect: float  # height over width
    lobes: float  # amplitude of slow waves of the outline, in radii
    spicules: float  # amplitude of its fast waves
    soft: float  # width of the margin's transition, in radii
    echo: float
    patchy: float  # deviation of internal echoes
    shadow: float  # dB / cm / MHz more than its surroundings, times its radius in mm
    cyst: bool
    capsule: float | None  # level of a bright rim
    halo: float  # rise of echoes around it
    calcifications: int


def traits(rng: np.random.Generator, malignant: bool, cysts: float) -> Traits:
    """Draw how a lesion looks. `cysts` is the share of benign ones that are cysts."""
    if malignant:
        return Traits(
            aspect=rng.normal(1.12, 0.2),
            lobes=abs(rng.normal(0.11, 0.04)),
            spicules=abs(rng.normal(0.085, 0.04)),
            soft=rng.uniform(0.06, 0.3),
            echo=rng.normal(-12, 3),
            patchy=rng.uniform(2, 5),
            shadow=rng.normal(2.6, 0.8),
            cyst=False,
            capsule=None,
            halo=rng.uniform(0, 5),
            calcifications=int(rng.integers(4, 16) * (rng.random() < 0.5)),
        )
    cyst = bool(rng.random() < cysts)
    return Traits(
        aspect=rng.normal(0.68, 0.12),
        lobes=abs(rng.normal(0.03, 0.025)),
        spicules=abs(rng.normal(0, 0.012)),
        soft=rng.uniform(0.02, 0.12),
        echo=rng.normal(-6, 4),
        patchy=rng.uniform(0.3, 1.8),
        shadow=rng.normal(-0.2, 0.8),
        cyst=cyst,
        capsule=rng.uniform(-4, 7),
        halo=0,
        calcifications=int(rng.integers(1, 4) * (rng.random() < 0.15)),
    )


def lesion(
    scene: Scene,
    label: str,
    site: Point,
    radius: Point,
    parent: Tissue,
    cysts: float = 0.3,
) -> None:
    """Grow a lesion of a radius (mm) drawn from a range at a site; nothing when the label is normal."""
    rng = scene.rng
    if label == "normal":
        return
    look = traits(rng, label == "malignant", cysts)
    size = rng.uniform(*radius) * (1.15 if label == "malignant" else 1.0)
    aspect = float(np.clip(look.aspect, 0.4, 1.7))
    half = (size / np.sqrt(aspect), size * np.sqrt(aspect))
    where, distance = outline(scene, site, half, rng.uniform(-0.35, 0.35), look)
    weight = np.clip(0.5 - distance / max(look.soft * size, 0.5), 0, 1)
    loss = max(parent.attenuation + look.shadow / size, 0.15)
    tissue = FLUID if look.cyst else Tissue(parent.echo + look.echo, loss)
    _blend(scene, where, weight, tissue)
    inside = where[distance < 0]
    scene.lesion.reshape(-1)[inside] = True
    if not look.cyst:
        scene.grain(scene.lesion, look.patchy, size * 0.3, size * 0.22)
    ring = np.exp(-(((distance - 0.12 * size) / (0.14 * size)) ** 2)) * (distance > 0)
    scene.echo.reshape(-1)[where] += look.halo * ring
    if look.capsule is not None:
        sheet = np.full(scene.echo.shape, 99, np.float32)
        sheet.reshape(-1)[where] = distance
        scene.rim(sheet, max(look.capsule, 4.0 * look.cyst), 0.25, faces=1)
    calcify(scene, inside, look.calcifications)


def outline(
    scene: Scene,
    site: Point,
    half: Point,
    angle: float,
    look: Traits,
) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions near a lesion, and their signed distances (mm) to its waved outline."""
    rng = scene.rng
    slow, fast = look.lobes * (WAVES < 6), look.spicules * (WAVES >= 6)
    waves = rng.standard_normal(len(WAVES)) * (slow * 0.7 + fast * 0.45)
    phases = rng.uniform(0, 2 * np.pi, len(WAVES))
    dx, dz = scene.x - np.float32(site[0]), scene.z - np.float32(site[1])
    where = np.flatnonzero(dx * dx + dz * dz < (2.2 * max(half)) ** 2)
    dx, dz = dx.ravel()[where], dz.ravel()[where]
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (dx * cos + dz * sin) / half[0], (dz * cos - dx * sin) / half[1]
    circle = np.linspace(-np.pi, np.pi, 720)
    edges = 1 + waves @ np.cos(WAVES[:, None] * circle + phases[:, None])
    turn = (np.arctan2(v, u) + np.pi) * (719 / (2 * np.pi))
    edge = edges[turn.astype(np.intp)]
    return where, ((np.hypot(u, v) - edge) * min(half)).astype(np.float32)


def calcify(scene: Scene, inside: np.ndarray, count: int) -> None:
    """Bright points in a lesion, each with a faint shadow."""
    rng = scene.rng
    if not count or not len(inside):
        return
    points = inside[(rng.random(count) * len(inside)).astype(np.intp)]
    scene.mirror.reshape(-1)[points] = 10 ** (rng.uniform(14, 24, count) / 20)
    scene.attenuation.reshape(-1)[points] += 4


def _blend(scene: Scene, where: np.ndarray, weight: np.ndarray, tissue: Tissue) -> None:
    """Move tissue towards another one by weights in [0, 1]."""
    for field, value in ((scene.echo, tissue.echo), (scene.attenuation, tissue.attenuation)):
        flat = field.reshape(-1)
        flat[where] += weight * (np.float32(value) - flat[where])
    scene.mirror.reshape(-1)[where] *= 1 - weight
