"""What a run folder says about its run, whatever of it is there."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ussl.report import probes


@dataclass(frozen=True)
class Run:
    """A run read from its folder."""

    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    metrics: dict[str, np.ndarray]  # (n,) float64 a column, NaN where a row has no value
    probes: list[probes.Measurement]
    refused: dict[int, list[str]]  # step: paths of its images
    snapshot: dict[str, Any]
    encoder: dict[str, Any] | None  # its config.json; None until training is complete

    @property
    def steps(self) -> int:
        """Finished steps."""
        return int(self.metrics["step"][-1]) if len(self.metrics["step"]) else 0

    @cached_property
    def planned(self) -> int | None:
        """Steps the run was to take; None where nothing tells."""
        train = self.recipe.get("train", {})
        if self.encoder is not None:
            return self.steps
        if train.get("steps"):
            return int(train["steps"])
        epoch = self.metrics.get("epoch", np.zeros(1))[-1:]
        if self.steps > 1 and train.get("epochs") and epoch[0] > 0:
            return round((self.steps - 1) * train["epochs"] / epoch[0])  # a row has the epoch at which its step began
        return None

    @property
    def images_seen(self) -> int:
        """Images the student was shown, repeats counted."""
        return self.steps * self.recipe.get("train", {}).get("batch_size", 0)

    @property
    def step_seconds(self) -> np.ndarray:
        """(n,) seconds each step took; NaN where it is not known."""
        rate = self.metrics.get("images_per_second", np.full(len(self.metrics["step"]), np.nan))
        return self.recipe.get("train", {}).get("batch_size", np.nan) / np.where(rate > 0, rate, np.nan)

    @property
    def last_trained(self) -> datetime:
        """When the last step was written down."""
        file = self.path / "metrics.csv"
        return datetime.fromtimestamp((file if file.exists() else self.path).stat().st_mtime)

    @property
    def scalars(self) -> list[str]:
        """The metrics that the objective chose to log beside the loss."""
        known = {"step", "epoch", "learning_rate", "loss", "gradient_norm", "images_per_second", "data_wait"}
        return [name for name in self.metrics if name not in known]


def read(path: Path) -> Run:
    """The run in a folder. ValueError = no such folder, or a file in it that is not what its name says."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a run folder: give the folder that --out named")
    recipe = path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    encoder = path / "encoder" / "config.json"
    return Run(
        path=path,
        recipe=_yaml(recipe, text),
        recipe_text=text,
        environment=_json(path / "environment.json"),
        metrics=_metrics(path / "metrics.csv"),
        probes=probes.read(path),
        refused=_refused(path / "refused.csv"),
        snapshot=_json(path / "snapshot" / "snapshot.json"),
        encoder=_json(encoder) if encoder.exists() else None,
    )


def _yaml(path: Path, text: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return content or {}


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _metrics(path: Path) -> dict[str, np.ndarray]:
    """Columns of metrics.csv; a row cut short by a kill is left out."""
    if not path.exists():
        return {"step": np.zeros(0)}
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = list(csv.reader(file)) or [["step"]]
    table = np.array([[float(cell or "nan") for cell in row] for row in rows if len(row) == len(names)])
    return dict(zip(names, table.reshape(-1, len(names)).T, strict=True))


def _refused(path: Path) -> dict[int, list[str]]:
    if not path.exists():
        return {}
    steps: dict[int, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for step, image in csv.reader(file):
            steps.setdefault(int(step), []).append(image)
    return steps
