"""DINO: its head, its loss against plain loops and lightly's, and how its centre and temperature move."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from processes import run
from torch import nn

from ussl.parts import Progress, Student, Tokens, View
from ussl.testing import TinyEncoder, check_head, check_objective, tiny_student, tiny_view
from ussl_plugins.heads.prototypes import Prototypes
from ussl_plugins.objectives.dino import Dino, Temperature
from ussl_plugins.targets.ema import EmaTarget

WARM = {"teacher_temperature_start": 0.04}
SMALL = {"prototypes": 12, "hidden": 10, "bottleneck": 6}


def student(seed=0, **options):
    torch.manual_seed(seed)
    encoder = TinyEncoder()
    return Student(encoder, Prototypes(encoder, **{**SMALL, **options}))


def objective(width=5, **options):
    """The loss alone, for scores given as tensors."""
    scorer = tiny_student()
    scorer.encoder.width = width
    target = EmaTarget(scorer)
    return Dino(scorer, target, **options).double()


def scores(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(x):
    """Scores (B, D) or (B, K, D) as the tokens of a view."""
    return Tokens(x[:, None] if x.ndim == 2 else x, None, None, (2, 2))


def at(step, steps=10, epochs=1.0):
    return Progress(step, steps, step / steps * epochs, epochs)


def loss_of(part, said, taught):
    targets = [*map(tokens, taught), *[None] * (len(said) - len(taught))]
    return part([tokens(x) for x in said], targets, [None] * len(said))


def softmax(row, temperature, centre):
    powers = [math.exp((x - c) / temperature) for x, c in zip(row, centre, strict=True)]
    return [power / sum(powers) for power in powers]


def plain(said, taught, centre, sharp, soft=0.1):
    """The paper's loss by loops over pairs, images and prototypes; plain numbers in and out."""
    total = pairs = 0
    for i, teacher in enumerate(taught):
        for v, view in enumerate(said):
            if v == i:
                continue
            pairs += 1
            for t, s in zip(teacher, view, strict=True):
                q, p = softmax(t, sharp, centre), softmax(s, soft, [0] * len(s))
                total -= sum(a * math.log(b) for a, b in zip(q, p, strict=True)) / len(teacher)
    return total / pairs


@pytest.mark.parametrize("options", [{}, {"patches": True}, {"norm_last_layer": False, "layers": 2}])
def test_the_prototypes_head_keeps_the_contract(options):
    check_head(Prototypes, **SMALL, **options)


def test_a_score_is_the_cosine_with_a_prototype():
    part = student().double()
    x = part.encoder(tiny_view().image.double())
    y = x.pooled[:, 0]
    for number in (0, 2, 4):
        layer = part.head.mlp[number]
        y = y @ layer.weight.T + layer.bias
        y = y if number == 4 else 0.5 * y * (1 + torch.erf(y / 2**0.5))
    v = part.head.last_layer.parametrizations.weight.original1
    expected = (y @ v.T) / y.norm(dim=-1, keepdim=True) / v.norm(dim=-1)
    torch.testing.assert_close(part.head(x).pooled[:, 0], expected, rtol=0, atol=1e-12)


def test_patches_go_through_the_same_head():
    part = student(patches=True)
    x = part.encoder(tiny_view().image)
    found = part.head(x)
    again = part.head(Tokens(x.patches[:, :, 3], x.patches, None, x.grid))
    torch.testing.assert_close(found.patches[:, :, 3], again.pooled)
    assert found.patches.shape == (4, 1, 16, 12)
    assert student().head(x).patches is None


def test_the_head_starts_as_the_released_one():
    torch.manual_seed(0)
    head = Prototypes(TinyEncoder(width=64), prototypes=200, hidden=128, bottleneck=100)
    assert [type(m) for m in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    for number in (0, 2, 4):
        assert head.mlp[number].weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not head.mlp[number].bias.any()
    g, v = (getattr(head.last_layer.parametrizations.weight, f"original{i}") for i in (0, 1))
    assert g.shape == (200, 1)
    assert (g == 1).all()
    assert not g.requires_grad
    assert v.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)  # torch's own draw, U(+-1 / sqrt(bottleneck))
    sizes = [64 * 128 + 128, 128 * 128 + 128, 128 * 100 + 100, 200 * 100]
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == sum(sizes)


@pytest.mark.parametrize("norm", [True, False])
def test_prototypes_keep_their_length_unless_it_is_learned(norm):
    part = student(norm_last_layer=norm)
    update = torch.optim.SGD([p for p in part.parameters() if p.requires_grad], lr=1.0)
    weights = torch.randn(4, 1, 12)
    for _ in range(3):
        update.zero_grad()
        (part([tiny_view()], [None])[0].pooled * weights).sum().backward()
        update.step()
    lengths = part.head.last_layer.weight.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(12)) == norm


def test_the_head_can_be_copied_after_use():
    part = student()
    view = tiny_view()
    before = part([view], [None])[0].pooled
    before.sum().backward()
    twin = copy.deepcopy(part)
    torch.testing.assert_close(twin([view], [None])[0].pooled, before)
    with torch.no_grad():
        twin.head.last_layer.parametrizations.weight.original1.add_(torch.randn(12, 6))
    torch.testing.assert_close(part([view], [None])[0].pooled, before)
    assert not torch.allclose(twin([view], [None])[0].pooled, before)


@pytest.mark.parametrize(
    ("epochs", "progress", "frozen"),
    [
        (1.0, at(0, 100, 100), True),
        (1.0, at(1, 100, 100), False),
        (29.0, at(28, 100, 100), True),
        (29.0, at(29, 100, 100), False),  # 29 / 100 * 100 is 28.999999999999996
        (0.5, at(4, 10, 1), True),
        (0.5, at(5, 10, 1), False),
        (0.0, at(0), False),
    ],
)
def test_prototypes_do_not_move_in_the_first_epochs(epochs, progress, frozen):
    part = student(freeze_epochs=epochs)
    part([tiny_view()], [None])[0].pooled.sum().backward()
    part.head.after_backward(progress)
    assert (part.head.last_layer.parametrizations.weight.original1.grad is None) == frozen
    assert part.head.mlp[0].weight.grad is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prototypes": 1}, "at least 2"),
        ({"hidden": 0}, "at least 1"),
        ({"layers": 1}, "2 or more"),
        ({"freeze_epochs": -1.0}, "write 0"),
    ],
)
def test_a_head_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        student(**options)


def test_an_encoder_without_image_feature_or_patches_is_refused():
    part = student(patches=True)
    x = part.encoder(tiny_view().image)
    with pytest.raises(ValueError, match="needs an image feature"):
        part.head(Tokens(None, x.patches, None, x.grid))
    with pytest.raises(ValueError, match="leave the head's patches out"):
        part.head(Tokens(x.pooled, None, None, x.grid))


def test_dino_keeps_the_contract():
    for views in (2, 4):
        check_objective(Dino, student=student(), target=EmaTarget, views=views, masked=False)


@pytest.mark.parametrize("views", [2, 5])
def test_the_loss_and_its_gradient_are_the_papers(views):
    part = objective()
    part.centre.value.copy_(scores(5, seed=9))
    said = [scores(3, 5, seed=v).div(5).requires_grad_() for v in range(views)]
    taught = [scores(3, 5, seed=10 + i) / 10 for i in range(2)]
    found = loss_of(part, said, taught)["loss"]
    gradients = torch.autograd.grad(found, said)
    lists = [x.tolist() for x in said], [x.tolist() for x in taught], part.centre.value.tolist()
    assert found.item() == pytest.approx(plain(*lists, 0.04), abs=1e-9)
    for v in range(views):  # d/ds = (p - q) / (0.1 images pairs), summed over the pairs of the view
        for b in range(3):
            p = softmax(lists[0][v][b], 0.1, [0] * 5)
            for d in range(5):
                q = [softmax(lists[1][i][b], 0.04, lists[2])[d] for i in range(2) if i != v]
                slope = sum(p[d] - one for one in q) / 0.1 / 3 / (2 * (views - 1))
                assert gradients[v][b, d].item() == pytest.approx(slope, abs=1e-9)


def test_a_small_case_by_hand():
    part = objective(width=2, student_temperature=1.0, teacher_temperature=1.0)
    three = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)  # shares 3/4 and 1/4
    even = torch.zeros(1, 2, dtype=torch.float64)
    found = loss_of(part, [three, even], [three, even])
    first = math.log(2)  # the teacher of view 0 says 3/4, 1/4, the student of view 1 says 1/2, 1/2
    second = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert found["loss"].item() == pytest.approx((first + second) / 2, abs=1e-12)
    entropy = (math.log(2) - 3 / 4 * math.log(3 / 4) - 1 / 4 * math.log(1 / 4)) / 2
    assert found["teacher_entropy"].item() == pytest.approx(entropy, abs=1e-12)
    assert found["divergence"].item() == pytest.approx((first + second) / 2 - entropy, abs=1e-12)


def test_uniform_answers_lose_what_chance_says():
    part = objective()
    even = torch.zeros(3, 5, dtype=torch.float64)
    assert loss_of(part, [even] * 4, [even] * 2)["loss"].item() == pytest.approx(math.log(5), abs=1e-12)
    assert part.chance == pytest.approx(math.log(5))


def test_several_masks_of_a_view_are_averaged():
    part = objective()
    said = [scores(3, 2, 5, seed=v) for v in range(2)]
    taught = [scores(3, 5, seed=10 + v) for v in range(2)]
    both = loss_of(part, said, taught)["loss"]
    each = [loss_of(part, [x[:, k] for x in said], taught)["loss"] for k in range(2)]
    torch.testing.assert_close(both, sum(each) / 2, rtol=1e-12, atol=0)


def test_loss_and_centre_are_lightlys_over_several_steps():
    from lightly.loss import DINOLoss

    part, theirs = objective(), DINOLoss(output_dim=5, warmup_teacher_temp_epochs=0).double()
    for step in range(3):
        said = [scores(4, 5, seed=10 * step + v) / 4 for v in range(4)]
        taught = [scores(4, 5, seed=10 * step + 5 + v) / 4 for v in range(2)]
        part.before_step(at(step))
        found = loss_of(part, said, taught)["loss"]
        part.after_step(at(step))
        # their teacher temperature is a float32 tensor
        torch.testing.assert_close(found, theirs(taught, said), rtol=1e-6, atol=0)
        torch.testing.assert_close(part.centre.value, theirs.center[0, 0], rtol=1e-12, atol=1e-15)


def test_the_centre_moves_after_a_step_only_and_by_hand():
    part = objective(width=2, centre_momentum=0.9)
    taught = [torch.tensor([[1.0, 0.0], [3.0, 2.0]]).double(), torch.tensor([[5.0, 0.0], [7.0, 2.0]]).double()]
    part.before_step(at(0))
    loss_of(part, taught, taught)
    assert not part.centre.value.any()
    part.after_step(at(0))
    torch.testing.assert_close(part.centre.value, torch.tensor([0.4, 0.1], dtype=torch.float64), rtol=1e-12, atol=0)
    part.before_step(at(1))
    loss_of(part, taught, taught)
    part.after_step(at(1))
    torch.testing.assert_close(part.centre.value, torch.tensor([0.76, 0.19], dtype=torch.float64), rtol=1e-12, atol=0)
    assert "centre.value" in part.state_dict()


def test_a_refused_step_leaves_the_centre_alone():
    part, other = objective(), objective()
    taught = [scores(3, 5, seed=v) for v in range(2)]
    part.before_step(at(0))
    loss_of(part, [100 * x for x in taught], [100 * x for x in taught])
    for one in (part, other):
        one.before_step(at(1))
        loss_of(one, taught, taught)
        one.after_step(at(1))
    assert torch.equal(part.centre.value, other.centre.value)


def test_micro_batches_give_the_same_loss_gradient_and_centre():
    whole, parts = objective(), objective()
    said = [scores(4, 5, seed=v).requires_grad_() for v in range(3)]
    taught = [scores(4, 5, seed=10 + v) for v in range(2)]
    for part in (whole, parts):
        part.centre.value.copy_(scores(5, seed=20))
        part.before_step(at(0))
    loss = loss_of(whole, said, taught)["loss"]
    halves = [loss_of(parts, [x[i] for x in said], [x[i] for x in taught])["loss"] for i in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(sum(halves) / 2, said), torch.autograd.grad(loss, said))
    for part in (whole, parts):
        part.after_step(at(0))
    torch.testing.assert_close(parts.centre.value, whole.centre.value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.04), (9, 0.04), (10, 0.05), (19, 0.05), (20, 0.06), (30, 0.07), (40, 0.07), (99, 0.07)],
)
def test_the_teachers_temperature_rises_from_epoch_to_epoch(step, expected):
    part = objective(teacher_temperature=0.07, **WARM, teacher_temperature_warmup_epochs=4)
    part.before_step(at(step, 100, 10))
    assert part.temperature.value == pytest.approx(expected, abs=1e-15)
    said, taught = [scores(2, 5, seed=v) / 9 for v in range(2)], [scores(2, 5, seed=v + 5) / 9 for v in range(2)]
    lists = [x.tolist() for x in said], [x.tolist() for x in taught], [0] * 5
    assert loss_of(part, said, taught)["loss"].item() == pytest.approx(plain(*lists, expected), abs=1e-9)


def test_an_epoch_begins_with_its_first_step_in_spite_of_rounding():
    part = objective(teacher_temperature=0.07, **WARM, teacher_temperature_warmup_epochs=31)
    progress = at(29, 100, 100)
    assert progress.epoch < 29
    part.before_step(progress)
    assert part.temperature.value == pytest.approx(0.04 + 0.03 * 29 / 30, abs=1e-15)


def test_a_warm_up_of_one_epoch_is_the_first_epoch():
    part = objective(teacher_temperature=0.07, **WARM, teacher_temperature_warmup_epochs=1)
    part.before_step(at(5, 10, 2))
    assert part.temperature.value == 0.07
    part.before_step(at(4, 10, 2))
    assert part.temperature.value == 0.04


class Published:
    """The paper's training by hand: networks are copies, all else is written out; two steps an epoch."""

    def __init__(self, network):
        self.student, self.teacher = copy.deepcopy(network), copy.deepcopy(network)
        self.centre = torch.zeros(12, dtype=torch.float64)
        self.update = sgd(self.student)

    def step(self, views, step, steps):
        with torch.no_grad():
            taught = [self.teacher([view], [None])[0].pooled[:, 0] for view in views[:2]]
        said = [self.student([view], [None])[0].pooled[:, 0] for view in views]
        loss = 0
        for i, v in ((0, 1), (0, 2), (1, 0), (1, 2)):
            q = ((taught[i] - self.centre) / (0.04, 0.055, 0.07, 0.07)[step // 2]).exp()
            q = q / q.sum(-1, keepdim=True)
            loss = loss - (q * (said[v] / 0.1).log_softmax(-1)).sum(-1).mean() / 4
        self.update.zero_grad()
        loss.backward()
        if step < 4:
            self.student.head.last_layer.parametrizations.weight.original1.grad = None
        self.update.step()
        self.centre = 0.9 * self.centre + 0.1 * torch.cat(taught).mean(0)
        m = 1 - 0.1 * (math.cos(math.pi * step / steps) + 1) / 2
        for a, b in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            a.data = m * a.data + (1 - m) * b.data


def sgd(network):
    return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.5)


def crops(step):
    """Two global views and a smaller local one."""
    sizes = ((16, "global"), (16, "global"), (8, "local"))
    images = [tiny_view(2, side, side, seed=3 * step + i).image.double() for i, (side, _) in enumerate(sizes)]
    return [View(image, image, role) for image, (_, role) in zip(images, sizes, strict=True)]


def test_training_follows_the_published_loop():
    ours = student(freeze_epochs=2.0).double()
    target = EmaTarget(ours, momentum=0.9)
    loss = Dino(ours, target, teacher_temperature=0.07, **WARM, teacher_temperature_warmup_epochs=3).double()
    theirs, update, steps = Published(ours), sgd(ours), 8
    for step in range(steps):
        views, progress = crops(step), at(step, steps, 4.0)
        loss.before_step(progress)
        update.zero_grad()
        loss(ours(views, [None] * 3), target(views), [None] * 3)["loss"].backward()
        ours.head.after_backward(progress)
        update.step()
        loss.after_step(progress)
        target.after_step(progress)
        theirs.step(views, step, steps)
    for a, b in ((ours, theirs.student), (target.teacher, theirs.teacher)):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-10)
    torch.testing.assert_close(loss.centre.value, theirs.centre, rtol=0, atol=1e-12)


def rank_step(rank, world):
    """Loss, gradients of this rank's student scores and the centre after a step."""
    part = objective()
    rows = slice(4 * rank // world, 4 * (rank + 1) // world)
    said = [scores(4, 5, seed=v)[rows].requires_grad_() for v in range(3)]
    taught = [scores(4, 5, seed=10 + v)[rows] for v in range(2)]
    part.before_step(at(0))
    loss = loss_of(part, said, taught)["loss"]
    loss.backward()
    part.after_step(at(0))
    second = loss_of(part, said, taught)["loss"]  # with the centre moved
    return loss.item(), second.item(), torch.stack([x.grad for x in said]), part.centre.value


def test_two_processes_are_as_one():
    loss, second, gradient, centre = rank_step(0, 1)
    found = run(rank_step)
    assert sum(r[0] for r in found) / 2 == pytest.approx(loss, rel=1e-9)
    assert sum(r[1] for r in found) / 2 == pytest.approx(second, rel=1e-9)
    torch.testing.assert_close(torch.cat([r[2] for r in found], 1) / 2, gradient, rtol=1e-9, atol=1e-15)
    for r in found:
        torch.testing.assert_close(r[3], centre, rtol=1e-9, atol=1e-15)


def test_the_loss_is_fp32_under_mixed_precision():
    part = student()
    target = EmaTarget(part)
    loss = Dino(part, target)
    views = [tiny_view(seed=i) for i in range(2)]
    exact = loss(part(views, [None] * 2), target(views), [None] * 2)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(part(views, [None] * 2), target(views), [None] * 2)["loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.03)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_temperature": 0.0}, "above 0"),
        ({"teacher_temperature": 0.0}, "^the teacher's temperature is 0.0; write a number above 0, such as 0.04$"),
        (
            {"teacher_temperature_start": -1.0, "teacher_temperature_warmup_epochs": 3},
            "^the teacher's temperature starts at -1.0; write a number above 0",
        ),
        ({"teacher_temperature_start": 0.04}, "write both"),
        ({"teacher_temperature_warmup_epochs": 3}, "write both"),
        ({"teacher_temperature_start": 0.04, "teacher_temperature_warmup_epochs": -3}, "0 or more"),
        ({"centre_momentum": 1.0}, "below 1"),
    ],
)
def test_options_without_effect_or_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as error:
        objective(**options)
    assert "\n" not in str(error.value)


def test_a_method_that_does_not_fit_is_refused():
    part = objective()
    x = tokens(scores(2, 5))
    with pytest.raises(ValueError, match="target: ema"):
        Dino(student(), None)
    with pytest.raises(ValueError, match="target: ema"):
        Dino(student(), EmaTarget(student(prototypes=11)))
    with pytest.raises(ValueError, match="at least 2"):
        part([x], [x], [None])
    with pytest.raises(ValueError, match="head: prototypes"):
        part([x, Tokens(None, scores(2, 1, 4, 5), None, (2, 2))], [x, None], [None] * 2)


def test_prototypes_that_never_move_and_a_warm_up_beyond_the_end_are_refused():
    short = Progress(0, 10, 0.0, 4.0)
    with pytest.raises(ValueError, match="stay frozen in all 4 epochs"):
        Prototypes(TinyEncoder(), prototypes=4, hidden=4, bottleneck=4, freeze_epochs=4).before_step(short)
    with pytest.raises(ValueError, match=r"warm up for 5 epochs, and there are 4"):
        Temperature(0.07, 0.04, 5).move(short)
