"""Numbers that change as training goes on: learning rates, weight decay, momentum."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


def warmup_cosine(peak: float, end: float, share: float, warmup: float, start: float = 0.0) -> float:
    """Linear from `start` to `peak`, reached at share `warmup` of the training, then half a cosine to `end`.

    The rule of MAE (arXiv:2111.06377), MoCo-v3 (arXiv:2104.02057) and SimCLR (arXiv:2002.05709).
    """
    if share < warmup:
        return start + (peak - start) * share / warmup
    return cosine(peak, end, (share - warmup) / (1 - warmup))


def linspace_cosine(peak: float, end: float, step: int, steps: int, warmup: int, start: float = 0.0) -> float:
    """`warmup` evenly spaced values whose first is `start` and whose last is `peak`, then half a cosine to `end`.

    The rule of DINO (arXiv:2104.14294): `peak` comes twice, and a warm-up of one step is `start` alone.
    """
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    return cosine(peak, end, (step - warmup) / (steps - warmup))


def multistep(
    peak: float, share: float, warmup: float, milestones: Sequence[float], gamma: float, start: float = 0.0
) -> float:
    """Linear from `start` to `peak`, then `gamma` times as much from each share in `milestones`, ascending, on.

    The rule of SimMIM (arXiv:2111.09886).
    """
    if share < warmup:
        return start + (peak - start) * share / warmup
    return peak * gamma ** bisect_right(milestones, share)


def refuse_rates(base: float, end: float, warmup: float) -> None:
    """ValueError where the settings of a learning rate's schedule cannot be meant."""
    if not 0 < base < math.inf:
        raise ValueError(f"base_learning_rate must be above 0, not {base}")
    if not 0 <= end < math.inf:
        raise ValueError(f"min_learning_rate must be 0 or more, not {end}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the training in [0, 1), such as 0.1, not {warmup}")
