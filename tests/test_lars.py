"""LARS, against the formulas of SimCLR and MoCo-v3 as plain loops over numbers."""

import io
import math

import pytest
import torch
from torch import nn

from ussl.parts import Progress
from ussl_plugins.optimizers.lars import Lars, LayerwiseAdaptiveRate

STEPS = 10


def network(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    method = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False)).to(dtype)
    method.token = nn.Parameter(torch.empty(1, 1, 3, dtype=dtype))
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return method


def gradients(method, step):
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in method.parameters()]


def train(method, optimizer, update, steps=range(STEPS)):
    for step in steps:
        for p, g in zip(method.parameters(), gradients(method, step), strict=True):
            p.grad = g.to(p)
        optimizer.before_step(update, Progress(step, STEPS, step, STEPS))
        update.step()
    return method


def norm(numbers):
    return math.sqrt(sum(x * x for x in numbers))


def looped(method, rates, decay, trust, momentum, rate_in_momentum):
    """The parameters after the steps, as lists of numbers."""
    weights = [p.detach().flatten().tolist() for p in method.parameters()]
    velocities = [[0.0] * len(w) for w in weights]
    large = [p.ndim > 1 for p in method.parameters()]
    for step, rate in enumerate(rates):
        for k, g in enumerate(gradients(method, step)):
            g, ratio = g.flatten().tolist(), 1.0
            if large[k]:
                g = [gi + decay * wi for gi, wi in zip(g, weights[k], strict=True)]
                if norm(weights[k]) > 0 and norm(g) > 0:
                    ratio = trust * norm(weights[k]) / norm(g)
            for i, gi in enumerate(g):
                if rate_in_momentum:
                    velocities[k][i] = momentum * velocities[k][i] + rate * ratio * gi
                    weights[k][i] -= velocities[k][i]
                else:
                    velocities[k][i] = momentum * velocities[k][i] + ratio * gi
                    weights[k][i] -= rate * velocities[k][i]
    return weights


@pytest.mark.parametrize("rate_in_momentum", [True, False], ids=["simclr", "mocov3"])
def test_ten_steps_are_those_of_the_published_formula(rate_in_momentum):
    options = {"weight_decay": 0.02, "trust": 0.05, "momentum": 0.8, "rate_in_momentum": rate_in_momentum}
    optimizer = Lars(base_learning_rate=0.3, warmup=0.3, **options)
    method = network()
    # warm-up of 3 steps to .3 x 512 / 256, then half a cosine over the other 7
    rates = [0.0, 0.2, 0.4] + [0.3 * (1 + math.cos(math.pi * i / 7)) for i in range(7)]
    expected = looped(method, rates, 0.02, 0.05, 0.8, rate_in_momentum)
    train(method, optimizer, optimizer.start(method, 512))
    for p, wanted in zip(method.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach().flatten(), torch.tensor(wanted, dtype=p.dtype), rtol=1e-12, atol=1e-12)


def test_where_the_rate_is_applied_makes_a_difference():
    ends = []
    for inside in (True, False):
        method, optimizer = network(), Lars(rate_in_momentum=inside)
        ends.append(train(method, optimizer, optimizer.start(method, 512))[0].bias.detach())
    assert (ends[0] - ends[1]).abs().max() > 1e-3


def test_single_precision_follows_double():
    pair = []
    for dtype in (torch.float32, torch.float64):
        method, optimizer = network(dtype), Lars(weight_decay=1e-4)
        pair.append(train(method, optimizer, optimizer.start(method, 256)))
    for single, double in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_biases_and_norms_neither_decay_nor_have_a_rate_of_their_own():
    method, optimizer = network(), Lars(base_learning_rate=0.5, weight_decay=0.5, warmup=0.0, momentum=0.0)
    update = optimizer.start(method, 256)
    before = [p.detach().clone() for p in method.parameters()]
    train(method, optimizer, update, range(1))
    for p, old, g in zip(method.parameters(), before, gradients(method, 0), strict=True):
        plain = torch.allclose(p, old - 0.5 * g, rtol=1e-12, atol=0)
        assert plain == (p.ndim == 1)


def moved(weight, gradient, decay):
    """A weight of two dimensions after one step of rate 1 and trust .1."""
    method = nn.ParameterList([torch.full((2, 2), weight, dtype=torch.float64)])
    settings = {"lr": 1.0, "momentum": 0.9, "weight_decay": decay, "trust": 0.1, "rate_in_momentum": True}
    update = LayerwiseAdaptiveRate([{"params": list(method)}], **settings)
    method[0].grad = torch.full((2, 2), gradient, dtype=torch.float64)
    update.step()
    return method[0].detach().mean().item()


def test_zero_weights_and_zero_gradients_move_without_adaptation():
    assert moved(2.0, 3.0, 0.0) == pytest.approx(2 - 0.2)  # to a gradient of its direction, .1 of its own length
    assert moved(0.0, 3.0, 0.5) == -3  # no length of its own
    assert moved(2.0, 0.0, 0.0) == 2
    assert moved(2.0, -1.0, 0.5) == 2  # decay cancels the gradient before the norm is taken
    assert moved(2.0, 0.0, 0.5) == pytest.approx(2 - 0.2)  # decay alone is a gradient


def test_what_has_no_gradient_stays():
    method, optimizer = network(), Lars(warmup=0.0)
    update = optimizer.start(method, 256)
    train(method, optimizer, update, range(2))
    before = [p.detach().clone() for p in method.parameters()]
    update.zero_grad(set_to_none=True)
    update.step()
    assert all(torch.equal(p, old) for p, old in zip(method.parameters(), before, strict=True))


def test_frozen_parameters_are_left_out():
    method = network()
    method[0].requires_grad_(False)
    update = Lars().start(method, 256)
    trained = {id(p) for group in update.param_groups for p in group["params"]}
    assert trained == {id(p) for p in [*method[1:].parameters(), method.token]}


def test_an_update_reads_nothing_back_from_the_device():
    # a tensor on the meta device has no values: to ask for one is an error
    method, optimizer = network().to("meta"), Lars()
    update = optimizer.start(method, 256)
    for p in method.parameters():
        p.grad = torch.empty_like(p)
    optimizer.before_step(update, Progress(3, STEPS, 3, STEPS))
    update.step()
    assert update.state[method.token]["velocity"].shape == (1, 1, 3)


def test_a_resumed_training_ends_at_the_same_weights():
    whole, optimizer = network(), Lars()
    train(whole, optimizer, optimizer.start(whole, 256))
    first, optimizer = network(), Lars()
    update, file = optimizer.start(first, 256), io.BytesIO()
    train(first, optimizer, update, range(4))
    torch.save({"method": first.state_dict(), "optimizer": update.state_dict()}, file)
    file.seek(0)
    state, second, optimizer = torch.load(file, weights_only=True), network(), Lars()
    update = optimizer.start(second, 256)
    second.load_state_dict(state["method"])
    update.load_state_dict(state["optimizer"])
    train(second, optimizer, update, range(4, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_the_peak_grows_with_the_batch_or_its_root():
    method, linear, root = network(), Lars(), Lars(base_learning_rate=0.075, scaling="sqrt")
    linear.start(method, 4096)
    root.start(method, 4096)
    assert linear.peak == pytest.approx(4.8)
    assert root.peak == pytest.approx(4.8)
    assert linear.warmup_steps(100) == 10


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"base_learning_rate": 0.0}, "base_learning_rate"),
        ({"warmup": 10.0}, "share"),
        ({"scaling": "cubic"}, "linear or sqrt"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1e-6}, "weight_decay"),
        ({"trust": 0.0}, "trust"),
    ],
)
def test_impossible_settings_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Lars(**options)


def test_a_lowest_rate_above_the_peak_is_refused():
    with pytest.raises(ValueError, match="above the peak rate"):
        Lars(min_learning_rate=0.5).start(network(), 256)
