"""The example plugin package installs like anyone's and is used like a built-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from ussl.testing import check_masking


@pytest.fixture(scope="module")
def hello(tmp_path_factory):
    """A folder into which ussl-hello is installed."""
    folder = tmp_path_factory.mktemp("hello")
    source, target = folder / "source", folder / "site"
    shutil.copytree(ROOT / "examples/ussl-hello", source)  # building leaves droppings
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--no-index", "--target", target, source], check=True)
    return target


def test_an_installed_package_offers_its_parts(hello, tmp_path):
    command = [sys.executable, "-m", "ussl.cli", "plugins", "--json"]
    environment = os.environ | {"PYTHONPATH": str(hello)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout)
    assert listed["broken"] == []
    (entry,) = [entry for entry in listed["plugins"] if entry["name"] == "shadows"]
    assert entry == {
        "kind": "masking",
        "name": "shadows",
        "summary": "Hides whole columns of patches, as the shadow of bone or gas does.",
        "plugin": "hello",
        "distribution": "ussl-hello",
        "version": "1.0",
    }


def test_its_masking_keeps_the_contract_and_hides_whole_columns(hello, monkeypatch):
    monkeypatch.syspath_prepend(str(hello))
    from ussl_hello import Shadows

    from ussl.testing import tiny_draws, tiny_view

    check_masking(Shadows, ratio=0.75)
    mask = Shadows(ratio=0.5)(tiny_view(64, 12, 32), (3, 8), tiny_draws(64))
    columns = mask.hidden.reshape(64, 3, 8)
    assert (columns.all(1) | ~columns.any(1)).all()
    assert (columns.sum((1, 2)) == 12).all()
    assert len({tuple(row.tolist()) for row in columns[:, 0]}) > 10
    with pytest.raises(ValueError, match="ratio must be above 0 and below 1"):
        Shadows(ratio=1.0)


def test_an_encoder_trains_under_its_masking(hello, tmp_path, write):
    recipe = write(
        "shadows.yaml",
        """
        # the third party's masking beside built-in parts
        source: {name: phantom, images: 8, size: 32, cache: false}
        augmentation: {name: crop, size: 32}
        encoder: {name: vit, width: 16, depth: 1, heads: 2, patch: 8, image_size: 32}
        masking: shadows
        target: pixels
        objective: {name: masked_prediction, width: 16, depth: 1, heads: 2}
        train: {steps: 2, batch_size: 4, threads: 1}
        """,
    )
    command = [sys.executable, "-m", "ussl.cli", "fit", "--recipe", str(recipe), "--out", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(hello)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vit, shadows, pixels" in done.stdout
    assert "name: shadows" in (tmp_path / "run" / "recipe.yaml").read_text()
