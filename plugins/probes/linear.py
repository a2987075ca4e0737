"""A linear probe while training, and what every probe shares."""

from __future__ import annotations

import torch

from ussl.evaluate.classify import linear
from ussl.evaluate.pictures import LabelledPictures
from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Probe, Source


class LinearProbe(Probe):
    """Cross-validated logistic regression on the frozen features of labelled pictures, split by patient.

    Accuracy, macro F1 and AUC of `ussl.evaluate.classify.linear`, the same at every run but for the encoder.
    """

    def __init__(
        self,
        source: Source,
        *,
        every: float = 1.0,
        label: str = "label",
        group: str | None = "patient",
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
            folds: of the cross-validation.
            size: side of the pictures in pixels; the encoder's own, else 224, by default.
            limit: at most so many images, spread over as many patients as can be; all by default.
        """
        check_options(every, folds)
        self.every, self.folds = every, folds
        self.pictures = LabelledPictures(source, label=label, group=group, size=size, limit=limit)

    def run(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        data = self.pictures
        numbers = linear(data.features(encoder, device), data.labels, data.groups, self.folds)
        return numbers | {"unlabelled": float(data.unlabelled)}


def check_options(every: float, folds: int = 2) -> None:
    """ValueError for options that no probe can meet."""
    if not every > 0:
        raise ValueError(f"every is {every}; write a number of epochs above 0, such as 1 or 0.5")
    if folds < 2:
        raise ValueError(f"folds is {folds}, and must be at least 2")


@hookimpl
def ussl_probes() -> dict[str, type[Probe]]:
    """Offer the linear probe."""
    return {"linear": LinearProbe}
