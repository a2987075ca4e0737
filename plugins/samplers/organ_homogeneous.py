"""Batches of one organ each, so that a contrastive loss compares pictures of the same organ."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ussl.data.sampling import numbers, required, shuffled, stretches
from ussl.data.schedule import Rows
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Sampler

_TURN = 0.6180339887498949  # the golden ratio's: its multiples fill the circle evenly


class OrganHomogeneous(Sampler):
    """Every batch from one organ, so that negatives share it; organs come in proportion to their images.

    A global batch, over all devices, has one organ; which one comes next is random. An organ of 2.3 batches has two
    in some epochs and three in others, 2.3 on average, and the images that an epoch leaves out come first in the
    next. An image may come twice in an epoch, cropped anew, but never twice in a batch. Images without an organ are
    left out.
    """

    def __init__(self, *, small: Literal["refuse", "merge", "leave_out"] = "refuse", column: str = "organ") -> None:
        """How organs are dealt out.

        Args:
            small: what to do about organs with fewer images than a batch. refuse: stop and name them; merge: they
                share batches, which then have several organs; leave_out: train without them.
            column: the column that a batch has in common.
        """
        self.small, self.column = small, column

    def order(self, rows: Rows, seed: int, epoch: int) -> np.ndarray:
        keep, organ = self._organs(rows)
        sizes = np.bincount(organ)
        batches = self._batches(sizes, seed, epoch)
        counts = batches[-1] * self.batch_size
        start = batches[:-1].sum(0) * self.batch_size % sizes
        members = np.lexsort((numbers(len(organ), seed, 0, 1), organ))
        chosen = stretches(members, sizes, start, counts)
        chosen = chosen[_dealt(sizes, counts, numbers(len(chosen), seed, epoch))]
        line = shuffled(int(batches[-1].sum()), seed, epoch, 1)
        return keep[chosen].reshape(-1, self.batch_size)[line].ravel()

    def _organs(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """The rows to visit (n,), and the organ of each as a number (n,)."""
        codes, names = required(rows, self.column)
        if (codes < 0).any():
            once(f"{(codes < 0).sum():,} of {len(rows):,} images have no {self.column} and are left out")
        sizes = np.bincount(codes[codes >= 0])
        few = sizes < self.batch_size
        if few.any():
            codes = self._without_few(codes, few, names, sizes)
        keep = np.flatnonzero(codes >= 0)
        return keep, np.unique(codes[keep], return_inverse=True)[1]

    def _without_few(self, codes: np.ndarray, few: np.ndarray, names: list[str], sizes: np.ndarray) -> np.ndarray:
        told = ", ".join(f"{names[i]} {sizes[i]:,}" for i in np.flatnonzero(few))
        fewer = f"fewer images than a batch of {self.batch_size:,}: {told}"
        if self.small == "refuse":
            raise ValueError(
                f"{fewer}. Write --train.batch_size {sizes.min()} or less, --sampler.small merge (they share batches) "
                "or --sampler.small leave_out"
            )
        merged = len(names) if self.small == "merge" else -1
        if self.small == "merge" and (total := int(sizes[few].sum())) < self.batch_size:
            raise ValueError(
                f"{fewer}, {total:,} together. Write --train.batch_size {total} or --sampler.small leave_out"
            )
        if few.all() and self.small == "leave_out":
            raise ValueError(f"{fewer}: none is left. Write --train.batch_size {sizes.max()} or less")
        once(f"{fewer}; {'they share batches' if self.small == 'merge' else 'left out'}")
        return np.where((codes >= 0) & few[codes], merged, codes)

    def _batches(self, sizes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Batches of each organ in the epochs up to `epoch`: (epoch + 1, organs), equal sums, right on average.

        What is not whole in an organ's share is drawn systematically: the parts lie end to end on a line, and those
        are raised that a comb of step 1 hits, whose offset moves on by the golden ratio (Madow 1949).
        """
        share = sizes * (sizes.sum() // self.batch_size) / sizes.sum()
        ends = np.concatenate([[0], np.cumsum(share)])
        ends[-1] = round(ends[-1])
        offset = (numbers(1, seed, 0, 2) / 2**64 + np.arange(epoch + 1) * _TURN) % 1
        hits = np.ceil(ends - offset[:, None])  # teeth of the comb below each end
        return np.diff(hits).astype(np.int64)


def _dealt(sizes: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The places of an epoch's images in random order within their organ, none twice in a batch.

    Images that come a second time, as the last of an organ, stand at its start as well; in between are the others.
    """
    organ = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(organ)) - np.repeat(np.cumsum(counts) - counts, counts)
    third = (within >= (counts - sizes)[organ]).astype(int) + (within >= sizes[organ])
    return np.lexsort((keys, third, organ))


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer batches of one organ."""
    return {"organ_homogeneous": OrganHomogeneous}
