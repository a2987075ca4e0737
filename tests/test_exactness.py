"""Every method against its paper: plain loops over ten steps, and small cases worked out by hand."""

import math

import pytest
import torch
from reference import losses, methods, updates
from reference.compare import compare
from torch import nn

from ussl.data.blur import gaussian_blur
from ussl.method import Ema
from ussl.parts import Mask, Progress, Student, Tokens, View
from ussl.testing import TinyEncoder
from ussl_plugins.objectives.dino import Dino
from ussl_plugins.objectives.masked_prediction import MaskedPrediction
from ussl_plugins.objectives.mocov3 import MoCoV3
from ussl_plugins.objectives.simclr import SimCLR
from ussl_plugins.objectives.usfm import Restoration
from ussl_plugins.optimizers.lars import Lars
from ussl_plugins.targets.ema import EmaTarget
from ussl_plugins.targets.pixels import PixelTarget


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def tokens(rows):
    """Image features (B, D) of a view."""
    return Tokens(rows[:, None], None, None, (1, 1))


def student(patch=2, width=16):
    """Of pictures that are not normalised and have one channel; its output is `width` wide for heads and losses."""
    encoder = TinyEncoder(patch=patch)
    encoder.mean, encoder.std, encoder.width = (0.0,), (1.0,), width
    return Student(encoder)


def about(value):
    return pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_ten_steps_are_those_of_the_formulas(name):
    found = compare(name)
    assert found.loss < 1e-9
    assert found.gradient < 1e-9
    assert found.parameters < 1e-7
    assert found.moved > 1e-3  # so that the parameters' agreement says something


@pytest.mark.parametrize(("name", "change"), [("MoCo-v3", "temperature"), ("DINO", "student_temperature")])
def test_a_constant_that_is_off_by_a_millionth_is_seen(name, change, monkeypatch):
    def changed(case=methods.METHODS[name]):
        built = case()
        setattr(built.method.objective, change, getattr(built.method.objective, change) * (1 + 1e-6))
        return built

    monkeypatch.setitem(methods.METHODS, name, changed)
    found = compare(name)
    assert found.loss > 1e-8
    assert found.gradient > 1e-8


def test_simclr_of_two_images_in_the_plane():
    # cosines: the first image's views are at right angles, all others coincide with (0, 1). At temperature 1
    #   first of image 1:  -ln(1 / (1 + 1 + 1)) = ln 3         second of image 1:  -ln(1 / (1 + e + e)) = ln(1 + 2 e)
    #   either of image 2: -ln(e / (1 + e + e)) = ln(2 + 1 / e)
    expected = (math.log(3) + math.log(1 + 2 * math.e) + 2 * math.log(2 + 1 / math.e)) / 4
    assert expected == pytest.approx(1.171149, abs=1e-6)
    first, second = numbers([3, 0], [0, 1]), numbers([0, 0.5], [0, 2])
    found = SimCLR(student(), None, temperature=1.0)([tokens(first), tokens(second)], [None] * 2, [None] * 2)
    assert found["loss"].item() == about(expected)
    assert losses.nt_xent(first, second, 1.0).item() == about(expected)


def test_mocov3_of_two_images_in_the_plane():
    # temperature 1/2, so 2 T = 1. q1 finds its keys: ln(1 + e^-2); q2 finds the other image's: ln(1 + e^2)
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))
    assert expected == pytest.approx(2.253856, abs=1e-6)
    same, swapped = numbers([1, 0], [0, 1]), numbers([0, 1], [1, 0])
    scorer = student(width=2)
    objective = MoCoV3(scorer, EmaTarget(scorer), temperature=0.5, hidden=2).double()
    objective.predictor = nn.Identity()
    keys = [tokens(swapped), tokens(same)]  # of views 1 and 2
    found = objective([tokens(same), tokens(same)], keys, [None] * 2)
    assert found["loss"].item() == about(expected)
    assert losses.mocov3([same, same], [swapped, same], 0.5).item() == about(expected)


def test_dino_of_two_prototypes():
    # teacher, centre (.1, .3), temperature 1/2: view 1 (2/3, 1/3), view 2 (1/2, 1/2)
    # student, temperature 1: view 1 (1/4, 3/4), view 2 (3/4, 1/4)
    # view 1 taught to view 2: -2/3 ln(3/4) - 1/3 ln(1/4) = ln 4 - 2/3 ln 3; 2 to 1: ln 4 - 1/2 ln 3
    expected = math.log(4) - 7 / 12 * math.log(3)
    assert expected == pytest.approx(0.745437, abs=1e-6)
    centre = numbers(0.1, 0.3)
    taught = [numbers([0.5 * math.log(2) + 0.1, 0.3]), numbers([0.1, 0.3])]
    said = [numbers([0, math.log(3)]), numbers([math.log(3), 0])]
    scorer = student(width=2)
    objective = Dino(scorer, EmaTarget(scorer), student_temperature=1.0, teacher_temperature=0.5).double()
    objective.centre.value.copy_(centre)
    objective.before_step(Progress(0, 4, 0, 1))
    found = objective([tokens(x) for x in said], [tokens(x) for x in taught], [None] * 2)
    objective.after_step(Progress(0, 4, 0, 1))
    assert found["loss"].item() == about(expected)
    assert losses.dino(said, taught, centre, 1.0, 0.5).item() == about(expected)
    # .9 (.1, .3) + .1 times the mean (.1 + 1/4 ln 2, .3)
    moved = [0.1 + 0.025 * math.log(2), 0.3]
    assert objective.centre.value.tolist() == about(moved)
    assert losses.moved_centre(centre, torch.cat(taught)).tolist() == about(moved)


def test_a_patch_of_four_pixels_is_normalised_by_its_unbiased_variance():
    # 1 2 3 6: mean 3, squares of what is left 4 + 1 + 0 + 9 = 14, variance 14 / 3 (14 / 4 would be the biased one)
    expected = [x / math.sqrt(14 / 3 + 1e-6) for x in (-2, -1, 0, 3)]
    assert expected == pytest.approx([-0.925820, -0.462910, 0, 1.388730], abs=1e-6)
    image = numbers([[[[1, 2], [3, 6]]]])[0]
    (target,) = PixelTarget(student()).double()([View(image, image)])
    assert target.patches.flatten().tolist() == about(expected)
    assert losses.normalised(numbers(1, 2, 3, 6)).tolist() == about(expected)


@pytest.mark.parametrize(("predict", "expected"), [("hidden", 9), ("all", 5)])  # 9, or the mean of 1 and 9
def test_deblurring_counts_the_seen_patch_and_mae_does_not(predict, expected):
    image = torch.cat([torch.ones(2, 2), 3 * torch.ones(2, 2)], 1).double()[None, None]  # one patch of 1, one of 3
    learner = student()
    target = PixelTarget(learner, norm=False).double()
    objective = MaskedPrediction(learner, target, width=8, depth=1, heads=2).double()
    nn.init.zeros_(objective.decoder_pred.weight)  # predicts 0 everywhere
    hidden = torch.tensor([[[False, True]]])
    asked = hidden if predict == "hidden" else torch.ones_like(hidden)
    mask = Mask(hidden, asked[:, :, None], 1, int(asked.sum()))
    seen = Tokens(None, numbers([[[0.5] * 16]]), torch.tensor([[[0]]]), (1, 2))
    found = objective([seen], target([View(image, image)]), [mask])
    assert found["loss"].item() == about(expected)
    nothing = torch.zeros(1, 2, 4, dtype=torch.float64)
    loop = losses.mae(nothing, image[0][None], hidden[0], 2, norm=False)
    loop = losses.deblur(nothing, image[0][None], 2) if predict == "all" else loop
    assert loop.item() == about(expected)


def test_usfm_of_one_patch():
    # restored 0, picture (-3 -1 / 0 0): difference (3 1 / 0 0), its transform (2 1 / 2 1), squares (4 1 / 4 1),
    # weights ln 3 / ln 3 and ln 2 / ln 3: frequency loss (4 + 4 + 2 ln 2 / ln 3) / 4
    # L1 of pixels (3 + 1) / (4 + 1e-5)
    expected = 4 / (4 + 1e-5) + 0.1 * (2 + 0.5 * math.log(2) / math.log(3))
    assert expected == pytest.approx(1.231544, abs=1e-6)
    image = numbers([[[[-3, -1], [0, 0]]]])[0]
    learner = student()
    target = PixelTarget(learner, norm=False).double()
    objective = Restoration(learner, target).double()
    nn.init.zeros_(objective.decoder[0].bias)
    hidden = torch.ones(1, 1, 1, dtype=torch.bool)
    output = Tokens(None, torch.zeros(1, 1, 1, 16, dtype=torch.float64), None, (1, 1))
    found = objective([output], target([View(image, image)]), [Mask(hidden, hidden[:, :, None], 0, 1, "fill")])
    assert found["loss"].item() == about(expected)
    masks = torch.ones(1, 2, 2, dtype=torch.bool)
    assert losses.usfm(torch.zeros_like(image), image, masks).item() == about(expected)


@pytest.mark.parametrize(
    ("update", "steps", "expected"),
    [
        # student 4, teacher 2, momentum from .9 to 1: at step 0 of 4 it is .9, so 1.8 + .4
        ("after", [0], 2.2),
        # then at step 2 it is 1 - .1 (1 + cos(pi / 2)) / 2 = .95, so .95 2.2 + .05 4
        ("after", [0, 2], 2.29),
        # ahead of step 1 it is 1 - .1 (1 + cos(pi / 4)) / 2 = .9146447, so 4 - 2 .9146447
        ("before", [0], 2.1707106781186546),
    ],
)
def test_a_teacher_follows_by_half_a_cosine(update, steps, expected):
    follower = EmaTarget(learner := student().double(), momentum=0.9, update=update)
    weight, own = (s.encoder.embed.bias for s in (learner, follower.teacher))
    nn.init.constant_(weight, 4.0), nn.init.constant_(own, 2.0)
    loop = {"bias": numbers(2)}
    for step in steps:
        follower.after_step(Progress(step, 4, 0, 1))
        updates.follow(loop, {"bias": numbers(4)}, updates.momentum(step + (update == "before"), 4, 0.9))
    assert own[0].item() == about(expected)
    assert loop["bias"].item() == about(expected)


def test_the_average_of_weights_forgets_fast_at_first():
    learner = student().double()
    nn.init.constant_(learner.encoder.embed.bias, 2.0)
    ema = Ema(learner, 0.9999)
    nn.init.constant_(learner.encoder.embed.bias, 4.0)
    ema.update(learner, 0)  # decay (1 + 0) / (10 + 0): .1 2 + .9 4
    assert ema.average["encoder.embed.bias"][0].item() == about(3.8)
    ema.update(learner, 1)  # 2 / 11: 2/11 3.8 + 9/11 4
    assert ema.average["encoder.embed.bias"][0].item() == about(43.6 / 11)


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        # weight 2, gradient .5, decay .1: .7, which trust .001 scales to .001 2 = .002. Rate .3: 2 - .0006.
        # Second step, rate .6: .001 1.9994 = .0019994; in SimCLR's form 1.9994 - (.9 .0006 + .6 .0019994)
        (True, 1.99766036),
        # in MoCo-v3's 1.9994 - .6 (.9 .002 + .0019994)
        (False, 1.99712036),
    ],
)
def test_lars_of_a_single_weight(inside, expected):
    layer = nn.Linear(1, 1).double()
    nn.init.constant_(layer.weight, 2.0), nn.init.constant_(layer.bias, 2.0)
    rule = Lars(weight_decay=0.1, rate_in_momentum=inside).start(layer, 256)
    loop, own = updates.Lars(rate_inside=inside), {"weight": numbers([2.0]), "bias": numbers(2.0)}
    for rate in (0.3, 0.6):
        layer.weight.grad, layer.bias.grad = numbers([0.5]), numbers(0.5)
        for group in rule.param_groups:
            group["lr"] = rate
        rule.step()
        loop.step(own, {"weight": numbers([0.5]), "bias": numbers(0.5)}, rate, 0.1, {"bias"})
    # the bias has neither decay nor a rate of its own: 2 - .15 - (.9 .15 + .3), or 2 - .15 - .6 (.9 .5 + .5)
    bias = 1.415 if inside else 1.28
    assert [layer.weight.item(), layer.bias.item()] == about([expected, bias])
    assert [own["weight"].item(), own["bias"].item()] == about([expected, bias])


def test_an_impulse_is_blurred_to_opencvs_kernel():
    # sigma 1.1, 8 bits: (0 2 18 62 92 62 18 2 0) / 256 along each axis, so round(255 k k' / 65536) around the impulse
    pixels = torch.zeros(1, 1, 11, 11, dtype=torch.uint8)
    pixels[0, 0, 5, 5] = 255
    found = gaussian_blur(pixels, torch.tensor([[0, 0, 11, 11]]), torch.tensor([1.1]))[0, 0]
    assert found[5].tolist() == [0, 0, 1, 6, 22, 33, 22, 6, 1, 0, 0]  # 255 92 (2 18 62 92) / 65536: .7 6.4 22.2 32.9
    assert found[4].tolist() == [0, 0, 0, 4, 15, 22, 15, 4, 0, 0, 0]  # 255 62 (2 18 62 92) / 65536: .48 4.3 15.0 22.2
    assert torch.equal(found, found.T)
