"""Collapse, watched while training."""

from __future__ import annotations

import torch

from ussl.evaluate.pictures import Pictures
from ussl.evaluate.spread import spread
from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Probe, Source
from ussl_plugins.probes.linear import check_options


class Spread(Probe):
    """How much the features of pictures differ: effective rank and other signs of collapse, without labels.

    The numbers of `ussl.evaluate.spread.spread`, whose `verdict` puts a collapse in words.
    """

    def __init__(
        self, source: Source, *, every: float = 1.0, size: int | None = None, limit: int | None = None
    ) -> None:
        """Choose what to measure on; pictures are read at the first run and kept (size x size bytes each, grey).

        Args:
            source: of the pictures.
            every: passes over the training data between two runs.
            size: side of the pictures in pixels; the encoder's own, else 224, by default.
            limit: at most so many images, drawn at random; all by default.
        """
        check_options(every)
        self.every = every
        self.pictures = Pictures(source, size=size, limit=limit)

    def run(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        return spread(self.pictures.features(encoder, device))


@hookimpl
def ussl_probes() -> dict[str, type[Probe]]:
    """Offer the spread of features."""
    return {"spread": Spread}
