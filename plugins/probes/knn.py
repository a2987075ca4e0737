"""Nearest neighbours while training."""

from __future__ import annotations

import torch

from ussl.evaluate.classify import knn
from ussl.evaluate.pictures import LabelledPictures
from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Probe, Source
from ussl_plugins.probes.linear import check_options


class NearestNeighbours(Probe):
    """Labels by the votes of the k nearest pictures in feature space, split by patient; nothing is trained.

    Accuracy, macro F1 and AUC of `ussl.evaluate.classify.knn`, the vote that DINO is evaluated with.
    """

    def __init__(
        self,
        source: Source,
        *,
        every: float = 1.0,
        label: str = "label",
        group: str | None = "patient",
        k: int = 20,
        temperature: float = 0.07,
        folds: int = 5,
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Choose what to measure on; pictures are read at the first run and kept (size x size bytes each, grey).

        Args:
            source: of the labelled pictures.
            every: passes over the training data between two runs.
            label: column of the labels; images without one are left out and counted.
            group: column of the patients; null when no patient has two images.
            k: neighbours that vote.
            temperature: a neighbour votes with exp(cosine / temperature).
            folds: of the cross-validation.
            size: side of the pictures in pixels; the encoder's own, else 224, by default.
            limit: at most so many images, spread over as many patients as can be; all by default.
        """
        check_options(every, folds)
        if k < 1 or not temperature > 0:
            raise ValueError(f"k is {k}, temperature {temperature}: k must be at least 1, temperature above 0")
        self.every, self.k, self.temperature, self.folds = every, k, temperature, folds
        self.pictures = LabelledPictures(source, label=label, group=group, size=size, limit=limit)

    def run(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        data, options = self.pictures, {"k": self.k, "folds": self.folds, "temperature": self.temperature}
        numbers = knn(data.features(encoder, device), data.labels, data.groups, **options)
        return numbers | {"unlabelled": float(data.unlabelled)}


@hookimpl
def ussl_probes() -> dict[str, type[Probe]]:
    """Offer the nearest neighbours."""
    return {"knn": NearestNeighbours}
