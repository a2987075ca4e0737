"""Does a run notice that it has collapsed or learns nothing?"""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ussl import checkpoint
from ussl.cli import main
from ussl.health import WINDOW, Watch, verdict
from ussl.parts import Tokens
from ussl.signs import signs

RECIPE = """
augmentation: {name: crop, size: 16}
encoder: {name: vit, width: 16, depth: 1, heads: 2, patch: 8, image_size: 16}
objective: OBJECTIVE
optimizer: {name: adamw, base_learning_rate: 1.0, warmup: 0.0}
loader: {workers: 0}
train: {steps: 220, batch_size: 8, threads: 1}
"""

PLUGIN = '''
"""Objectives that teach nothing."""
import torch
from ussl.hookspecs import hookimpl
from ussl.parts import Objective


class Shrink(Objective):
    """Draws all features together."""

    additive = False

    def __init__(self, student, target, *, chance: float | None = None, pull: bool = True):
        super().__init__()
        self.chance, self.pull = chance, pull

    def forward(self, outputs, targets, masks):
        x = outputs[0].pooled[:, 0]
        return {"loss": (x - 1).square().mean() if self.pull else self.chance + 0 * x.mean()}


@hookimpl
def ussl_objectives():
    return {"shrink": Shrink}
'''


@pytest.fixture
def run(tmp_path, capsys):
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(16):
        speckle = generator.rayleigh(20 + 8 * i, (24, 24)).clip(0, 255).astype(np.uint8)
        Image.fromarray(speckle).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "plugin.py").write_text(PLUGIN)

    def run(objective, *more):
        (tmp_path / "recipe.yaml").write_text(RECIPE.replace("OBJECTIVE", objective))
        words = ["fit", "--recipe", str(tmp_path / "recipe.yaml"), "--plugin", str(tmp_path / "plugin.py")]
        code = main([*words, "--data", str(tmp_path / "pictures"), "--out", str(tmp_path / "run"), *more])
        told = capsys.readouterr()
        return code, told.out + told.err, tmp_path / "run"

    return run


def test_features_that_differ_have_the_spread_and_rank_that_numpy_finds():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1.0, 7)
    found = signs([Tokens(x[:, None], None, None, (1, 1))], [None])
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    assert found["feature_spread"].item() == pytest.approx(unit.std(0).mean() * math.sqrt(6))
    variances = np.linalg.eigvalsh(np.cov(x.numpy().T))
    assert found["feature_rank"].item() == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    assert "target_spread" not in found


def test_equal_features_and_targets_have_no_spread():
    same, varied = torch.ones(8, 1, 4), torch.randn(8, 1, 5, 4)
    found = signs([Tokens(None, varied, None, (1, 5))], [None, Tokens(same, None, None, (1, 1))])
    assert found["target_spread"] < 1e-6 < 0.5 < found["feature_spread"]


def test_one_image_alone_says_nothing():
    assert signs([Tokens(torch.ones(1, 1, 4), None, None, (1, 1))], [None]) == {}


HEALTHY = {"loss": 3.0, "feature_spread": 0.4, "feature_rank": 4.0, "target_spread": 0.5}


@pytest.mark.parametrize(
    ("sick", "said"),
    [
        ({"feature_spread": 0.001}, "almost the same features"),
        ({"feature_rank": 1.001}, "one direction"),
        ({"target_spread": 0.001}, "target is almost the same"),
        ({"loss": math.log(64), "chance": math.log(64)}, "stuck"),
        ({"loss": 30.0, "chance": 3.0}, "diverged: the loss 30 is 10 times"),
        ({"chance": math.log(64), "teacher_entropy": 0.9999 * math.log(64)}, "uniform"),
        ({"chance": math.log(64), "teacher_entropy": 1e-5}, "certain of everything"),
    ],
)
def test_what_is_wrong_is_said_in_words(sick, said):
    assert verdict(HEALTHY) is None
    assert said in verdict(HEALTHY | sick)


def test_a_loss_at_chance_is_no_fault_before_the_rate_has_peaked():
    at_chance = HEALTHY | {"chance": 3.0}
    assert verdict(at_chance, warm=False) is None
    watch = Watch(warm_after=2 * WINDOW)
    said = [watch.see(done, at_chance | {"loss": 3 + done / 1000}) for done in range(1, 6 * WINDOW + 1)]
    assert [done for done, words in enumerate(said, 1) if words] == [4 * WINDOW]  # once, when the window is behind


def test_a_run_that_collapses_says_so_and_goes_on(run):
    code, told, out = run("shrink")
    assert code == 0
    assert told.count("steps: collapsed: every") == 1
    assert "almost the same features" in told
    with (out / "metrics.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["feature_spread"]) < 0.01


def test_a_run_may_stop_when_it_collapses_and_leaves_a_checkpoint(run):
    code, told, out = run("shrink", "--train.stop_on_collapse", "true")
    assert code == 1
    assert "train.stop_on_collapse: collapsed" in told
    assert (out / "report.html").exists()
    assert checkpoint.load(out / "checkpoints")[0]["step"] in (50, 100, 150, 200)


def test_a_run_that_is_stuck_at_chance_says_so(run):
    code, told, _ = run("{name: shrink, chance: 4.0, pull: false}")
    assert code == 0
    assert "stuck: the loss 4 is that of a network which has learned nothing (chance level 4)" in told


def test_a_run_stopped_for_a_collapse_can_go_on(run):
    run("shrink", "--train.stop_on_collapse", "true")
    assert run("shrink", "--train.stop_on_collapse", "false", "--resume")[0] == 0
