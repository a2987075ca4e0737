"""Some organs, and so many images of each: the data of an organ-specific pre-training."""

from __future__ import annotations

import numpy as np

from ussl.data.sampling import drawn, groups, required, shuffled
from ussl.data.schedule import Rows
from ussl.hookspecs import hookimpl
from ussl.options import suggest
from ussl.parts import Sampler


class OrganSubset(Sampler):
    """Only the organs named, and as many images of each as asked, whole patients first.

    For pre-trainings on one organ, or on several of equal size (Kang et al. 2025, URFM, Table 3). The images are the
    same in every epoch and for every seed. A count takes patient after patient, in a random order, until it is
    reached, so that a larger count holds what a smaller one does.
    """

    def __init__(
        self,
        *,
        organs: dict[str, int | None] | list[str],
        draw: int = 0,
        column: str = "organ",
        group: str = "patient",
    ) -> None:
        """Organs and counts.

        Args:
            organs: names, for all their images: [thyroid, breast]; or counts, {thyroid: 89985, ovary: null}, where
                null is all.
            draw: another number, other patients.
            column: the column that holds the names.
            group: the column whose rows stay together; rows without it are drawn one by one.
        """
        self.organs, self.draw, self.column, self.group = organs, draw, column, group
        names = list(organs)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"organs is {organs}: name at least one, each once")
        if isinstance(organs, dict) and any(count is not None and count < 1 for count in organs.values()):
            raise ValueError(f"organs is {organs}: write at least 1 image of each, or null for all")

    def order(self, rows: Rows, seed: int, epoch: int) -> np.ndarray:
        chosen = self.chosen(rows)
        return chosen[shuffled(len(chosen), seed, epoch)]

    def chosen(self, rows: Rows) -> np.ndarray:
        """(n,) int64, rising: the rows that every epoch visits."""
        codes, names = required(rows, self.column)
        wanted = self.organs if isinstance(self.organs, dict) else dict.fromkeys(self.organs)
        for name in wanted:
            if name not in names:
                known = f"; there are: {', '.join(sorted(names))}"
                raise ValueError(f'organs: no image has {self.column} "{name}"{suggest(name, names, known)}')
        line = self._line(rows) if any(wanted.values()) else np.arange(len(rows))
        return np.sort(np.concatenate([self._first(line, codes, names, *item) for item in wanted.items()]))

    def _line(self, rows: Rows) -> np.ndarray:
        """All rows, patient after patient, patients in a random order."""
        group = groups(rows, self.group)
        return np.lexsort((group, drawn(rows, group, self.group, self.draw)[group]))

    def _first(
        self, line: np.ndarray, codes: np.ndarray, names: list[str], name: str, count: int | None
    ) -> np.ndarray:
        found = line[codes[line] == names.index(name)]
        if count is not None and count > len(found):
            raise ValueError(f"organs: {count:,} images of {name} are asked for, and there are {len(found):,}")
        return found[:count]


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer some organs."""
    return {"organ_subset": OrganSubset}
