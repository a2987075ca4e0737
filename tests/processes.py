"""Runs a function in several processes that form one gloo group, for tests of what ranks share."""

from __future__ import annotations

import inspect
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

PATIENCE = timedelta(seconds=120)  # after which ranks that wait for each other give up


class RankFailed(Exception):
    """The traceback of the first process that failed."""


def run(function: Callable[..., Any], world: int = 2, *args: Any) -> list[Any]:
    """What `function(*args)` returns on every rank, in the order of ranks.

    Processes are spawned, so the function is one of a module's own and its arguments and results can be pickled. Where
    its first parameters are named `rank` and `world` it is called with these before `args`. Every process has one
    thread. RankFailed when one of them raises; the others are then ended.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            torch.multiprocessing.spawn(_child, (world, folder, function, args), nprocs=world)
        except (ProcessExitedException, ProcessRaisedException):
            failures = sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)
            if not failures:
                raise
            raise RankFailed(failures[0].read_text()) from None  # the others' fault is that they waited for it
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _child(rank: int, world: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE)
    asks = [*inspect.signature(function).parameters][:2] == ["rank", "world"]
    try:
        result = function(rank, world, *args) if asks else function(*args)
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise
    torch.save(result, folder / f"{rank}.pt")
    dist.barrier()  # no rank closes its connections while another still uses them
    dist.destroy_process_group()
