"""Organs near the skin, seen with linear probes: thyroid, breast, muscle."""

from __future__ import annotations

import numpy as np

from ussl.phantom.lesions import lesion
from ussl.phantom.scene import BLOOD, BONE, DENSE, FAT, GAS, MUSCLE, Scene, Tissue, ellipse, melt


def skin(scene: Scene, fat: float, fat_echo: float = -5.0) -> float:
    """Ring-down, skin and subcutaneous fat of a thickness (mm); returns the depth of the fascia below."""
    rng = scene.rng
    thick = rng.uniform(1.2, 2.2)
    layer = scene.depth < thick + fat
    scene.fill(layer, Tissue(fat_echo, FAT.attenuation))
    scene.sheets(layer, rng.uniform(-1, 6), rng.uniform(5, 12), rng.uniform(0.35, 0.6))
    scene.fill(scene.depth < thick, DENSE)
    scene.haze += 10 ** (rng.uniform(2, 8) / 20) * np.exp(-scene.depth / rng.uniform(0.4, 0.9))
    scene.rim(scene.surface(thick, 0.15, 30), 7, 0.2)
    return thick + fat


def fascicles(scene: Scene, inside: np.ndarray, angle: float, echo: float, bend: float = 0.0) -> None:
    """Muscle: dark, with bright sheets of connective tissue along its fibres."""
    rng = scene.rng
    scene.fill(inside, Tissue(echo, MUSCLE.attenuation))
    scene.grain(inside, 2.5, rng.uniform(16, 30), rng.uniform(1.5, 2.5), angle, bend)
    scene.sheets(inside, echo + rng.uniform(10, 15), rng.uniform(3, 6.5), rng.uniform(0.26, 0.4), angle, bend)


def bone(scene: Scene, distance: np.ndarray, level: float = 18.0) -> None:
    """A bright surface where a distance is zero, shadow behind it."""
    scene.fill(distance < 0, BONE)
    scene.rim(distance, level, 0.35, faces=1.5)


def thyroid(scene: Scene, label: str) -> None:
    """A transverse neck: two lobes and the isthmus around the trachea, carotids, strap muscles."""
    rng = scene.rng
    fascia = skin(scene, rng.uniform(1.5, 4.5), -3)
    scene.fill(scene.depth >= fascia, Tissue(rng.uniform(-9, -4), 0.6))
    scene.sheets(scene.depth >= fascia, rng.uniform(-2, 5), 5, 0.5)
    straps = fascia + rng.uniform(2.5, 4.5)
    above, below = scene.surface(fascia, 0.4, 40), scene.surface(straps, 0.6, 50)
    fascicles(scene, (above > 0) & (below < 0), 0, rng.uniform(-12, -8))
    scene.rim(above, 6, 0.25)
    scene.rim(below, 3, 0.25)
    deep = straps + rng.uniform(17, 21)
    prevertebral = scene.surface(deep, 1.2, 45)
    fascicles(scene, prevertebral > 0, rng.uniform(-0.1, 0.1), -10)
    scene.rim(prevertebral, 4, 0.3)
    bone(scene, -scene.surface(deep + rng.uniform(6, 9), 0.7, 30), 12)
    _lobes(scene, label, straps)
    _trachea(scene, straps + rng.uniform(2.5, 4))
    for side in (-1, 1):
        _neck_vessels(scene, side, straps)


def _lobes(scene: Scene, label: str, top: float) -> None:
    rng = scene.rng
    gland = Tissue(rng.uniform(1, 5), 0.55)
    half = (rng.uniform(7.5, 9.5), rng.uniform(6.5, 8.5))
    middle = top + half[1] * 0.95
    distance = ellipse(scene, (0, top + 1.8), (9, rng.uniform(1.3, 2.2)))
    for side in (-1, 1):
        lobe = ellipse(scene, (side * rng.uniform(13.5, 15), middle), half, side * rng.uniform(-0.25, 0.1))
        distance = melt(distance, lobe, 2.0)
    scene.organ |= distance < 0
    scene.fill(distance < 0, gland)
    scene.grain(distance < 0, rng.uniform(0.4, 1.4), 1.8, 1.5)
    scene.rim(distance, 5, 0.25, faces=2)
    site = (14.5 + rng.uniform(-1.5, 1.5), middle + rng.uniform(-1.5, 1.5))
    lesion(scene, label, site, (2.5, 6.0), gland, cysts=0.3)


def _trachea(scene: Scene, top: float) -> None:
    rng = scene.rng
    radius = rng.uniform(7.5, 9)
    centre = (0.0, top + radius)
    scene.fill(ellipse(scene, centre, (radius, radius)) < 0, Tissue(-14, 1.0))  # cartilage
    air = ellipse(scene, centre, (radius - 1.6, radius - 1.6))
    scene.fill(air < 0, GAS)
    scene.rim(air, 14, 0.3, faces=3)
    period, decay = rng.uniform(1.4, 2.4), rng.uniform(1.5, 3.0)
    behind = np.flatnonzero((air < -0.5) & (scene.z < centre[1]) & (np.abs(scene.x) < radius * 0.5))
    far = air.ravel()[behind]
    scene.haze.reshape(-1)[behind] += 1.3 * np.cos(np.pi * far / period) ** 4 * np.exp(far / decay)


def _neck_vessels(scene: Scene, side: int, top: float) -> None:
    rng = scene.rng
    radius = rng.uniform(2.7, 3.6)
    carotid = ellipse(scene, (side * rng.uniform(24, 26.5), top + rng.uniform(8, 11)), (radius, radius))
    scene.fill(carotid < 0, BLOOD)
    scene.rim(carotid, 8, 0.3, faces=3)
    flat = rng.uniform(1.5, 3)
    jugular = ellipse(scene, (side * rng.uniform(27, 30), top + rng.uniform(2.5, 4)), (4.5, flat), side * 0.3)
    scene.fill(jugular < 0, BLOOD)
    scene.rim(jugular, 2, 0.3)


def breast(scene: Scene, label: str) -> None:
    """Skin, fat lobules between ligaments, the fibroglandular layer, pectoral muscle, ribs and pleura."""
    rng = scene.rng
    top = skin(scene, rng.uniform(4, 9), rng.uniform(-13, -9))
    gland, back = rng.uniform(8, 15), rng.uniform(2, 5)
    front = scene.surface(top, rng.uniform(0.8, 2.0), 22)
    fat = (scene.depth > 2.2) & (front < 0)
    scene.septa(fat, rng.uniform(11, 16), rng.uniform(6, 9), rng.uniform(3.5, 5.5))
    rear = scene.surface(top + gland, rng.uniform(0.6, 1.6), 28)
    glandular = (front > 0) & (rear < 0)
    parent = Tissue(rng.uniform(2, 6), 0.7)
    scene.fill(glandular, parent)
    scene.organ |= glandular
    scene.grain(glandular, rng.uniform(3, 5), rng.uniform(5, 9), rng.uniform(1, 1.6), rng.uniform(-0.15, 0.15))
    _chest(scene, top + gland + back, rear)
    site = (rng.uniform(-5, 5), top + gland * rng.uniform(0.4, 0.6))
    lesion(scene, label, site, (3.0, min(6.5, 0.62 * gland)), parent, cysts=0.35)


def _chest(scene: Scene, top: float, rear: np.ndarray) -> None:
    rng = scene.rng
    fascia = scene.surface(top, 0.8, 45)
    retromammary = (rear > 0) & (fascia < 0)
    scene.fill(retromammary, Tissue(-11, 0.6))
    scene.septa(retromammary, 12, 10, 4)
    thick, angle = rng.uniform(4, 8), rng.uniform(-0.08, 0.08)
    pleura = scene.surface(top + thick + rng.uniform(5, 7), 0.8, 60)
    fascicles(scene, fascia > 0, angle, rng.uniform(-12, -8))
    scene.rim(fascia, 6, 0.25)
    scene.rim(scene.surface(top + thick, 0.4, 50), 3, 0.25)
    scene.fill(pleura > 0, GAS)
    scene.rim(pleura, 15, 0.3)
    gap = top + thick + 3.5
    for side in (-1, 1):
        rib = ellipse(scene, (side * rng.uniform(11, 15), gap + 1), (rng.uniform(4.5, 6), rng.uniform(2, 3)))
        bone(scene, rib, 11)
        scene.echo[rib < 0] = -18


def muscle(scene: Scene, label: str) -> None:
    """A pennate muscle between bright aponeuroses, a second one and bone below it."""
    rng = scene.rng
    top = skin(scene, rng.uniform(2, 7), rng.uniform(-9, -5))
    thick, slope = rng.uniform(11, 18), rng.uniform(-0.06, 0.06)
    angle = rng.uniform(0.14, 0.42)
    upper = scene.surface(top, 0.3, 60)
    lower = scene.surface(top + thick, 0.5, 70) - np.float32(slope) * scene.x
    belly = (upper > 0) & (lower < 0)
    echo = rng.uniform(-11, -5)
    fascicles(scene, belly, angle, echo, rng.uniform(-0.002, 0.002))
    scene.organ |= belly
    fascicles(scene, lower > 0, -angle * rng.uniform(0.3, 0.8), echo - rng.uniform(2, 6))
    scene.rim(upper, rng.uniform(9, 14), rng.uniform(0.3, 0.5), faces=1)
    scene.rim(upper - np.float32(1.2), 4, 0.25, faces=1)
    scene.rim(lower, rng.uniform(10, 16), rng.uniform(0.35, 0.6), faces=1)
    if rng.random() < 0.6:
        radius, depth = rng.uniform(14, 40), top + thick + rng.uniform(9, 16)
        bone(scene, ellipse(scene, (rng.uniform(-8, 8), depth + radius), (radius, radius)), 16)
