"""Organs of the abdomen and pelvis, seen with convex probes: liver, kidney, gallbladder, fetal head, ovary."""

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


def fetal_head(scene: Scene, label: str) -> None:
    """A skull with midline, cavum, thalami and choroid, in amniotic fluid between placenta and uterine wall."""
    rng = scene.rng
    top = wall(scene, (2, 8), rng.uniform(4, 8))
    scene.fill(scene.depth > top, Tissue(rng.uniform(-8, -2), 0.5))
    scene.sheets(scene.depth > top, rng.uniform(-8, 1), 18, 3)
    scene.grain(scene.depth > top, 4, 22, 5)
    wide = rng.uniform(40, 52)
    half, angle = (wide, wide * rng.uniform(0.72, 0.82)), rng.uniform(-0.35, 0.35)
    centre = (rng.uniform(-3, 3), top + rng.uniform(4, 12) + half[1])
    head = ellipse(scene, centre, half, angle)
    shift, room = rng.uniform(-14, 14), rng.uniform(1.05, 1.35)
    pool = ellipse(scene, (centre[0] + shift, centre[1] + rng.uniform(-4, 5)), (half[0] * room, half[1] + 3), angle)
    scene.fill((pool < 0) & (scene.depth > top + 2), FLUID)
    scene.fill(head < rng.uniform(2.5, 5), Tissue(rng.uniform(-10, -5), 0.6))  # scalp
    brain = Tissue(rng.uniform(-24, -16), 0.4)
    scene.fill(head < 0, Tissue(-2, 1.6))
    scene.fill(head < -2.2, brain)
    scene.organ |= head < 0
    scene.grain(head < -2.2, 5.5, 9, 3, angle)
    scene.sheets(head < -4, brain.echo + rng.uniform(-4, 6), rng.uniform(4, 9), rng.uniform(1.5, 2.5), angle)
    _brain(scene, centre, half, angle, brain)
    # bone turned along the beam sends little back, and hides what lies behind it
    scene.rim(head + np.float32(1.0), rng.uniform(17, 23), rng.uniform(0.8, 1.4), faces=rng.uniform(2.5, 5))


def _brain(scene: Scene, centre: Point, half: Point, angle: float, brain: Tissue) -> None:
    rng = scene.rng

    def inside(u: float, v: float) -> Point:
        return place(centre, angle, u * half[0], v * half[1])

    for side in (-1, 1):
        spot, spread = rng.uniform(0, 0.1), (half[0] * rng.uniform(0.15, 0.22), half[1] * rng.uniform(0.11, 0.17))
        thalamus = ellipse(scene, inside(spot, side * 0.2), spread, angle + side * 0.3)
        scene.fill(thalamus < 0, Tissue(brain.echo - 5, 0.4))
        spot, spread = rng.uniform(-0.5, -0.35), (half[0] * rng.uniform(0.12, 0.24), half[1] * rng.uniform(0.06, 0.12))
        choroid = ellipse(scene, inside(spot, side * rng.uniform(0.25, 0.4)), spread, angle - side * 0.35)
        scene.fill(choroid < 0, Tissue(brain.echo + rng.uniform(8, 17), 0.5))
        insula = tube(scene, inside(-0.25, side * 0.6), inside(0.3, side * 0.58), (0.2, 0.2), side * rng.uniform(1, 4))
        scene.rim(insula, rng.uniform(-8, 2), 0.6)
    for start, end in ((-0.85, -0.4), (-0.3, 0.25), (0.55, 0.85)):
        falx = tube(scene, inside(start, 0.0), inside(end, 0.0), (0.2, 0.2), rng.uniform(-0.8, 0.8))
        scene.rim(falx, rng.uniform(2, 10), 0.7, faces=1)
    cavum = ellipse(scene, inside(0.45, 0.0), (half[0] * 0.09, half[1] * 0.07), angle)
    scene.fill(cavum < 0, FLUID)
    scene.rim(cavum, 5, 0.5)


def ovary(scene: Scene, label: str) -> None:
    """Stroma with follicles, pelvic fat and bowel around it, the iliac vein beside it."""
    rng = scene.rng
    scene.fill(scene.depth > 0, Tissue(rng.uniform(-3, 2), 0.6))
    scene.haze += 10 ** (rng.uniform(4, 9) / 20) * np.exp(-scene.depth / rng.uniform(0.6, 1.2))
    scene.grain(scene.depth > 0, 4.5, 14, 3, rng.uniform(-0.5, 0.5))
    scene.rim(scene.surface(rng.uniform(3, 6), 0.5, 30), 4, 0.3)
    large = label != "normal"
    half = (rng.uniform(14, 19), rng.uniform(9, 12))
    centre, angle = (rng.uniform(-4, 4), rng.uniform(20, 26)), rng.uniform(-0.5, 0.5)
    if rng.random() < 0.7:
        vein = tube(
            scene, (-40, centre[1] + 14), (40, centre[1] + rng.uniform(16, 30)), (3.5, 4.5), rng.uniform(-4, 4)
        )
        scene.fill(vein < 0, BLOOD)
        scene.rim(vein, 4, 0.3)
    if rng.random() < 0.5:
        gas(scene, (rng.choice([-1, 1]) * 32.0, centre[1] + 20), 13)
    distance = ellipse(scene, centre, half, angle)
    stroma = Tissue(rng.uniform(-8, -3), 0.5)
    scene.fill(distance < 0, stroma)
    scene.grain(distance < 0, 1.5, 3, 2)
    scene.rim(distance, 3, 0.3)
    scene.organ |= distance < 0
    _follicles(scene, centre, half, angle, int(rng.integers(5, 10)))
    site = (centre[0] + rng.uniform(-4, 4), centre[1] + rng.uniform(-2, 5))
    if large:
        lesion(scene, label, site, (8, 15), stroma._replace(echo=stroma.echo + 4), cysts=0.6)
        scene.organ |= scene.lesion


def _follicles(
    scene: Scene,
    centre: Point,
    half: Point,
    angle: float,
    count: int,
) -> None:
    """Fluid vesicles under the capsule."""
    rng = scene.rng
    for turn in np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(-0.25, 0.25, count):
        reach, radius = rng.uniform(0.5, 0.68), rng.uniform(1.3, 3.4)
        middle = place(centre, angle, reach * half[0] * np.cos(turn), reach * half[1] * np.sin(turn))
        follicle = ellipse(scene, middle, (radius, radius * rng.uniform(0.75, 1)))
        scene.fill(follicle < 0, FLUID)
        scene.rim(follicle, 3, 0.25)
