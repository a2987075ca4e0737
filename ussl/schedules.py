"""Numbers that change as training goes on."""

from __future__ import annotations

import math


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))
