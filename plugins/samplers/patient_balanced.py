"""Every patient equally often, however many pictures there are of each."""

from __future__ import annotations

import numpy as np

from ussl.data.sampling import groups, required, rotated, shuffled
from ussl.data.schedule import Rows
from ussl.hookspecs import hookimpl
from ussl.parts import Sampler


class PatientBalanced(Sampler):
    """Every patient equally often: each epoch a few images of each, taking turns over epochs.

    So that long cine loops do not outweigh single pictures. A patient with fewer images than `per_patient` repeats
    them, cropped anew. An image without a patient counts as a patient of its own.
    """

    def __init__(self, *, per_patient: int = 1, column: str = "patient") -> None:
        """Images by patient.

        Args:
            per_patient: images of each patient in an epoch.
            column: the column to balance; equal names in two sources are two patients.
        """
        self.per_patient, self.column = per_patient, column
        if per_patient < 1:
            raise ValueError(f"per_patient is {per_patient}: write at least 1")

    def order(self, rows: Rows, seed: int, epoch: int) -> np.ndarray:
        required(rows, self.column)
        group = groups(rows, self.column)
        counts = np.full(int(group.max()) + 1, self.per_patient)
        chosen = rotated(group, counts, seed, epoch)
        return chosen[shuffled(len(chosen), seed, epoch)]


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer patients in equal shares."""
    return {"patient_balanced": PatientBalanced}
