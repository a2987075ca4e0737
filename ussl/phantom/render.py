"""One picture of one patient: anatomy, probe and settings from a patient's number, the view from the picture's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ussl.phantom import abdomen, pelvis, superficial
from ussl.phantom.acoustics import Scanner, compress, echoes
from ussl.phantom.scan import Frame
from ussl.phantom.scene import Scene

VERSION = 1  # of the pictures: raise it when they change, so that caches are made anew
LABELS = ("normal", "benign", "malignant")


@dataclass(frozen=True)
class Organ:
    """How an organ is scanned. Ranges are a patient's."""

    paint: Callable[[Scene, str], None]
    probe: str  # "linear" | "convex"
    depth: tuple[float, float]  # mm
    frequency: tuple[float, float]  # MHz
    radius: tuple[float, float] = (0.0, 0.0)  # mm, of a convex face
    half: tuple[float, float] = (19.0, 25.0)  # mm of a linear face, rad of a convex one
    centre: float = 0.0  # mm, where the probe stands
    labels: tuple[str, ...] = LABELS
    bent: float = 1.0  # how far shapes depart from those painted


_ABDOMEN = Organ(abdomen.liver, "convex", (115, 165), (2.5, 4.5), radius=(40.0, 62.0), half=(0.5, 0.66))
_HEAD = replace(_ABDOMEN, paint=pelvis.fetal_head, labels=("normal",), bent=0.4)
ORGANS = {
    "thyroid": Organ(superficial.thyroid, "linear", (34, 44), (7, 12), centre=9.0),
    "breast": Organ(superficial.breast, "linear", (34, 46), (7, 12)),
    "liver": _ABDOMEN,
    "kidney": replace(_ABDOMEN, paint=abdomen.kidney, depth=(95, 130), frequency=(2.8, 5)),
    "gallbladder": replace(_ABDOMEN, paint=abdomen.gallbladder, depth=(75, 115), frequency=(3, 5.5)),
    "ovary": Organ(pelvis.ovary, "convex", (52, 75), (5, 7.5), radius=(10, 12), half=(1.0, 1.2)),
    "muscle": Organ(superficial.muscle, "linear", (30, 48), (7, 12), half=(19, 28), labels=("normal",), bent=0.3),
    "fetal_head": replace(_HEAD, depth=(95, 122), frequency=(2.5, 5)),
}


@dataclass(frozen=True, slots=True)
class Phantom:
    """A rendered picture with its truth."""

    image: np.ndarray  # (H, W) uint8
    organ: np.ndarray  # (H, W) bool
    lesion: np.ndarray  # (H, W) bool
    pixel_mm: float


def stream(seed: int, *key: int) -> np.random.Generator:
    """The random numbers of a key, whatever was drawn before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *key))))


def settings(seed: int, patient: int, view: int, organ: str, size: int, snr: float) -> tuple[Frame, Scanner]:
    """Probe and scanner of a patient, with the small changes of a view."""
    plan, rng, hand = ORGANS[organ], stream(seed, patient, 0), stream(seed, patient, 1, view)
    depth = rng.uniform(*plan.depth) * hand.choice([0.93, 1.0, 1.0, 1.0, 1.08])
    crop = rng.choice([0.0, 0.0, 0.5, 0.9]) if plan.probe == "convex" else 0.0
    frame = Frame(rng.uniform(*plan.radius), rng.uniform(*plan.half), float(depth), size, float(crop))
    scanner = Scanner(
        frequency=rng.uniform(*plan.frequency),
        cycles=rng.uniform(1.6, 2.6) if plan.probe == "linear" else rng.uniform(3.2, 5.5),
        f_number=rng.uniform(3.5, 6.0) if plan.probe == "linear" else rng.uniform(4.5, 7.5),
        focus=depth * rng.uniform(0.35, 0.7),
        snr=snr + rng.normal(0, 3),
        gain=rng.normal(-1, 4) + hand.normal(0, 0.7),
        tilt=tuple(rng.normal((0, 0, -4), (3, 2, 4))),
        dynamic_range=rng.uniform(50, 70),
        gamma=rng.uniform(0.85, 1.25),
        sidelobe=rng.uniform(-46, -32),
    )
    return frame, scanner


def scene(frame: Frame, seed: int, patient: int, view: int, organ: str, label: str) -> Scene:
    """A patient's anatomy as this view cuts it: shifted, tilted, a little nearer the organ's middle or end."""
    plan, hand = ORGANS[organ], stream(seed, patient, 2, view)
    x, z = frame.points
    middle, tilt = z.mean(), hand.normal(0, 0.035)
    shift, scale = hand.normal(0, 0.03) * frame.depth, hand.normal(1, 0.025)
    turned = (x * np.cos(tilt) - (z - middle) * np.sin(tilt)) * scale + shift
    sunk = middle + (z - middle) * np.cos(tilt) + x * np.sin(tilt)
    rng = stream(seed, patient, 3)
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    made = Scene(mirrored * turned + plan.centre, sunk, frame.depths, rng, sum(plan.depth) / 2, plan.bent)
    made.cover = contact(frame, hand)
    plan.paint(made, label)
    return made


def contact(frame: Frame, hand: np.random.Generator) -> np.ndarray:
    """(L,) dB lost at the skin: gel, hair and fat differ from beam to beam, and an edge of the probe may lift off."""
    beam = np.linspace(-1, 1, frame.lines)
    waves = hand.normal(0, 1, 12) @ np.cos(np.pi * np.arange(1, 13)[:, None] * beam + hand.uniform(0, 6.3, (12, 1)))
    left, right = hand.uniform(0.5, 1.6, 2)
    lifted = 28 * (np.maximum(beam - right, 0) + np.maximum(-beam - left, 0))
    return (hand.uniform(0.2, 0.9) * waves + lifted).astype(np.float32)


def render(seed: int, patient: int, view: int, organ: str, label: str, size: int, snr: float) -> Phantom:
    """Simulate one picture. The same arguments give the same picture, up to rounding of the machine's arithmetic."""
    frame, scanner = settings(seed, patient, view, organ, size, snr)
    made = scene(frame, seed, patient, view, organ, label)
    received = echoes(made, frame, scanner, stream(seed, patient, 4, view))
    grey = frame.picture(compress(received, frame, scanner))
    image = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return Phantom(image, frame.stencil(made.organ), frame.stencil(made.lesion), frame.pixel)
