"""Runs a function in several processes that form one gloo group, for tests of what ranks share."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

PATIENCE = timedelta(seconds=120)  # after which ranks that wait for each other give up


def run(function: Callable[..., Any], world: int = 2, *args: Any) -> list[Any]:
    """What `function(*args)` returns on every rank, in the order of ranks.

    Processes are spawned, so the function is one of a module's own and its arguments and results can be pickled. Where
    its first parameters are named `rank` and `world` it is called with these before `args`. Every process has one
    thread. ProcessRaisedException, with the child's traceback, when one of them fails; the others are then ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_child, (world, Path(folder), function, args), nprocs=world)
        return [torch.load(_result(Path(folder), rank), weights_only=False) for rank in range(world)]


def _child(rank: int, world: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE)
    asks = [*inspect.signature(function).parameters][:2] == ["rank", "world"]
    result = function(rank, world, *args) if asks else function(*args)
    torch.save(result, _result(folder, rank))
    dist.barrier()  # no rank closes its connections while another still uses them
    dist.destroy_process_group()


def _result(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.pt"
