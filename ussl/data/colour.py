"""Whether a picture has colour, and its grey where it has none."""

from __future__ import annotations

import numpy as np

TINT = 16  # grey levels between the channels of a pixel up to which it is colourless
STRAY, FEW = 4e-5, 4  # share and number of coloured pixels that compression may leave


def colourless(picture: np.ndarray) -> bool:
    """Whether a picture (H, W, 3) has no colour: channels within `TINT` of each other but for a few stray pixels.

    That is what JPEG makes of grey. Doppler, coloured calipers and colour maps are more than that, and so is an even
    tint of the whole picture beyond it.
    """
    red, green, blue = (picture[..., channel] for channel in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return int((spread > TINT).sum()) <= max(FEW, STRAY * spread.size)


def luminance(picture: np.ndarray) -> np.ndarray:
    """(H, W) of (H, W, 3): ITU-R BT.601, rounded, as Pillow's `convert("L")`."""
    red, green, blue = (picture[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
