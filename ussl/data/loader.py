"""From rows to batches: workers that read the pictures of each step, in order."""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ussl.data.pictures import fit
from ussl.data.schedule import Request, Rows, Schedule
from ussl.data.shards import InShards, Places
from ussl.parts import Batch, Sampler, Source

LABELS = ("organ", "label", "patient")  # columns that travel with a batch, as codes


def default_workers(devices: int = 1) -> int:
    """Reading processes for each of `devices` on this machine: its share of the cores less one, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(cores // devices - 1, int(cores > 1)))


class _Reader(Dataset[Any]):
    """Reads micro-batches, in a worker. Rows are held pickled: a process that only looks at them copies no memory.

    Of rows in shards only places are held, since the time to look into a table is that of reading some pictures.
    """

    def __init__(self, rows: Rows, readers: Mapping[str, Source], codes: Mapping[str, list[str]], canvas: int) -> None:
        in_shards = {name for name, reader in readers.items() if isinstance(reader, InShards)}
        packed = [row.get("shard") is not None and _reader_of(row) in in_shards for row in rows]
        self.place = np.where(packed, np.cumsum(packed) - 1, -1)
        self.places = Places([row for row, lies in zip(rows, packed, strict=True) if lies])
        blobs = [b"" if lies else pickle.dumps(dict(row)) for row, lies in zip(rows, packed, strict=True)]
        self.ends = np.cumsum([len(blob) for blob in blobs])
        self.blobs = np.frombuffer(b"".join(blobs), dtype=np.uint8)
        self.readers = dict(readers)
        self.labels = {name: _coded(rows, name, values) for name, values in codes.items()}
        self.canvas = canvas

    def __getitem__(self, request: Request) -> tuple[int, Batch | str]:
        """The step and its batch, or what is wrong with a file: torch would wrap an exception in a traceback."""
        try:
            pictures = [self._picture(i) for i in request.index.tolist()]
        except (ValueError, OSError) as error:
            return request.step, str(error)
        labels = {name: codes[request.index] for name, codes in self.labels.items()}
        index, turn = torch.from_numpy(request.index.copy()), torch.from_numpy(request.turn.copy())
        return request.step, _on_one_canvas(pictures, index, turn, labels)

    def _picture(self, i: int) -> tuple[np.ndarray, float]:
        """The picture of a row, no larger than the canvas, and its pixels per pixel of the source."""
        place = self.place[i]
        picture, before = self.places.picture(place) if place >= 0 else self._read(i)
        picture, scale = fit(picture, self.canvas)
        return picture, scale * before

    def _read(self, i: int) -> tuple[np.ndarray, float]:
        row = pickle.loads(self.blobs[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes())
        try:
            picture = self.readers[_reader_of(row)].read(row)
        except (ValueError, OSError) as error:
            raise ValueError(str(error) if row["path"] in str(error) else f"{row['path']}: {error}") from None
        colour = picture.ndim == 3 and picture.shape[2] == 3
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or colour) or 0 in picture.shape:
            what = f"{picture.dtype} {picture.shape}"
            raise ValueError(f"{row['path']}: reader {_reader_of(row)} gave {what}, not uint8 (H, W) or (H, W, 3)")
        return picture, float(row.get("packed_scale") or 1.0)


def _reader_of(row: Mapping[str, Any]) -> str:
    return row.get("reader") or "images"


def _coded(rows: Rows, name: str, values: list[str]) -> Tensor:
    """(n,) int64 positions in `values`, -1 where a row has none."""
    code = {value: i for i, value in enumerate(values)}
    return torch.tensor([-1 if row.get(name) is None else code[str(row[name])] for row in rows])


def _on_one_canvas(pictures: list[tuple[np.ndarray, float]], index: Tensor, turn: Tensor, labels: Any) -> Batch:
    """Pictures of any size on the smallest canvas that holds each, grey where all are grey."""
    sizes = [picture.shape[:2] for picture, _ in pictures]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    channels = 3 if any(picture.ndim == 3 for picture, _ in pictures) else 1
    pixels = _memory(len(pictures), channels, height, width)
    for canvas, (picture, _) in zip(pixels.numpy(), pictures, strict=True):
        rows, columns = picture.shape[:2]
        canvas[:, :rows, :columns] = picture.transpose(2, 0, 1) if picture.ndim == 3 else picture
        canvas[:, :rows, columns:] = 0
        canvas[:, rows:] = 0
    box = torch.tensor([(0, 0, *size) for size in sizes])
    scale = torch.tensor([scale for _, scale in pictures], dtype=torch.float32)
    return Batch(pixels, box, scale, index, turn, labels)


def _memory(*shape: int) -> Tensor:
    """For pixels; a worker's is at once what it shares with the main process, as in torch's own collation."""
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, dtype=np.uint8))  # numpy asks for huge pages
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(math.prod(shape))).view(shape)


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    """Workers outlive the signals that stop a run: the main process finishes its step, then ends them itself."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Loader:
    """Batches of any step, on any rank, in order: read by `workers` processes (0: by this one).

    Args:
        rows: what sources said, a mapping an image; `reader` names who reads it ("images" where it says nothing).
        readers: the sources by name.
        sampler: the order of each epoch.
        seed: of that order.
        batch_size: images of an optimiser step, over all ranks and accumulation.
        micro_batch: images that go through the network at once on one device.
        canvas: pixels of a picture's longest side; larger pictures are scaled down.
        rank, world: which of how many devices this process feeds.
        workers: reading processes.
        pin: leave batches in page-locked memory, for CUDA.

    Raises:
        ValueError: fewer images than `batch_size`; sizes that do not divide; a reader that is not there.
    """

    def __init__(
        self,
        rows: Rows,
        readers: Mapping[str, Source],
        sampler: Sampler,
        *,
        seed: int,
        batch_size: int,
        micro_batch: int,
        canvas: int = 512,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        _check_sizes(batch_size, micro_batch, canvas, world)
        missing = sorted({_reader_of(row) for row in rows} - set(readers))
        if missing:
            raise ValueError(f"rows ask for the reader {missing[0]!r}; there are: {', '.join(sorted(readers))}")
        self.schedule = Schedule(rows, sampler, seed, batch_size)
        self.rank, self.world, self.micro_batch, self.workers, self.pin = rank, world, micro_batch, workers, pin
        values = {name: {str(row[name]) for row in rows if row.get(name) is not None} for name in LABELS}
        self.codes: dict[str, list[str]] = {name: sorted(some) for name, some in values.items() if some}
        self._reader = _Reader(rows, readers, self.codes, canvas)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.schedule.steps_per_epoch

    def resized(self, micro_batch: int) -> Loader:
        """This loader with micro-batches of another size; it shares what a million rows take time to make.

        Raises:
            ValueError: a size that does not divide the batch of one device.
        """
        _check_sizes(self.schedule.batch_size, micro_batch, self._reader.canvas, self.world)
        other = copy.copy(self)
        other.micro_batch = micro_batch
        return other

    def epoch_of(self, step: int) -> int:
        """The epoch that optimiser step `step` belongs to."""
        return self.schedule.epoch_of(step)

    def rows_of(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Epoch, row numbers and turns of the global batch of a step."""
        return self.schedule.rows_of(step)

    def batches(self, start_step: int, stop_step: int) -> Iterator[tuple[int, Batch]]:
        """This rank's micro-batches of the steps from `start_step` up to `stop_step`, in order, each with its step.

        Raises:
            ValueError: a picture cannot be read: which, why, and what to do. Never skipped in silence.
        """
        loader = DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._requests(start_step, stop_step),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # of its own, so as not to draw from the global one
        )
        for step, batch in loader:
            yield step, _sound(batch)

    def _requests(self, start: int, stop: int) -> Iterator[Request]:
        for step in range(start, stop):
            yield from self.schedule.micro_batches(step, self.rank, self.world, self.micro_batch)

    def sample(self, count: int) -> Batch:
        """The first `count` pictures that training will see, to try a step with."""
        _, index, turn = self.rows_of(0)
        return _sound(self._reader[Request(0, index[:count], turn[:count])][1])


def _check_sizes(batch_size: int, micro_batch: int, canvas: int, world: int) -> None:
    for name, value in {"batch_size": batch_size, "micro_batch": micro_batch, "canvas": canvas}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, and must be at least 1")
    if batch_size % world:
        raise ValueError(f"train.batch_size {batch_size} does not divide over {world} devices")
    if batch_size // world % micro_batch:
        share = batch_size // world
        raise ValueError(f"train.micro_batch {micro_batch} does not divide {share}, the batch of one device")


def _sound(batch: Batch | str) -> Batch:
    """The batch, unless it says what is wrong with a file."""
    if isinstance(batch, str):
        raise ValueError(f"{batch}. Repair or replace the file and go on with --resume, or take it out of the data")
    return batch
