"""Pictures as displays show them, drawn so that the truth about their scan is known: for tests of what finds it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SHAPE = (288, 384)


def speckle(shape, seed=0, mean=70.0):
    """(H, W) uint8: log-compressed Rayleigh noise of two pixels' grain over uneven tissue."""
    rng = np.random.default_rng(seed)
    real, imaginary = (ndimage.gaussian_filter(rng.normal(size=shape), 1.0) for _ in range(2))
    tissue = ndimage.gaussian_filter(rng.normal(size=shape), shape[0] / 8)
    envelope = np.hypot(real, imaginary) * np.exp(0.5 * tissue / tissue.std())
    return np.clip(mean * np.log1p(2 * envelope / envelope.mean()) / np.log(3), 0, 255).astype(np.uint8)


def rectangle(shape=SHAPE, box=(0.12, 0.2, 0.7, 0.6)):
    """(H, W) bool: y, x, height, width as shares of the picture."""
    mask = np.zeros(shape, dtype=bool)
    y, x, height, width = (round(part * shape[i % 2]) for i, part in enumerate(box))
    mask[y : y + height, x : x + width] = True
    return mask


def fan(shape=SHAPE, apex=(-0.1, 0.5), radii=(0.2, 0.98), half=0.6, tilt=0.0):
    """(H, W) bool: apex as shares of height and width, radii of the height, angles in radians."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = y - apex[0] * shape[0], x - apex[1] * shape[1]
    radius, angle = np.hypot(y, x) / shape[0], np.arctan2(x, y) - tilt
    return (radius >= radii[0]) & (radius <= radii[1]) & (abs(angle) <= half)


FORMS = {
    "linear": rectangle(),
    "convex": fan(),
    "phased": fan(apex=(0.08, 0.5), radii=(0.0, 0.84), half=0.7),
    "tilted": fan(tilt=0.2, radii=(0.22, 0.9), half=0.5),
    "cut": fan(apex=(-0.15, 0.5), radii=(0.25, 1.4), half=0.62),
}


def shown(mask, background=0, seed=0, dark=None):
    """(H, W) uint8: speckle where `mask` is, black where `dark` is within it, on a flat background."""
    tissue = speckle(mask.shape, seed)
    if dark is not None:
        tissue = np.where(dark, np.random.default_rng(seed).integers(0, 3, mask.shape), tissue)
    return np.where(mask, tissue, background).astype(np.uint8)


def ellipse(shape, middle, size):
    """(H, W) bool, in shares of the picture."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y / shape[0] - middle[0]) / size[0]) ** 2 + ((x / shape[1] - middle[1]) / size[1]) ** 2 < 1


def marked(picture, *marks):
    """The picture with some of text, ruler, bar, logo, caliper, drawn near its edges."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for mark in marks:
        MARKS[mark](draw, picture.shape[0] / 100, *image.size)
    return np.asarray(image)


def text(draw, unit, width, height):
    font = ImageFont.load_default(size=max(8, 3.4 * unit))
    for line, words in enumerate(("Adult", "S5-1", "49Hz", "16cm", "C 50", "P Low")):
        draw.text((2, 2 + 4 * unit * line), words, font=font, fill=220)


def ruler(draw, unit, width, height):
    for y in np.linspace(0.1, 0.9, 9) * height:
        draw.rectangle((width - 3 * unit, y, width - unit, y + 1), fill=220)


def bar(draw, unit, width, height):
    for y in range(round(0.45 * height), round(0.75 * height)):
        draw.line((unit, y, 3 * unit, y), fill=round(255 * (0.75 - y / height) / 0.3))


def logo(draw, unit, width, height):
    draw.ellipse((width - 8 * unit, 2 * unit, width - 2 * unit, 8 * unit), fill=150, outline=240)


def caliper(draw, unit, width, height):
    x, y, arm = 5 * unit, height - 5 * unit, max(3, 1.2 * unit)
    draw.line((x - arm, y, x + arm, y), fill=220)
    draw.line((x, y - arm, x, y + arm), fill=220)


MARKS = {"text": text, "ruler": ruler, "bar": bar, "logo": logo, "caliper": caliper}


def compressed(picture, quality):
    """The picture after JPEG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def overlap(one, other):
    """Intersection over union."""
    return (one & other).sum() / (one | other).sum()
