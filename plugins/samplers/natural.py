"""Every image once an epoch, in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ussl.data.sampling import shuffled
from ussl.hookspecs import hookimpl
from ussl.parts import Sampler


class Natural(Sampler):
    """Every image once an epoch, in an order of its own for each seed and epoch."""

    def order(self, rows: Sequence[Mapping[str, Any]], seed: int, epoch: int) -> np.ndarray:
        return shuffled(len(rows), seed, epoch)


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer the random order."""
    return {"natural": Natural}
