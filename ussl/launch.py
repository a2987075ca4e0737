"""The processes and devices of a run, and how a person stops it."""

from __future__ import annotations

import inspect
import resource
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from ussl.errors import RunFailed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ussl.recipe import Train


WAIT = timedelta(hours=4)  # for the first rank, which probes, saves and reports while the others wait
INSIST = 2  # seconds after which a second Ctrl-C is meant as one


def launch(train: Train) -> Fabric:
    """Fabric on the devices that the recipe asks for, its processes started."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    if train.threads is not None:
        torch.set_num_threads(train.threads)
    cuda = torch.cuda.is_available() and train.accelerator != "cpu"
    if train.accelerator == "cuda" and not cuda:
        raise ValueError("train.accelerator cuda: no CUDA device is visible here; write --train.accelerator cpu")
    devices = torch.cuda.device_count() if cuda and train.devices == "auto" else train.devices
    several = train.num_nodes > 1 or devices not in (1, "auto")
    strategy: Any = "auto"
    if train.strategy == "ddp" or several:
        strategy = DDPStrategy(**_own_buffers(), gradient_as_bucket_view=True, timeout=WAIT)
    precision: Any = train.precision
    if precision == "auto":
        precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=train.devices,
        num_nodes=train.num_nodes,
        strategy=strategy,
        precision=precision,
    )
    fabric.launch()
    return fabric


def _own_buffers() -> dict[str, Any]:
    """The option of torch's DDP, renamed in 2.14, that leaves batch-norm statistics to the parts that have them."""
    known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def together(fabric: Fabric, action: Callable[[], None]) -> None:
    """Do something on the first rank; where it refuses, every rank refuses."""
    refusal: Exception | None = None
    if fabric.is_global_zero:
        try:
            action()
        except (ValueError, OSError, RunFailed) as error:
            refusal = error
    refusal = fabric.broadcast(refusal)
    if refusal is not None:
        raise refusal


def described(fabric: Fabric) -> str:
    """The devices of a run in words."""
    name = torch.cuda.get_device_name() if fabric.device.type == "cuda" else "CPU"
    several = f"{fabric.world_size} x " if fabric.world_size > 1 else ""
    return f"{several}{name}, {torch.get_num_threads()} threads, precision {fabric._precision.precision}"


def peak_memory(device: torch.device) -> float:
    """The largest memory this process held, in GiB: the device's, or on CPU its resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Interruption:
    """Ctrl-C and SIGTERM: before training they end the program, in it they are noted; a later Ctrl-C ends it.

    Schedulers send SIGTERM to the process and to its group: a second one says nothing new.
    """

    def __init__(self) -> None:
        self.training = False
        self.asked = 0.0  # when

    def __enter__(self) -> Interruption:
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        insists = number == signal.SIGINT and self.asked and time.monotonic() - self.asked > INSIST
        if insists or not self.training:
            raise KeyboardInterrupt
        self.asked = self.asked or time.monotonic()
