"""probes.csv: what probes measured while a run trained, one number a row."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

RAW, UNTRAINED, TRAINED = "raw pixels", "untrained", "trained"


@dataclass(frozen=True)
class Measurement:
    """A row of probes.csv."""

    step: int  # finished steps; 0 before training
    epoch: float  # of the schedule
    probe: str  # its name in the recipe
    encoder: str  # RAW, UNTRAINED, TRAINED or another that is measured beside them, such as "teacher"
    measure: str  # a score, higher is better; or the numbers of ussl.evaluate.spread; "x_sd" is x's over folds
    value: float


COUNTS = {"images", "unlabelled", "width"}
COLUMNS = [field.name for field in fields(Measurement)]


class Probes:
    """Writes probes.csv. On resume, rows beyond the checkpoint are dropped, so baselines of step 0 stay."""

    def __init__(self, folder: Path, start: int) -> None:
        """Open the file of a run of which `start` steps are done."""
        self.path = folder / "probes.csv"
        kept = [row for row in read(folder) if row.step <= start] if start else []
        temporary = self.path.with_name(".probes.csv")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(COLUMNS)
            csv.writer(file).writerows(map(_cells, kept))
        temporary.replace(self.path)

    def write(self, step: int, epoch: float, probe: str, encoder: str, values: Mapping[str, float]) -> None:
        """Add what `probe` measured of `encoder` after `step` steps."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for measure, value in values.items():
                writer.writerow(_cells(Measurement(step, epoch, probe, encoder, measure, value)))


def _cells(row: Measurement) -> list[object]:
    return [f"{cell:.9g}" if isinstance(cell, float) else cell for cell in astuple(row)]


def scored(measure: str) -> bool:
    """Whether a measure says something of the encoder: counts and deviations over folds do not."""
    return measure not in COUNTS and not measure.endswith("_sd")


def read(folder: Path) -> list[Measurement]:
    """The rows of a run's probes.csv, none where no probe ran; a row cut short by a kill is left out."""
    path = folder / "probes.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values() and row["value"]]
    return [
        Measurement(int(r["step"]), float(r["epoch"]), r["probe"], r["encoder"], r["measure"], float(r["value"]))
        for r in rows
    ]
