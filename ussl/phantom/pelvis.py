"""Organs of the pelvis, seen with convex and endocavity probes: the fetal head, the ovary."""

from __future__ import annotations

import numpy as np

from ussl.phantom.abdomen import gas, wall
from ussl.phantom.lesions import lesion
from ussl.phantom.scene import BLOOD, FLUID, Point, Scene, Tissue, ellipse, place, tube


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
