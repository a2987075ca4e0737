"""SimCLR and MoCo-v3: their losses against plain loops, the authors' formula and lightly's, one process and two."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import run
from torch import nn

from ussl.distributed import BatchNorm, mean, rank, world
from ussl.parts import Student, Tokens, View
from ussl.testing import TinyEncoder, check_objective, tiny_mask, tiny_student, tiny_view
from ussl_plugins.heads.mlp import Mlp
from ussl_plugins.objectives.mocov3 import MoCoV3
from ussl_plugins.objectives.simclr import SimCLR
from ussl_plugins.targets.ema import EmaTarget

IMAGES, WIDTH = 6, 5


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(x):
    """Features (B, D) as what a student says of a view."""
    return Tokens(x[:, None], None, None, (2, 2))


def simclr(**options):
    return SimCLR(tiny_student(), None, **options)


def mocov3(**options):
    """MoCo-v3's loss of predictions that are given."""
    student = tiny_student()
    part = MoCoV3(student, EmaTarget(student), hidden=8, **options)
    part.predictor = nn.Identity()
    return part


def contrast(part, first, second, *keys):
    targets = [tokens(x) for x in keys] or [None, None]
    return part([tokens(first), tokens(second)], targets, [None, None])


def cosine(x, y):
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


def plain_nt_xent(first, second, temperature):
    """Equation 1 of the paper by loops over views."""
    views = [*first, *second]
    n, terms = len(first), []
    for i, view in enumerate(views):
        powers = {k: (cosine(view, other) / temperature).exp() for k, other in enumerate(views) if k != i}
        terms.append(-(powers[(i + n) % (2 * n)] / sum(powers.values())).log())
    return sum(terms) / (2 * n)


def plain_ctr(queries, keys, temperature):
    """Algorithm 1 of MoCo-v3 by loops over images."""
    terms = []
    for i, query in enumerate(queries):
        powers = [(cosine(query, key) / temperature).exp() for key in keys]
        terms.append(-(powers[i] / sum(powers)).log())
    return 2 * temperature * sum(terms) / len(terms)


def assert_same(found, expected, leaves):
    """Losses and their gradients agree to 1e-9."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    pairs = zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclrs_loss_and_gradient_are_equation_1(temperature):
    first, second = (numbers(IMAGES, WIDTH, seed=i).requires_grad_() for i in range(2))
    found = contrast(simclr(temperature=temperature), first, second)["loss"]
    assert found.dtype == torch.float64
    assert_same(found, plain_nt_xent(first, second, temperature), [first, second])


def test_simclrs_loss_is_lightlys():
    from lightly.loss import NTXentLoss

    first, second = (numbers(IMAGES, WIDTH, seed=i).requires_grad_() for i in range(2))
    found = contrast(simclr(temperature=0.2), first, second)["loss"]
    assert_same(found, NTXentLoss(temperature=0.2)(first, second), [first, second])


def test_simclrs_loss_is_half_of_what_the_authors_code_adds_up():
    first, second = numbers(IMAGES, WIDTH), numbers(IMAGES, WIDTH, seed=1)
    a, b = (x.numpy() / np.sqrt((x.numpy() ** 2).sum(1, keepdims=True)) for x in (first, second))
    total = 0.0
    for one, other in ((a, b), (b, a)):
        logits = np.concatenate([one @ other.T, one @ one.T - np.eye(IMAGES) * 1e9], 1) / 0.1
        total += np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert contrast(simclr(), first, second)["loss"].item() == pytest.approx(total / 2, rel=1e-9)


def test_two_images_at_right_angles_by_hand():
    axes = torch.eye(2, dtype=torch.float64)
    found = contrast(simclr(temperature=1.0), axes, axes)
    assert found["loss"].item() == pytest.approx(math.log(math.e + 2) - 1)  # a twin at 1, two others at 0
    assert found["contrast_accuracy"].item() == 1
    assert found["alignment"].item() == 0
    found = contrast(mocov3(temperature=1.0), axes, axes.flip(0), axes.flip(0), axes)
    assert found["loss"].item() == pytest.approx(4 * (math.log(math.e + 1) - 1))
    assert found["contrast_accuracy"].item() == 1
    found = contrast(mocov3(temperature=1.0), axes, axes.flip(0), axes, axes.flip(0))  # every query finds the other
    assert found["loss"].item() == pytest.approx(4 * math.log(math.e + 1))
    assert found["contrast_accuracy"].item() == 0
    assert found["alignment"].item() == pytest.approx(2)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_mocov3s_loss_and_gradient_are_algorithm_1(temperature):
    first, second = (numbers(IMAGES, WIDTH, seed=i).requires_grad_() for i in range(2))
    keys = [numbers(IMAGES, WIDTH, seed=i) for i in (2, 3)]
    found = contrast(mocov3(temperature=temperature), first, second, *keys)["loss"]
    expected = plain_ctr(first, keys[1], temperature) + plain_ctr(second, keys[0], temperature)
    assert found.dtype == torch.float64
    assert_same(found, expected, [first, second])


def test_no_gradient_goes_into_mocov3s_keys():
    first, second, *keys = (numbers(IMAGES, WIDTH, seed=i).requires_grad_() for i in range(4))
    contrast(mocov3(), first, second, *keys)["loss"].backward()
    assert first.grad.any()
    assert all(key.grad is None for key in keys)


def test_features_that_are_all_alike_are_at_chance():
    alike = numbers(1, WIDTH).expand(IMAGES, -1)
    part = simclr()
    assert contrast(part, alike, alike)["loss"].item() == pytest.approx(part.chance)
    assert part.chance == pytest.approx(math.log(2 * IMAGES - 1))
    part = mocov3(temperature=0.2)
    assert contrast(part, alike, alike, alike, alike)["loss"].item() == pytest.approx(part.chance)
    assert part.chance == pytest.approx(2 * 0.4 * math.log(IMAGES))


def test_tiny_features_are_lengthened_as_the_authors_do():
    features = 1e-9 * numbers(IMAGES, WIDTH)  # SimCLR divides by at least 1e-6, MoCo-v3 by at least 1e-12
    part = simclr()
    assert contrast(part, features, features)["loss"].item() == pytest.approx(part.chance, rel=1e-3)
    part = mocov3()
    loud = numbers(IMAGES, WIDTH)
    expected = contrast(part, loud, loud, loud, loud)["loss"]
    torch.testing.assert_close(contrast(part, features, features, features, features)["loss"], expected)


@pytest.mark.parametrize("name", ["simclr", "mocov3"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_nothing_is_rounded_to_half_precision(name, kind):
    rows = [numbers(IMAGES, WIDTH, seed=i).to(kind) for i in range(2 if name == "simclr" else 4)]
    part = simclr(temperature=0.02) if name == "simclr" else mocov3(temperature=0.02)
    first = rows[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast(part, *rows)
    assert all(value.dtype == torch.float32 for value in found.values())
    expected = contrast(part, *(x.double() for x in rows))
    torch.testing.assert_close(found["loss"].double(), expected["loss"], rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(found["loss"], first)
    assert slope.isfinite().all()


def test_the_predictor_sees_one_view_at_a_time():
    student = tiny_student()
    part = MoCoV3(student, EmaTarget(student), hidden=8).double()
    views = [numbers(IMAGES, 16, seed=i) * (1 + i) for i in range(4)]
    found = contrast(part, *views)["loss"]
    weights = [layer.weight for layer in part.predictor if isinstance(layer, nn.Linear)]
    predicted = []
    for view in views[:2]:
        x = F.batch_norm(view @ weights[0].T, None, None, training=True).relu()
        predicted.append(F.batch_norm(x @ weights[1].T, None, None, training=True))
    expected = plain_ctr(predicted[0], views[3], 0.2) + plain_ctr(predicted[1], views[2], 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("last", "kinds"), [("plain", "LBRLB"), ("none", "LBRL")])
def test_the_predictors_layers_have_the_authors_numbers(last, kinds):
    student = tiny_student()
    predictor = MoCoV3(student, EmaTarget(student), hidden=8, last=last).predictor
    letters = {nn.Linear: "L", BatchNorm: "B", nn.ReLU: "R"}
    found = "".join(next(letter for kind, letter in letters.items() if isinstance(m, kind)) for m in predictor)
    assert found == kinds
    names = [name for name, _ in predictor.named_parameters()]
    assert names == ["0.weight", "1.weight", "1.bias", "3.weight"]
    assert [predictor[0].weight.shape, predictor[3].weight.shape] == [(8, 16), (16, 8)]


def test_the_objectives_keep_their_contract():
    check_objective(MoCoV3, target=EmaTarget, views=2, masked=False, hidden=8)
    check_objective(MoCoV3, views=2, masked=False, hidden=8, last="none")  # keys of another width
    check_objective(lambda student, target: SimCLR(student, None), views=2, masked=False)
    assert not SimCLR.additive
    assert not MoCoV3.additive


def method(name):
    """A student with its head, its target and its objective, in float64."""
    torch.manual_seed(0)
    encoder = TinyEncoder()
    if name == "simclr":
        student = Student(encoder, Mlp(encoder, layers=3, hidden=8, out=4, last="scale")).double()
        return student, None, SimCLR(student, None)
    student = Student(encoder, Mlp(encoder, layers=3, hidden=8, out=4, last="plain"), joined=False).double()
    target = EmaTarget(student).double()
    return student, target, MoCoV3(student, target, hidden=8).double()


def step(name):
    """Mean loss over ranks, chance, gradients and buffers after this rank's share of eight images."""
    student, target, objective = method(name)
    views = [tiny_view(8, seed=i) for i in range(2)]
    views = [View(v.image.double().chunk(world())[rank()], v.clean.double().chunk(world())[rank()]) for v in views]
    targets = [None, None] if target is None else target(views)
    found = objective(student(views, [None, None]), targets, [None, None])
    found["loss"].backward()
    parts = nn.ModuleList([student, objective])
    gradients = {key: mean(p.grad) for key, p in parts.named_parameters()}
    everything = nn.ModuleList([parts] if target is None else [parts, target])
    return {key: mean(x) for key, x in found.items()}, objective.chance, gradients, dict(everything.named_buffers())


def steps():
    return {name: step(name) for name in ("simclr", "mocov3")}


@pytest.fixture(scope="module")
def ranks():
    return run(steps, 2)


@pytest.mark.parametrize("name", ["simclr", "mocov3"])
def test_two_processes_are_as_one(name, ranks):
    alone = step(name)
    assert all(gradient.any() for gradient in alone[2].values())
    for found in (one[name] for one in ranks):
        torch.testing.assert_close(found[0]["loss"], alone[0]["loss"], rtol=1e-9, atol=0)
        assert found[1] == alone[1]
        for one, other in zip(found[1:], alone[1:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.inf, math.nan])
def test_a_temperature_that_cannot_divide_is_refused(temperature):
    for make in (simclr, mocov3):
        with pytest.raises(ValueError, match="above 0"):
            make(temperature=temperature)


def test_a_method_that_does_not_fit_is_refused():
    student = tiny_student()
    with pytest.raises(ValueError, match="leave it out"):
        SimCLR(student, EmaTarget(student))
    with pytest.raises(ValueError, match="target: ema"):
        MoCoV3(student, None)
    with pytest.raises(ValueError, match="plain or none"):
        mocov3(last="scale")
    with pytest.raises(ValueError, match="at least 1"):
        MoCoV3(student, EmaTarget(student), hidden=0)


@pytest.mark.parametrize("name", ["simclr", "mocov3"])
def test_outputs_that_do_not_fit_are_refused(name):
    part = simclr() if name == "simclr" else mocov3()
    view = tokens(numbers(IMAGES, WIDTH))
    targets = [None, None] if name == "simclr" else [view, view]
    with pytest.raises(ValueError, match=f"this augmentation makes 3; write augmentation: {name}"):
        part([view] * 3, [*targets, None], [None] * 3)
    patches_only = Tokens(None, view.pooled[:, None], None, (1, 1))
    with pytest.raises(ValueError, match="this student has none; write head: mlp"):
        part([patches_only] * 2, [target and patches_only for target in targets], [None] * 2)
    several = tiny_student()([tiny_view(), tiny_view()], [tiny_mask(tiny_view(), (4, 4), 2)] * 2)
    with pytest.raises(ValueError, match="leave masking out"):
        part(several, targets, [None] * 2)
    single = tokens(numbers(1, WIDTH))
    with pytest.raises(ValueError, match=r"larger train\.batch_size or train\.micro_batch"):
        part([single] * 2, [target and single for target in targets], [None] * 2)


def test_mocov3_needs_a_target_for_both_views():
    view = tokens(numbers(IMAGES, WIDTH))
    with pytest.raises(ValueError, match="both views"):
        mocov3()([view, view], [view, None], [None, None])


def test_mocov3_needs_a_target_with_image_features():
    view = tokens(numbers(IMAGES, WIDTH))
    patches_only = Tokens(None, view.pooled[:, None], None, (1, 1))
    with pytest.raises(ValueError, match="this target has none; write target: ema"):
        mocov3()([view, view], [patches_only] * 2, [None, None])
