"""A share of the data, for studies of how much data a method needs."""

from __future__ import annotations

import numpy as np

from ussl.data.sampling import drawn, groups, required, shuffled
from ussl.data.schedule import Rows
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Sampler


class Fraction(Sampler):
    """A share of the data: whole patients, stratified by organ; smaller shares lie within larger ones.

    The images are the same in every epoch and for every seed. All patients stand in one line, so that every stretch
    of it from its start has each organ in its proportion; the stretch is taken whose images are nearest to the share.
    A patient of several organs counts for the one with most images.
    """

    def __init__(
        self, *, share: float, by: str | None = "patient", stratify: str | None = "organ", draw: int = 0
    ) -> None:
        """How much, of what.

        Args:
            share: of all images, above 0 and up to 1.
            by: the column whose rows stay together; null: images are drawn one by one.
            stratify: the column whose values keep their proportions; null: none.
            draw: another number, other patients.
        """
        self.share, self.by, self.stratify, self.draw = share, by, stratify, draw
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}: write a number above 0 and up to 1, such as 0.1 for a tenth")

    def order(self, rows: Rows, seed: int, epoch: int) -> np.ndarray:
        chosen = self.chosen(rows)
        return chosen[shuffled(len(chosen), seed, epoch)]

    def chosen(self, rows: Rows) -> np.ndarray:
        """(n,) int64, rising: the rows that every epoch visits."""
        group = self._groups(rows)
        strata, names = self._strata(rows)
        line = self._line(group, strata, drawn(rows, group, self.by, self.draw))
        images = np.cumsum(np.bincount(group)[line])
        patients = int(np.argmin(np.abs(images - self.share * len(rows)))) + 1
        taken = np.zeros(len(line), dtype=bool)
        taken[line[:patients]] = True
        chosen = np.flatnonzero(taken[group])
        self._tell(len(chosen), len(rows), patients, len(line))
        if absent := [name for i, name in enumerate(names) if not (strata[chosen] == i).any()]:
            once(f"this share has no image of {', '.join(absent)}")
        return chosen

    def _groups(self, rows: Rows) -> np.ndarray:
        if self.by is None:
            return np.arange(len(rows))
        required(rows, self.by, "; write by: null to draw images one by one")
        return groups(rows, self.by)

    def _strata(self, rows: Rows) -> tuple[np.ndarray, list[str]]:
        """Which stratum each row is of (n,), and the strata's names; rows without are the last."""
        if self.stratify is None:
            return np.zeros(len(rows), np.int64), []
        codes, names = required(rows, self.stratify, "; write stratify: null to keep no proportions")
        return np.where(codes < 0, len(names), codes), names

    def _line(self, group: np.ndarray, strata: np.ndarray, places: np.ndarray) -> np.ndarray:
        """All groups, so that any stretch from the start has each stratum in its proportion.

        Within its stratum a group's place is random: where the middle of its images lies, from 0 to 1.
        """
        stratum = _most_common(group, strata)
        line = np.lexsort((places, stratum))
        sizes, stratum = np.bincount(group)[line].astype(float), stratum[line]
        totals = np.bincount(stratum, sizes)
        before = np.cumsum(sizes) - sizes - (np.cumsum(totals) - totals)[stratum]
        return line[np.argsort((before + sizes / 2) / totals[stratum], kind="stable")]

    def _tell(self, images: int, of_images: int, groups: int, of_groups: int) -> None:
        by = "" if self.by is None else f", {groups:,} of {of_groups:,} by {self.by}"
        once(f"share {self.share:g} is {images:,} of {of_images:,} images{by}")


def _most_common(group: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """The stratum of most of each group's rows: (groups,)."""
    many = int(strata.max()) + 1
    cells, counts = np.unique(group * many + strata, return_counts=True)
    owner, stratum = np.divmod(cells, many)
    line = np.lexsort((stratum, -counts, owner))
    return stratum[line][np.unique(owner[line], return_index=True)[1]]


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer a share of the data."""
    return {"fraction": Fraction}
