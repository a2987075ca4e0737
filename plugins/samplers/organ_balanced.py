"""Organs in stated shares, between their natural ones and equal ones."""

from __future__ import annotations

import numpy as np

from ussl.data.sampling import NOT_SAID, apportioned, required, rotated, shuffled
from ussl.data.schedule import Rows
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.options import suggest
from ussl.parts import Sampler


class OrganBalanced(Sampler):
    """Organs in stated shares, from natural to equal: rare ones repeat, frequent ones take turns over epochs.

    An organ of n images has a share in proportion to n ** alpha, as languages have in multilingual pre-training
    (Conneau & Lample 2019, arXiv:1901.07291, section 3.1; alpha is 1 / temperature). Every epoch has these shares to
    within one image, by largest remainder. An image that an epoch leaves out comes first in the next; one that comes
    again in an epoch is cropped anew. Images without an organ are together one more, "not said".
    """

    def __init__(
        self,
        *,
        alpha: float = 0.0,
        images: int | None = None,
        cap: int | dict[str, int] | None = None,
        column: str = "organ",
    ) -> None:
        """Shares by organ.

        Args:
            alpha: 0: all organs equally often; 1: as often as there are images of them; 0.5: between the two.
            images: length of an epoch; as many as there are images when not given, or as caps allow.
            cap: at most so many images of one source in an epoch, for every source, or by source: {private: 50000}.
                A capped source counts for its organs by as many images; within an organ, sources keep their
                proportions. So that organs keep their shares, an epoch may become shorter.
            column: the column to balance.
        """
        self.alpha, self.images, self.cap, self.column = alpha, images, cap, column
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: write 0 (all organs equally often) to 1 (by their images)")
        if images is not None and images < 1:
            raise ValueError(f"images is {images}: write at least 1")
        caps = cap.values() if isinstance(cap, dict) else [] if cap is None else [cap]
        if any(limit < 1 for limit in caps):
            raise ValueError(f"cap is {cap}: write at least 1 image a source")

    def order(self, rows: Rows, seed: int, epoch: int) -> np.ndarray:
        cells, counts, _ = self._counts(rows)
        chosen = rotated(cells, counts, seed, epoch)
        return chosen[shuffled(len(chosen), seed, epoch)]

    def shares(self, rows: Rows) -> dict[str, int]:
        """Images of each organ in every epoch."""
        _, counts, organs = self._counts(rows)
        total: dict[str, int] = {}
        for organ, count in zip(organs, counts.tolist(), strict=True):
            total[organ] = total.get(organ, 0) + count
        return total

    def _counts(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Which cell of organ and source each row lies in (n,), how many an epoch takes of each cell, their organs."""
        codes, organs = required(rows, self.column)
        if (codes < 0).any():
            once(f"{(codes < 0).sum():,} of {len(rows):,} images have no {self.column}: balanced as one more")
            codes, organs = np.where(codes < 0, len(organs), codes), [*organs, NOT_SAID]
        sources, limits = self._limits(rows)
        present, cells = np.unique(codes * len(limits) + sources, return_inverse=True)
        organ, source = np.divmod(present, len(limits))
        available = np.bincount(sources, minlength=len(limits))
        sizes = np.bincount(cells) * np.minimum(1, limits / np.maximum(available, 1))[source]
        counts = self._fitted(organ, source, sizes, limits)
        taken = np.bincount(organ, counts)
        if (taken == 0).any():
            none = organs[int(np.argmin(taken))]
            raise ValueError(f"{counts.sum():,} images an epoch leave none for {none}: raise images or cap")
        return cells, counts, [organs[i] for i in organ]

    def _limits(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Which source each row is of (n,), and the most images of each source in an epoch."""
        if self.cap is None:
            return np.zeros(len(rows), np.int64), np.array([np.inf])
        sources, names = required(rows, "source", "; without a cap it needs no source")
        if isinstance(self.cap, int):
            return sources % (len(names) + 1), np.full(len(names) + 1, float(self.cap))
        for name in self.cap:
            if name not in names:
                known = f"; the sources are: {', '.join(names)}"
                raise ValueError(f'cap: no image is of source "{name}"{suggest(name, names, known)}')
        limits = [float(self.cap.get(name, np.inf)) for name in names]
        return sources % (len(names) + 1), np.array([*limits, np.inf])

    def _fitted(self, organ: np.ndarray, source: np.ndarray, sizes: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """Images of each cell in an epoch: organs in their shares, sources within their limits."""
        total = np.bincount(organ, sizes)
        weights = total**self.alpha
        shares = (weights / weights.sum())[organ] * sizes / total[organ]
        by_source = np.bincount(source, shares, len(limits))
        allowed = np.min(limits[by_source > 0] / by_source[by_source > 0])
        wanted = round(sizes.sum()) if self.images is None else self.images
        length = int(min(wanted, allowed + 1e-6))
        while True:
            counts = _by_cell(organ, sizes, apportioned(weights, length))
            over = np.max(np.bincount(source, counts, len(limits)) - limits)
            if over <= 0 or length <= 1:
                break
            length = max(length - int(over), 1)  # whole images may exceed a limit by a few
        if length < wanted and self.images is not None:
            raise ValueError(f"images is {wanted:,}, and cap allows {length:,} an epoch in these shares: write fewer")
        if length < wanted:
            once(f"an epoch is {length:,} images, not {wanted:,}: with more, a source would exceed its cap")
        return counts


def _by_cell(organ: np.ndarray, sizes: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """The quota of each organ divided among its cells in proportion to their sizes."""
    counts = np.zeros(len(organ), np.int64)
    for i, quota in enumerate(quotas.tolist()):
        counts[organ == i] = apportioned(sizes[organ == i], quota)
    return counts


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer organs in stated shares."""
    return {"organ_balanced": OrganBalanced}
