"""iBOT: the patches' loss against plain loops, its own centre and temperature, and what it adds to DINO."""

from __future__ import annotations

import math

import pytest
import torch
from processes import run
from torch import nn

from ussl.method import Method
from ussl.options import options as options_of
from ussl.parts import Augmentation, Mask, Progress, Student, Tokens, View
from ussl.testing import TinyEncoder, check_objective, tiny_batch, tiny_draws, tiny_mask, tiny_student, tiny_view
from ussl_plugins.heads.prototypes import Prototypes
from ussl_plugins.maskings.block import BlockMasking
from ussl_plugins.maskings.random import RandomMasking
from ussl_plugins.objectives.dino import Dino
from ussl_plugins.objectives.ibot import Ibot
from ussl_plugins.targets.ema import EmaTarget

SMALL = {"prototypes": 12, "hidden": 10, "bottleneck": 6}
WARM = {"teacher_temperature_start": 0.04, "teacher_temperature_warmup_epochs": 3}


class TokenEncoder(TinyEncoder):
    """The tiny encoder with a token that stands where patches are hidden."""

    accepts = frozenset({"token"})

    def __init__(self, **options):
        super().__init__(**options)
        self.mask_token = nn.Parameter(torch.randn(self.width))

    def forward(self, image, mask=None):
        x = self.embed(self._patches(image[:, None])) + 0 * self.mask_token  # (B, 1, N, D)
        if mask is not None:
            x = torch.where(mask.hidden[..., None], self.mask_token, x)
        x = x + self.token(x).sin() + self.shared(x.mean(2, keepdim=True))
        return Tokens(x.mean(2), x, None, self.grid(*image.shape[-2:]))


class Crops(Augmentation):
    """Two global views of noise and a smaller local one, in float64."""

    def forward(self, batch, draws):
        sizes = (("global", 16), ("global", 16), ("local", 8))
        images = [draws.view(i).uniform("noise", 1, side, side).double() for i, (_, side) in enumerate(sizes)]
        return [View(image, image, role) for image, (role, _) in zip(images, sizes, strict=True)]


def student(**options):
    torch.manual_seed(0)
    encoder = TokenEncoder()
    return Student(encoder, Prototypes(encoder, patches=True, **{**SMALL, **options}))


def objective(kind=Ibot, **options):
    """The loss alone, for scores over 5 prototypes given as tensors."""
    scorer = tiny_student()
    scorer.encoder.width = 5
    return kind(scorer, EmaTarget(scorer), **options).double()


def scores(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def given(images=4, masks=1):
    """Scores of two global views of 2 x 3 patches and a local one, their targets and masks, as leaves."""
    said = [scores(images, masks if v < 2 else 1, 7, 5, seed=v).div(4).requires_grad_() for v in range(3)]
    taught = [scores(images, 1, 7, 5, seed=10 + v) / 12 for v in range(2)]
    views = [tiny_view(images, 8, 12, seed=v) for v in range(2)]
    hidden = [*(tiny_mask(view, (2, 3), masks, "token", seed=v) for v, view in enumerate(views)), None]
    return said, taught, hidden


def tokens(x):
    """Of (B, K, 1 + N, D)."""
    return Tokens(x[:, :, 0], x[:, :, 1:], None, (2, 3))


def loss_of(part, said, taught, masks, rows=slice(None)):
    def cut(mask):
        return mask and Mask(mask.hidden[rows], mask.predict[rows], mask.seen, mask.asked, mask.how)

    targets = [*(tokens(x[rows]) for x in taught), None]
    return part([tokens(x[rows]) for x in said], targets, [cut(mask) for mask in masks])


def at(step, steps=10, epochs=1.0):
    return Progress(step, steps, step / steps * epochs, epochs)


def shares(row, temperature, centre=(0, 0, 0, 0, 0)):
    powers = [math.exp((x - c) / temperature) for x, c in zip(row, centre, strict=True)]
    return [power / sum(powers) for power in powers]


def plain_patches(said, taught, masks, centre, sharp, soft=0.1):
    """The paper's patch loss by loops over views, images, masks, hidden patches and prototypes."""
    views = []
    for s, t, mask in zip(said, taught, masks, strict=False):
        images = []
        for b in range(len(s)):
            for k in range(s.shape[1]):
                hidden = [n for n in range(6) if mask.hidden[b, k, n]]
                total = 0
                for n in hidden:
                    q = shares(t[b, 0, 1 + n].tolist(), sharp, centre)
                    p = shares(s[b, k, 1 + n].tolist(), soft)
                    total -= sum(a * math.log(c) for a, c in zip(q, p, strict=True))
                images.append(total / len(hidden))
        views.append(sum(images) / len(images))
    return sum(views) / len(views)


@pytest.mark.parametrize("masks", [1, 2])
def test_the_loss_is_dinos_plus_the_patches(masks):
    part, dino = objective(class_weight=0.5, patch_weight=2.0, teacher_patch_temperature=0.06), objective(Dino)
    part.patch_centre.value.copy_(scores(5, seed=30) / 10)
    said, taught, hidden = given(masks=masks)
    found = loss_of(part, said, taught, hidden)
    patches = plain_patches(said, taught, hidden, part.patch_centre.value.tolist(), 0.06)
    image = loss_of(dino, said, taught, hidden)["loss"].item()
    assert found["patch_loss"].item() == pytest.approx(patches, abs=1e-9)
    assert found["class_loss"].item() == pytest.approx(image, abs=1e-12)
    assert found["loss"].item() == pytest.approx(0.5 * image + 2 * patches, abs=1e-9)
    total = found["teacher_entropy"] + found["divergence"]
    torch.testing.assert_close(total, found["loss"].detach(), rtol=1e-12, atol=0)


def test_the_patches_loss_is_lightlys():
    from lightly.loss import IBOTPatchLoss

    part, theirs = objective(class_weight=0.0), IBOTPatchLoss(output_dim=5).double()
    said, taught, hidden = given()
    centre = scores(5, seed=30) / 10
    part.patch_centre.value.copy_(centre)
    expected = []
    for v in range(2):
        theirs.center.center.copy_(centre)  # moved by each call
        mask = hidden[v].hidden[:, 0]
        told = taught[v][:, 0, 1:][mask], said[v][:, 0, 1:][mask]
        expected.append(theirs(*told, mask.view(4, 2, 3)))
    # their teacher temperature is a float32 tensor
    torch.testing.assert_close(loss_of(part, said, taught, hidden)["loss"], sum(expected) / 2, rtol=1e-6, atol=0)


def test_a_hidden_patchs_gradient_is_the_papers_and_a_seen_one_has_none():
    part = objective(class_weight=0.0)
    said, taught, hidden = given()
    (slope,) = torch.autograd.grad(loss_of(part, said, taught, hidden)["loss"], said[:1])
    assert not slope[:, 0, 0].any()
    assert hidden[0].asked == 3
    for b in range(4):
        for n in range(6):
            q, p = shares(taught[0][b, 0, 1 + n].tolist(), 0.04), shares(said[0][b, 0, 1 + n].tolist(), 0.1)
            for d in range(5):  # (p - q) / (0.1 x 4 images x 3 hidden patches x 2 views)
                expected = (p[d] - q[d]) / 2.4 if hidden[0].hidden[b, 0, n] else 0
                assert slope[b, 0, 1 + n, d].item() == pytest.approx(expected, abs=1e-9)


def test_only_the_patches_asked_for_are_predicted():
    part = objective(class_weight=0.0)
    said, taught, hidden = given()
    masks = [Mask(m.hidden, m.hidden[:, :, None], m.seen, m.asked, "token") for m in hidden[:2]]
    for mask in masks:
        first = mask.hidden.byte().argmax(-1, keepdim=True)
        mask.predict = torch.zeros_like(mask.hidden).scatter(-1, first, True)[:, :, None]
        mask.asked = 1
    found = loss_of(part, said, taught, [*masks, None])["loss"].item()
    single = [Mask(m.predict[:, :, 0], m.predict, 5, 1, "token") for m in masks]
    assert found == pytest.approx(plain_patches(said, taught, single, [0] * 5, 0.04), abs=1e-9)


def test_the_patches_centre_is_the_mean_over_all_patches_and_moves_after_the_step():
    part = objective(patch_centre_momentum=0.8, centre_momentum=0.6)
    said, taught, hidden = given()
    part.before_step(at(0))
    loss_of(part, said, taught, hidden)
    assert not part.patch_centre.value.any()
    part.after_step(at(0))
    every = torch.cat(taught)[:, 0]
    torch.testing.assert_close(part.patch_centre.value, 0.2 * every[:, 1:].mean((0, 1)), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(part.centre.value, 0.4 * every[:, 0].mean(0), rtol=1e-12, atol=1e-15)
    assert {"centre.value", "patch_centre.value"} <= set(part.state_dict())


def test_a_refused_step_leaves_both_centres_alone_and_micro_batches_add_up():
    part, other = objective(), objective()
    said, taught, hidden = given()
    part.before_step(at(0))
    loss_of(part, said, [100 * x for x in taught], hidden)
    for one in (part, other):
        one.before_step(at(1))
    halves = [loss_of(part, said, taught, hidden, rows)["loss"] for rows in (slice(2), slice(2, 4))]
    whole = loss_of(other, said, taught, hidden)["loss"]
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-12, atol=0)
    for one in (part, other):
        one.after_step(at(1))
    for name in ("centre", "patch_centre"):
        torch.testing.assert_close(getattr(part, name).value, getattr(other, name).value, rtol=1e-12, atol=1e-15)


def test_patches_have_a_temperature_of_their_own():
    part = objective(
        teacher_temperature=0.08, teacher_patch_temperature=0.07, teacher_patch_temperature_start=0.05, **WARM
    )
    found = []
    for step in range(5):
        part.before_step(at(step, 5, 5))
        found.append((part.temperature.value, part.patch_temperature.value))
    expected = [(0.04, 0.05), (0.06, 0.06), (0.08, 0.07), (0.08, 0.07), (0.08, 0.07)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    constant = objective(teacher_temperature=0.08, teacher_patch_temperature=0.07, **WARM)
    assert constant.patch_temperature.value == 0.07
    same = objective(teacher_temperature=0.08, **WARM)
    same.before_step(at(1, 5, 5))
    assert same.temperature.value == same.patch_temperature.value == pytest.approx(0.06)


def test_uniform_answers_lose_what_chance_says():
    part = objective(class_weight=0.5, patch_weight=2.0)
    said, taught, hidden = given()
    found = loss_of(part, [0 * x for x in said], [0 * x for x in taught], hidden)
    assert found["loss"].item() == pytest.approx(2.5 * math.log(5), abs=1e-12)
    assert found["teacher_entropy"].item() == pytest.approx(2.5 * math.log(5), abs=1e-12)
    assert found["patch_entropy"].item() == pytest.approx(math.log(5), abs=1e-12)
    assert part.chance == pytest.approx(2.5 * math.log(5))


def test_ibot_keeps_the_contract():
    check_objective(Ibot, student=student(), target=EmaTarget, views=2)


def test_dinos_options_are_ibots_too():
    own = {"teacher_patch_temperature", "teacher_patch_temperature_start", "patch_centre_momentum"}
    known = options_of(Ibot, ("student", "target"))
    assert set(known) == set(options_of(Dino, ("student", "target"))) | own | {"class_weight", "patch_weight"}
    assert all(option.help for option in known.values())


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
def test_a_step_runs_through_the_one_step_of_all_methods(masking):
    part = student()
    target = EmaTarget(part)
    method = Method(Crops(), part, masking(ratio=0.5, how="token"), target, Ibot(part, target)).double()
    found = method(tiny_batch(), tiny_draws())
    found["loss"].backward()
    assert part.encoder.mask_token.grad.any()
    assert all(p.grad is not None for p in part.parameters() if p.requires_grad)
    with torch.no_grad():
        part.encoder.mask_token += 1
    assert method(tiny_batch(), tiny_draws())["patch_loss"] != found["patch_loss"]


def share(rank=0, world=1):
    """Losses, gradients and centres of one rank's images after a step."""
    part = objective()
    said, taught, hidden = given()
    rows = slice(4 * rank // world, 4 * (rank + 1) // world)
    part.before_step(at(0))
    loss = loss_of(part, said, taught, hidden, rows)["loss"]
    slopes = torch.autograd.grad(loss, said[:2])
    part.after_step(at(0))
    second = loss_of(part, said, taught, hidden, rows)["loss"]
    return loss.item(), second.item(), torch.stack(slopes), part.centre.value, part.patch_centre.value


def test_two_processes_are_as_one():
    loss, second, slope, *centres = share()
    found = run(share)
    assert sum(r[0] for r in found) / 2 == pytest.approx(loss, rel=1e-9)
    assert sum(r[1] for r in found) / 2 == pytest.approx(second, rel=1e-9)
    torch.testing.assert_close(sum(r[2] for r in found) / 2, slope, rtol=1e-9, atol=1e-15)
    for r in found:
        torch.testing.assert_close(list(r[3:]), centres, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_weight": 0.0, "patch_weight": 0.0}, "write 1 and 1"),
        ({"patch_weight": -1.0}, "write 1 and 1"),
        ({"teacher_patch_temperature_start": 0.04}, "write teacher_patch_temperature"),
        ({"teacher_patch_temperature_start": 0.04, "teacher_patch_temperature": 0.07}, "no effect"),
        ({"teacher_patch_temperature": 0.0}, "above 0"),
        ({"patch_centre_momentum": -0.1}, "below 1"),
        ({"student_temperature": 0.0}, "above 0"),
    ],
)
def test_options_without_effect_or_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as error:
        objective(**options)
    assert "\n" not in str(error.value)


def test_a_method_that_does_not_fit_is_refused():
    part = objective()
    said, taught, hidden = given()
    with pytest.raises(ValueError, match="how: token"):
        loss_of(part, said, taught, [None] * 3)
    outputs, targets = [tokens(x) for x in said], [*map(tokens, taught), None]
    dropped = [Tokens(x.pooled, x.patches[:, :, :3], torch.arange(3).expand(4, 1, 3), (2, 3)) for x in outputs]
    with pytest.raises(ValueError, match="how: token"):
        part(dropped, targets, hidden)
    with pytest.raises(ValueError, match="patches: true"):
        part([Tokens(x.pooled, None, None, (2, 3)) for x in outputs], targets, hidden)
    blocks = [m and Mask(m.hidden, m.predict.expand(-1, -1, 2, -1), 3, 3, "token") for m in hidden]
    with pytest.raises(ValueError, match="asks for 2"):
        part(outputs, targets, blocks)
