"""Chunk by chunk, for pictures that are streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ussl.data.sampling import numbers, shuffled
from ussl.hookspecs import hookimpl
from ussl.parts import Sampler

_WITHIN = 1  # keys the order within chunks; that of the chunks has a key of one number


class Chunked(Sampler):
    """Every image once an epoch, chunk by chunk: for `stream`, whose chunks are random samples already.

    The chunks come in an order of its own for each seed and epoch, and so do the images within each.
    """

    def order(self, rows: Sequence[Mapping[str, Any]], seed: int, epoch: int) -> np.ndarray:
        """(n,) int64. ValueError: rows without a chunk."""
        cells = [row.get("chunk") for row in rows]
        if any(cell is None for cell in cells):
            raise ValueError(
                f"the sampler chunked needs the column `chunk`, which {sum(cell is None for cell in cells):,} of "
                f"{len(rows):,} images lack: it is for the source stream; write --sampler.name natural"
            )
        names, chunk = np.unique(np.asarray(cells, dtype=np.int64), return_inverse=True)
        place = np.argsort(shuffled(len(names), seed, epoch))
        return np.lexsort((numbers(len(rows), seed, epoch, _WITHIN), place[chunk]))


@hookimpl
def ussl_samplers() -> dict[str, type[Sampler]]:
    """Offer the order of chunks."""
    return {"chunked": Chunked}
