"""What a run writes down while it trains: metrics.csv, TensorBoard and a progress bar."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Metrics:
    """metrics.csv and TensorBoard, one row a step. On resume, rows beyond the checkpoint are dropped."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.csv"
        rows = self._rows_until(start)
        self.columns = list(rows[0]) if rows else []
        self._rewrite(rows)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add the row of a step (counted from 1)."""
        row = {"step": str(step), **{name: f"{value:.9g}" for name, value in values.items()}}
        if new := [name for name in row if name not in self.columns]:
            rows = self._rows_until(step)
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def _rows_until(self, step: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            # a row cut short by a kill has no value in its last columns
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [row for row in rows if row.get("step", "").isdecimal() and int(row["step"]) <= step]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self.path.with_name(".metrics.csv")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            if self.columns:
                writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)


class Clock:
    """Seconds spent waiting for data, and in all, since the start and lately."""

    def __init__(self) -> None:
        self.begun = self.lap = time.perf_counter()
        self.waited = 0.0
        self.waited_lap = 0.0

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each arrives counts as waiting for data."""
        while True:
            asked = time.perf_counter()
            item = next(batches, None)
            self.waited_lap += time.perf_counter() - asked
            if item is None:
                return
            yield item

    def step(self) -> tuple[float, float]:
        """Seconds of the step that just ended, and the share of them spent waiting for data."""
        now = time.perf_counter()
        seconds, waited = now - self.lap, self.waited_lap
        self.lap, self.waited, self.waited_lap = now, self.waited + waited, 0.0
        return seconds, waited / seconds

    def resume(self) -> None:
        """Leave out the time since the last step, which went to something other than training."""
        now = time.perf_counter()
        self.begun += now - self.lap
        self.lap = now

    def total(self) -> tuple[float, float]:
        """Seconds since the start, and the share of them spent waiting for data."""
        seconds = max(self.lap - self.begun, 1e-9)
        return seconds, self.waited / seconds


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    for unit, size in (("years", 31_557_600), ("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
