"""The small recipes run by themselves: on phantoms, without data, hub or GPU."""

import csv
import math
from pathlib import Path

import pytest
import torch

import ussl
from ussl.cli import main

FOLDER = Path(__file__).parents[1] / "recipes" / "small"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.name.startswith("_"))
LESS = ["--source.images", "16", "--train.steps", "2", "--train.batch_size", "8", "--probes", "null"]


def test_every_method_of_the_paper_has_a_small_recipe():
    assert set(NAMES) >= {"urfm", "mae", "simclr", "mocov3", "dino", "deblur_mim", "usfm"}


@pytest.mark.parametrize("name", NAMES)
def test_a_small_recipe_trains_and_leaves_an_encoder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "run"
    assert main(["fit", "--recipe", f"small/{name}", "--out", str(out), "--loader.workers", "0", *LESS]) == 0
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(math.isfinite(float(row["loss"])) and float(row["gradient_norm"]) > 0 for row in rows)
    assert ussl.load(out).embed(torch.rand(1, 1, 64, 64)).shape == (1, 192)
