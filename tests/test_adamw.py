"""AdamW and its schedule, against numbers worked out by hand and torch's plain loop."""

import math

import pytest
import torch
from torch import nn

from ussl.parts import Progress
from ussl_plugins.optimizers.adamw import AdamW


def started(batch_size=1024, **options):
    method = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    method.token = nn.Parameter(torch.zeros(1, 1, 3))
    optimizer = AdamW(**options)
    return method, optimizer, optimizer.start(method, batch_size)


def rate(optimizer, update, step, steps):
    optimizer.before_step(update, Progress(step, steps, step, steps))
    return update.param_groups[0]["lr"]


def test_the_rate_follows_table_4_of_the_paper():
    _, optimizer, update = started()
    steps = 391_600  # 400 epochs of 979 steps
    assert optimizer.peak == pytest.approx(6e-4)
    assert optimizer.warmup_steps(steps) == 39_160
    assert rate(optimizer, update, 0, steps) == 0
    assert rate(optimizer, update, 19_580, steps) == pytest.approx(3e-4)
    assert rate(optimizer, update, 39_160, steps) == pytest.approx(6e-4)
    # a third of the cosine: (1 + cos(pi / 3)) / 2 = 3 / 4
    assert rate(optimizer, update, 39_160 + (391_600 - 39_160) // 3, steps) == pytest.approx(4.5e-4)
    assert rate(optimizer, update, steps, steps) == pytest.approx(0, abs=1e-12)


def test_only_matrices_decay():
    method, _, update = started()
    decayed = {id(p) for g in update.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(method[0].weight), id(method.token)}
    assert sum(len(g["params"]) for g in update.param_groups) == len(list(method.parameters()))


def test_the_update_is_that_of_the_published_formula():
    method, optimizer, update = started(256, base_learning_rate=0.1, warmup=0.0)
    before = method[0].weight.detach().clone()
    method[0].weight.grad = torch.full_like(before, 0.5)
    optimizer.before_step(update, Progress(0, 10, 0, 10))
    update.step()
    # first step: the bias-corrected moments are g and g squared, so the move is rate x sign(g)
    expected = before * (1 - 0.1 * 0.05) - 0.1 * 0.5 / (math.sqrt(0.25) + 1e-8)
    torch.testing.assert_close(method[0].weight.detach(), expected)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    method, optimizer, _ = started(clip=1.0)
    parameters = list(method.parameters())
    for p in parameters:
        p.grad = torch.ones_like(p)
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    optimizer.clip_gradients(parameters, total)
    assert torch.nn.utils.get_total_norm([p.grad for p in parameters]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"warmup": 40.0},
        {"clip": 0.0},
        {"base_learning_rate": -1.0},
        {"base_learning_rate": math.nan},
        {"betas": (1, 0.9)},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError):
        AdamW(**options)
