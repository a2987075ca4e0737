"""Organs of the abdomen, seen with convex probes: liver, kidney, gallbladder."""

from __future__ import annotations

import numpy as np

from ussl.phantom.lesions import lesion
from ussl.phantom.scene import BLOOD, FLUID, GAS, LIVER, STONE, Point, Scene, Tissue, ellipse, melt, place, tube
from ussl.phantom.superficial import fascicles, skin


def wall(scene: Scene, fat: Point, muscle: float) -> float:
    """Skin, fat and muscle of the belly; returns the depth of the peritoneum."""
    rng = scene.rng
    fascia = skin(scene, rng.uniform(*fat), rng.uniform(-5, 0))
    inner = fascia + muscle
    above, below = scene.surface(fascia, 0.6, 80), scene.surface(inner, 0.8, 90)
    scene.fill((above > 0) & (below < 0), Tissue(-7, 0.7))
    scene.sheets((above > 0) & (below < 0), rng.uniform(-3, 4), 30, 1.3)
    scene.rim(above, 7, 0.4)
    scene.rim(below, 9, 0.5)
    return inner


def gas(scene: Scene, centre: Point, radius: float) -> np.ndarray:
    """A loop of bowel gas: a ragged bright front, and behind it a dirty shadow that fades. Signed distance (A, L)."""
    rng = scene.rng
    loop = ellipse(scene, centre, (radius, 0.7 * radius))
    ragged = loop + np.float32(0.06 * radius) * np.sin(scene.x * np.float32(rng.uniform(5, 9) / radius))
    scene.fill(ragged < 0, GAS)
    scene.rim(ragged, 13, 0.9, faces=0.7)
    front = np.cumsum(ragged < 0, axis=0) * np.float32(scene.step)  # mm of gas above each sample
    level = 10 ** (rng.uniform(-10, 0) / 20)
    scene.haze += level * np.exp(-front / rng.uniform(6, 25)) * (front > 0)
    return loop


def vessels(scene: Scene, count: int, top: float, bottom: float) -> None:
    """Hepatic veins without a wall and portal branches with a bright one."""
    rng = scene.rng
    for number in range(count):
        portal = number % 2 == 1
        middle = (rng.uniform(-45, 45), rng.uniform(top, bottom))
        turn, length = rng.uniform(-0.6, 0.9), rng.uniform(8, 38) * (rng.random() < 0.75) + 1.0
        radius = rng.uniform(1.6, 4.2)
        start, end = place(middle, turn, -length / 2, 0), place(middle, turn, length / 2, 0)
        lumen = tube(scene, start, end, (radius, radius * 0.55), rng.uniform(-4, 4))
        if portal:
            scene.fill(lumen < 1.2, Tissue(7, 0.6))
        scene.fill(lumen < 0, BLOOD)
        scene.rim(lumen, 6 if portal else 0, 0.5)


def parenchyma(scene: Scene, top: float) -> Tissue:
    """Liver below a depth, even but for faint clouds; its tissue, which fat brightens and attenuates."""
    rng = scene.rng
    steatosis = rng.random() ** 2
    tissue = Tissue(rng.uniform(-4, 0) + 5 * steatosis, LIVER.attenuation + 0.25 * steatosis)
    below = scene.depth >= top
    scene.fill(below, tissue)
    scene.grain(below, rng.uniform(0.3, 1.2), 5, 4)
    scene.grain(below, rng.uniform(0.5, 2.0), 32, 22)
    return tissue


def liver(scene: Scene, label: str) -> None:
    """Even parenchyma with veins and portal branches, the diaphragm's arc, bowel gas at its edge."""
    rng = scene.rng
    top = wall(scene, (4, 16), rng.uniform(5, 10))
    tissue = parenchyma(scene, top)
    vessels(scene, int(rng.integers(5, 10)), top + 15, top + 85)
    dome = (rng.uniform(-25, 15), top + rng.uniform(25, 40))
    half = (rng.uniform(75, 105), rng.uniform(62, 88))
    lung = -ellipse(scene, dome, half, rng.uniform(-0.35, 0.2))
    scene.organ |= (lung > 0) & (scene.depth > top)
    lesion(scene, label, (rng.uniform(-22, 22), top + rng.uniform(24, 52)), (8, 22), tissue, cysts=0.35)
    beyond = (lung < 0) & (scene.depth > top + 25)
    scene.organ &= ~beyond
    scene.lesion &= ~beyond
    scene.fill(beyond, Tissue(tissue.echo - 9, 0.9))
    scene.grain(beyond, 4, 18, 6)
    diaphragm = np.where(scene.depth > top + 25, lung, np.float32(99))
    scene.rim(diaphragm, rng.uniform(11, 17), rng.uniform(1.0, 2.2), faces=2)
    if rng.random() < 0.6:
        scene.organ &= gas(scene, (rng.uniform(60, 85), top + rng.uniform(30, 65)), 32) > 0


def kidney(scene: Scene, label: str) -> None:
    """Cortex, dark pyramids around the bright sinus, the capsule's fat, liver above and psoas below."""
    rng = scene.rng
    top = wall(scene, (4, 14), rng.uniform(6, 10))
    tissue = parenchyma(scene, top)
    vessels(scene, 2, top + 8, top + 15)
    centre = (rng.uniform(-4, 4), top + rng.uniform(34, 42))
    half, angle = (rng.uniform(46, 56), rng.uniform(20, 26)), rng.uniform(-0.25, 0.4)
    distance = ellipse(scene, centre, half, angle)
    psoas = scene.surface(centre[1] + half[1] * 0.9, 3, 120) - 0.3 * scene.x
    fascicles(scene, psoas > 0, 0.3, -9)
    scene.fill(distance < 2.5, Tissue(rng.uniform(4, 8), 0.6))
    cortex = Tissue(tissue.echo - rng.uniform(2, 6), 0.5)
    scene.fill(distance < 0, cortex)
    scene.rim(distance, 6, 0.5, faces=1)
    scene.organ |= distance < 0
    _pyramids(scene, centre, half, angle, cortex)
    sinus = ellipse(scene, centre, (half[0] * rng.uniform(0.5, 0.6), half[1] * rng.uniform(0.32, 0.42)), angle)
    ragged = sinus + 1.5 * np.sin(scene.x * 0.45 + rng.uniform(0, 6)) * np.sin(scene.z * 0.5 + rng.uniform(0, 6))
    scene.fill(ragged < 0, Tissue(rng.uniform(7, 11), 0.6))
    scene.grain(ragged < 0, 4, 5, 2.0, angle)
    pole = (1 if rng.random() < 0.5 else -1) * half[0] * rng.uniform(0.5, 0.7)
    x, z = place(centre, angle, pole, 0)
    site = (x, z - rng.uniform(4, 9))
    lesion(scene, label, site, (7, 15), cortex, cysts=0.6)


def _pyramids(
    scene: Scene,
    centre: Point,
    half: Point,
    angle: float,
    cortex: Tissue,
) -> None:
    rng = scene.rng
    for turn in np.linspace(0, 2 * np.pi, 10, endpoint=False) + rng.uniform(0, 0.6):
        middle = place(centre, angle, 0.72 * half[0] * np.cos(turn), 0.66 * half[1] * np.sin(turn))
        outwards = np.arctan2(np.sin(turn) / half[1], np.cos(turn) / half[0]) + angle
        size = rng.uniform(0.8, 1.15)
        pyramid = ellipse(scene, middle, (5.5 * size, 4.2 * size), outwards)
        scene.fill(pyramid < 0, Tissue(cortex.echo - rng.uniform(5, 8), 0.45))


def gallbladder(scene: Scene, label: str) -> None:
    """A pear of bile with a bright wall in the liver; stones or polyps when benign, a mass when malignant."""
    rng = scene.rng
    top = wall(scene, (3, 11), rng.uniform(4, 8))
    tissue = parenchyma(scene, top)
    vessels(scene, 4, top + 8, top + 60)
    angle, length = rng.uniform(-0.2, 0.75), rng.uniform(22, 36)
    body = (rng.uniform(-4, 8), top + rng.uniform(20, 30))
    fat = length * rng.uniform(0.34, 0.48)
    neck = place(body, angle, -0.75 * length, 0)
    pear = melt(ellipse(scene, body, (length * 0.75, fat), angle), ellipse(scene, neck, (9, 5), angle), 8)
    thick = rng.uniform(1.2, 2.6) + (rng.uniform(0, 4) if label == "malignant" else 0)
    scene.fill(pear < thick, Tissue(rng.uniform(5, 9), 0.5))
    scene.fill(pear < 0, FLUID)
    scene.rim(pear - np.float32(thick), 5, 0.5)
    scene.rim(pear, 10, 0.5, faces=1.2)
    scene.organ |= pear < thick
    if rng.random() < 0.65:
        gas(scene, (body[0] + length * 0.6, body[1] + fat + 20), 20)
    if label == "benign":
        _stones(scene, pear, body, length, fat, angle)
    site = (body[0] + rng.uniform(-0.2, 0.3) * length, body[1] + fat * rng.uniform(0.3, 0.8))
    if label == "malignant":
        lesion(scene, label, site, (6, 12), Tissue(tissue.echo + 7, 0.6))


def _stones(
    scene: Scene,
    pear: np.ndarray,
    body: Point,
    length: float,
    fat: float,
    angle: float,
) -> None:
    """Stones that lie on the far wall and shadow, or polyps that hang from it and do not."""
    rng = scene.rng
    polyps = rng.random() < 0.35
    for _ in range(int(rng.integers(1, 4))):
        along, radius = rng.uniform(-0.45, 0.45) * length, rng.uniform(2, 5.5) * (0.7 if polyps else 1)
        drop = fat * np.sqrt(max(0.0, 1 - (along / (0.75 * length)) ** 2)) - radius * 0.9
        drop = -drop if polyps and rng.random() < 0.4 else drop
        distance = ellipse(scene, place(body, angle, along, drop), (radius * 1.15, radius))
        scene.fill(distance < 0, Tissue(rng.uniform(-1, 6), 0.6) if polyps else STONE)
        scene.lesion |= distance < 0
        if not polyps:
            scene.rim(distance, 18, 0.7, faces=0.7)
