"""The settings of a run that are no part's: what a recipe says under `train:`, `loader:` and at its top."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


def _within(settings: Any, least: float, below: float, *names: str) -> None:
    """ValueError unless least <= number < below; null and words pass."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, (int, float)) and not least <= value < below:
            bounds = f"at least {least}" + (f" and below {below}" if below < math.inf else "")
            raise ValueError(f"{name}: must be {bounds}, not {value}")


@dataclass(frozen=True)
class Train:
    """How long and on what to train."""

    epochs: float = 100.0  # passes over the data, which the schedule spans
    steps: int | None = None  # optimiser steps instead of epochs: the schedule spans them, warm-up keeps its share
    batch_size: int = 256  # images an optimiser step sees, over all devices
    micro_batch: int | Literal["auto"] = "auto"  # images a device sees at once; auto: the most that fit
    accumulate: Literal["exact", "anyway"] = "exact"  # exact: refuse where accumulation changes the method
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int | Literal["auto"] = "auto"  # in each node
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    threads: int | None = None  # of the CPU; null: torch's choice
    save_every: int = 500  # optimiser steps between checkpoints
    keep: int = 3  # checkpoints
    max_refused: int = 5  # non-finite steps in a row before the run stops
    stop_on_collapse: bool = False  # end a run that has collapsed, or is stuck at its method's chance level

    def __post_init__(self) -> None:
        _within(self, 1, math.inf, "steps", "batch_size", "micro_batch", "devices", "num_nodes", "threads")
        _within(self, 1, math.inf, "save_every", "keep", "max_refused")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs: must be above 0, not {self.epochs}")


@dataclass(frozen=True)
class Loader:
    """How pictures are read."""

    canvas: int = 512  # longest side in pixels; a larger picture is scaled down to it
    workers: int | Literal["auto"] = "auto"  # reading processes
    scan: Literal["keep", "mask", "crop"] = "keep"  # black out what is around the scan, or cut it off
    grey: bool = False  # colourless RGB becomes exactly grey

    def __post_init__(self) -> None:
        _within(self, 1, math.inf, "canvas")
        _within(self, 0, math.inf, "workers")


@dataclass(frozen=True)
class Top:
    """What stands at the top of a recipe beside its parts."""

    seed: int = 0
    data: Path | None = None  # folder, manifest or pack: the source's path
    ema: float = 0.0  # decay of a moving average of the weights; 0: none
    export: Literal["student", "ema", "teacher"] | None = None  # the weights a run leaves; null: the natural ones
    joined: bool = True  # views of one size pass the student together and share batch-norm statistics
    plugins: list[Path] = field(default_factory=list)  # local files

    def __post_init__(self) -> None:
        _within(self, 0, 2**63, "seed")
        _within(self, 0, 1, "ema")
        if self.export == "ema" and not self.ema:
            raise ValueError("export: ema needs a decay; write for example ema: 0.9999")
