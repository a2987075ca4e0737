"""Probes while training: what they measure of the encoder that will be exported, beside its baselines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ussl.parts import Encoder

if TYPE_CHECKING:
    from ussl.training import Training


class Probing:
    """Runs a recipe's probes when they are due, and writes probes.csv. On the first rank; without probes nothing."""

    def __init__(self, training: Training, out: Path) -> None:
        from ussl.report.probes import Probes

        self.training = training
        self.probes = training.recipe.probes()
        self.file = Probes(out, training.start) if self.probes else None

    def begin(self) -> None:
        """Before a fresh run's first step: the baselines, which are raw pixels, the untrained encoder, the teacher."""
        from ussl.evaluate.features import RawPixels
        from ussl.report.probes import RAW, UNTRAINED

        if not self.probes or self.training.start:
            return
        untrained = self.training.method.student.encoder  # first: its image size becomes the pictures'
        target = self.training.method.target
        teacher = target.as_encoder() if target is not None else None
        for name in self.probes:
            self._measure(name, UNTRAINED, untrained, 0)
            self._measure(name, RAW, RawPixels(), 0)
            if teacher is not None:
                self._measure(name, "teacher", teacher, 0)

    def after(self, done: int) -> None:
        """After `done` steps: the probes that are due, and all of them at the end."""
        from ussl.report.probes import TRAINED

        due = [name for name, probe in self.probes.items() if self._due(done, probe.every)]
        if due:
            encoder = self.training.exported()
            for name in due:
                self._measure(name, TRAINED, encoder, done)

    def _due(self, done: int, every: float) -> bool:
        steps, epochs = self.training.steps, self.training.recipe.train.epochs
        before, now = ((step / steps * epochs) / every for step in (done - 1, done))
        return done == steps or math.floor(now + 1e-9) > math.floor(before + 1e-9)

    def _measure(self, name: str, what: str, encoder: Encoder, done: int) -> None:
        assert self.file is not None
        from ussl.evaluate.spread import verdict

        numbers = self.probes[name].run(encoder, self.training.fabric.device)
        epoch = done / self.training.loader.steps_per_epoch
        self.file.write(done, epoch, name, what, numbers)
        if "relative_std" in numbers and (collapsed := verdict(numbers)):
            print(f"\nprobe     {name}, {what}: {collapsed}", flush=True)
        shown = ", ".join(f"{measure} {value:.3g}" for measure, value in numbers.items() if measure != "unlabelled")
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
