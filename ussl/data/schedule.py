"""Which rows each optimiser step sees: computed from the step alone, with nothing to save or restore."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ussl.parts import Sampler

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """One micro-batch to be read."""

    step: int  # the optimiser step it belongs to
    index: np.ndarray  # (m,) int64 rows
    turn: np.ndarray  # (m,) int64: how often each came before in this epoch


@dataclass
class Schedule:
    """The global batch of every optimiser step, the same on every rank."""

    rows: Rows
    sampler: Sampler
    seed: int
    batch_size: int  # the global batch
    images_per_epoch: int = field(default=0, init=False)
    _orders: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.sampler.batch_size = self.batch_size
        first = self._ordered(0) if self.rows else np.empty(0, dtype=np.int64)
        self._orders[0] = first, _turns(first)
        n = self.images_per_epoch = len(first)
        if n < self.batch_size:
            hint = f"write --train.batch_size {n}" if n else "there is nothing to train on"
            raise ValueError(f"{n} images, fewer than train.batch_size {self.batch_size}: {hint}")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch: the last, incomplete one is dropped."""
        return self.images_per_epoch // self.batch_size

    @property
    def takes_each_once(self) -> bool:
        """Whether an epoch visits every row one time."""
        return self.images_per_epoch == len(self.rows) and not self._order_of(0)[1].any()

    def epoch_of(self, step: int) -> int:
        """The epoch that optimiser step `step` belongs to, both counted from 0."""
        return step // self.steps_per_epoch

    def rows_of(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Epoch, row numbers (b,) and turns (b,) of a global batch; turn: how often the row came before."""
        epoch, within = divmod(step, self.steps_per_epoch)
        part = slice(within * self.batch_size, (within + 1) * self.batch_size)
        order, turn = self._order_of(epoch)
        return epoch, order[part], turn[part]

    def micro_batches(self, step: int, rank: int, world: int, micro: int) -> Iterator[Request]:
        """A rank's stretch of a global batch, in pieces of `micro`."""
        _, index, turn = self.rows_of(step)
        share = self.batch_size // world
        for at in range(rank * share, (rank + 1) * share, micro):
            yield Request(step, index[at : at + micro], turn[at : at + micro])

    def _order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._orders:
            near = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}  # workers read ahead
            self._orders = {**near, epoch: self._order(epoch)}
        return self._orders[epoch]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = self._ordered(epoch)
        if len(order) != (n := self.images_per_epoch):
            raise ValueError(f"{self._name} gave {len(order)} row numbers in epoch {epoch} and {n} in epoch 0")
        return order, _turns(order)

    def _ordered(self, epoch: int) -> np.ndarray:
        order = np.asarray(self.sampler.order(self.rows, self.seed, epoch), dtype=np.int64)
        n = len(self.rows)
        if order.ndim != 1 or (order.size and not 0 <= order.min() <= order.max() < n):
            raise ValueError(f"{self._name} must return row numbers from 0 to {n - 1}")
        return order

    @property
    def _name(self) -> str:
        return f"the sampler {type(self.sampler).__name__}"


def _turns(order: np.ndarray) -> np.ndarray:
    """How often each entry of `order` came before."""
    by_row = np.argsort(order, kind="stable")
    grouped = order[by_row]
    turn = np.empty_like(order)
    turn[by_row] = np.arange(len(order)) - np.searchsorted(grouped, grouped)  # less the start of the entry's group
    return turn
