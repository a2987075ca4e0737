"""Probes while training: what they measure of the encoder that will be exported, beside its baselines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ussl.parts import Encoder

if TYPE_CHECKING:
    from ussl.training import Training

SHOWN = ("accuracy", "macro_f1", "auc", "effective_rank_centred", "relative_std")  # in the terminal; the file has all


class Probing:
    """Runs a recipe's probes when they are due, and writes probes.csv; the first rank measures."""

    def __init__(self, training: Training, out: Path) -> None:
        from ussl.report.probes import Probes, read

        self.training = training
        self.probes = training.recipe.probes()
        self.file = Probes(out, training.start) if self.probes and training.fabric.is_global_zero else None
        self.measured = {(row.probe, row.step) for row in read(out)} if self.file else set()

    def begin(self) -> None:
        """Before a fresh run: the baselines. Before one that goes on: what the interruption left unmeasured."""
        start = self.training.start
        if start:
            self.measure([name for name in self.due(start) if (name, start) not in self.measured], start)
        elif self.file:
            self._baselines()

    def due(self, done: int) -> list[str]:
        """The probes that are due after `done` steps: every so many passes over the data, and at the end."""
        return [name for name, probe in self.probes.items() if self._due(done, probe.every)]

    def measure(self, names: list[str], done: int) -> None:
        """Run probes on the weights that would be exported after `done` steps."""
        from ussl.report.probes import TRAINED

        if names and self.file:
            encoder = self.training.exported()
            for name in names:
                self._measure(name, TRAINED, encoder, done)

    def _baselines(self) -> None:
        """Every probe of the untrained encoder, of raw pixels, and of the teacher where there is one."""
        from ussl.evaluate.features import RawPixels
        from ussl.report.probes import RAW, UNTRAINED

        target = self.training.method.target
        teacher = target.as_encoder() if target is not None else None
        for name in self.probes:
            # the untrained encoder first: its image size becomes the pictures'
            self._measure(name, UNTRAINED, self.training.method.student.encoder, 0)
            self._measure(name, RAW, RawPixels(), 0)
            if teacher is not None:
                self._measure(name, "teacher", teacher, 0)

    def _due(self, done: int, every: float) -> bool:
        before, now = (step / self.training.loader.steps_per_epoch / every for step in (done - 1, done))
        return done == self.training.steps or math.floor(now + 1e-9) > math.floor(before + 1e-9)

    def _measure(self, name: str, what: str, encoder: Encoder, done: int) -> None:
        from ussl.evaluate.spread import verdict

        assert self.file is not None
        try:
            numbers = self.probes[name].run(encoder, self.training.fabric.device)
        except ValueError as error:
            raise ValueError(f"probes.{name}: {error}") from error
        self.file.write(done, done / self.training.loader.steps_per_epoch, name, what, numbers)
        if "relative_std" in numbers and (collapsed := verdict(numbers)):
            print(f"\nprobe     {name}, {what}: {collapsed}", flush=True)
        shown = ", ".join(f"{measure} {value:.3g}" for measure, value in numbers.items() if measure in SHOWN)
        print(f"probe     {name}, {what}: {shown}", flush=True)


def table(out: Path) -> list[str]:
    """What a run's scoring probes say at its end: raw pixels, the untrained, the teacher, the trained encoder."""
    from ussl.report.probes import RAW, TRAINED, UNTRAINED, read

    last = {(row.probe, row.encoder, row.measure): row.value for row in read(out)}
    scored = [probe for probe, encoder, measure in last if encoder == TRAINED and measure == "macro_f1"]
    lines = []
    for probe in scored:
        lines.append(f"\n{probe:16}  macro F1  (sd over folds)     AUC")
        for encoder in (RAW, UNTRAINED, TRAINED, "teacher"):
            if (probe, encoder, "macro_f1") in last:
                f1, sd, auc = (last[probe, encoder, measure] for measure in ("macro_f1", "macro_f1_sd", "auc"))
                lines.append(f"  {encoder:14}     {f1:.3f}           {sd:.3f}   {auc:.3f}")
    return lines
