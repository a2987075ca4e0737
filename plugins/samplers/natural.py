"""Every image once an epoch, in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ussl.hookspecs import hookimpl
from ussl.parts import Sampler


class Natural(Sampler):
    """Every image once an epoch, in an order of its own for each seed and epoch.

    The order sorts raw Philox numbers (Salmon et al. 2011, doi 10.1145/2063384.2063405) keyed by (seed, epoch).
    NumPy keeps those numbers as they are between versions, which it does not promise of `permutation`.
    """

    def order(self, rows: Sequence[Mapping[str, Any]], seed: int, epoch: int) -> np.ndarray:
        key = np.random.SeedSequence(seed % 2**64, spawn_key=(epoch,))
        return np.argsort(np.random.Philox(key).random_raw(len(rows)), kind="stable")


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer the random order."""
    return {"natural": Natural}
