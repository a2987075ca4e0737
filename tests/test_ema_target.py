"""The moving average of the student as a target."""

import copy
import math

import pytest
import torch

from ussl.parts import Progress, Student, View
from ussl.testing import check_target, tiny_student, tiny_view
from ussl_plugins.encoders.vit import VisionTransformer
from ussl_plugins.targets.ema import EmaTarget


def student(**options):
    torch.manual_seed(0)
    return Student(VisionTransformer(width=32, depth=2, heads=2, patch=8, image_size=32, **options)).double()


def moved(update, steps, momentum=0.9):
    """A teacher after every step of a training in which the student's weights are redrawn."""
    followed = student()
    target = EmaTarget(followed, momentum=momentum, update=update)
    start = {name: p.clone() for name, p in followed.named_parameters()}
    history = []
    for step in range(steps):
        for p in followed.parameters():
            if p.requires_grad:
                p.data.normal_()
        history.append({name: p.clone() for name, p in followed.named_parameters()})
        target.after_step(Progress(step, steps, 0, 1))
    return start, history, dict(target.teacher.named_parameters())


def test_the_ema_target_keeps_the_contract_of_targets():
    check_target(EmaTarget)


@pytest.mark.parametrize("update", ["after", "before"])
def test_the_teacher_is_the_average_that_the_published_loop_makes(update):
    steps = 5
    start, history, teacher = moved(update, steps)
    for name, expected in start.items():
        for step in range(steps):
            # MoCo-v3 moves before the forward pass of step + 1, with that step's momentum
            at = step + 1 if update == "before" else step
            m = 1 - 0.5 * (1 + math.cos(math.pi * at / steps)) * (1 - 0.9)
            expected = m * expected + (1 - m) * history[step][name]
        torch.testing.assert_close(teacher[name], expected, rtol=0, atol=1e-14)


def test_the_momentum_may_be_constant():
    followed = student()
    target = EmaTarget(followed, momentum=0.5, final_momentum=0.5)
    before = copy.deepcopy(target.teacher.encoder.network.cls_token)
    followed.encoder.network.cls_token.data.add_(1)
    for step in range(2):
        target.after_step(Progress(step, 100, 0, 1))
    torch.testing.assert_close(target.teacher.encoder.network.cls_token, before + 0.75)


def test_the_teacher_drops_no_paths_while_the_student_does():
    target = EmaTarget(dropping := student(drop_path=0.9))
    view = tiny_view(4, 32, 32)
    view = View(view.image.double(), view.clean.double())
    target.train(), dropping.train()
    first, second = (target([view])[0].patches for _ in range(2))
    assert torch.equal(first, second)
    one, two = (dropping([view], [None])[0].patches for _ in range(2))
    assert not torch.equal(one, two)


def test_local_views_have_no_target_and_clean_pictures_are_asked_of():
    target = EmaTarget(tiny_student())
    view, other = tiny_view(), tiny_view(seed=1)
    said = target([View(other.image, view.clean), View(view.image, view.clean, "local"), view])
    assert said[1] is None
    torch.testing.assert_close(said[0].patches, said[2].patches)


def test_the_teacher_is_saved_and_not_trained():
    target = EmaTarget(tiny_student())
    assert any(name.startswith("teacher.encoder.") for name in target.state_dict())
    assert not any(p.requires_grad for p in target.parameters())


@pytest.mark.parametrize(("options", "said"), [({"momentum": 1.2}, "final_momentum"), ({"update": "x"}, "before")])
def test_a_wrong_option_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        EmaTarget(tiny_student(), **options)


def test_only_local_views_are_refused():
    view = tiny_view()
    with pytest.raises(ValueError, match="needs a global view"):
        EmaTarget(tiny_student())([View(view.image, view.clean, "local")])
