"""I-JEPA: blocks and contexts of its masking, and its predictor against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from processes import run

from ussl.parts import Draws, Mask, Student, Tokens, View
from ussl.positions import sincos
from ussl.testing import TinyEncoder, check_masking, check_objective, tiny_draws, tiny_student, tiny_view
from ussl_plugins.maskings.random import RandomMasking
from ussl_plugins.objectives.ijepa import Ijepa, IjepaMasking
from ussl_plugins.targets.ema import EmaTarget

SMALL = {"width": 16, "depth": 2, "heads": 2}


def hide(masking, grid=(14, 14), images=64, step=0, seed=0):
    draws = Draws(seed, 0, step, torch.arange(images), torch.zeros(images, dtype=torch.int64))
    return masking(tiny_view(images, *grid), grid, draws)


def extent(patches):
    """Rows, columns and number of the patches of a map (rows, columns) of bools."""
    where = patches.nonzero()
    rows, columns = (int(where[:, axis].max() - where[:, axis].min()) + 1 for axis in (0, 1))
    return rows, columns, len(where)


@pytest.mark.parametrize("options", [{}, {"targets": 1}, {"targets": 2, "context_scale": (0.5, 0.9)}])
def test_the_masking_keeps_its_contract(options):
    check_masking(IjepaMasking, **options)


def test_targets_are_rectangles_of_the_papers_size_equal_in_all_images_of_a_step():
    sizes = set()
    for step in range(12):
        mask = hide(IjepaMasking(), images=16, step=step)
        assert mask.predict.shape == (16, 1, 4, 196)
        shapes = {extent(block) for block in mask.predict.view(-1, 14, 14)}
        assert len(shapes) == 1
        rows, columns, count = shapes.pop()
        assert rows * columns == count == mask.asked
        assert 0.75 / 1.2 < rows / columns < 1.5 * 1.2  # whole patches
        assert 0.13 < count / 196 < 0.22
        sizes.add((rows, columns))
    assert len(sizes) > 3


def test_the_context_shares_no_patch_with_a_target():
    for grid in ((14, 14), (5, 9)):
        mask = hide(IjepaMasking(), grid)
        seen = ~mask.hidden
        assert not (seen & mask.predict.any(2)).any()
        assert (seen.sum(-1) == mask.seen).all()
        assert mask.how == "drop"


def test_the_context_lies_in_a_square_of_its_scale():
    mask = hide(IjepaMasking(context_scale=(0.3, 0.3)))  # int(58.8) = 58 patches: 8 x 8
    shapes = [extent(seen) for seen in (~mask.hidden).view(-1, 14, 14)]
    assert max(max(rows, columns) for rows, columns, _ in shapes) == 8
    assert mask.seen > 10


def test_the_number_of_seen_patches_depends_on_the_step_only():
    masking = IjepaMasking()
    for step in range(6):
        few, many = hide(masking, images=2, step=step), hide(masking, images=96, step=step)
        assert few.seen == many.seen
        assert torch.equal(few.hidden, many.hidden[:2])
        assert torch.equal(few.predict, many.predict[:2])
    assert len({hide(masking, images=1, step=step).seen for step in range(12)}) > 3


def test_as_much_is_seen_as_in_the_released_code():
    # the released collator's rule, simulated for batches of 64, leaves 40 to 63 of 14 x 14 patches
    counts = [hide(IjepaMasking(), images=1, step=step).seen for step in range(40)]
    assert min(counts) > 40
    assert max(counts) < 80
    assert 50 < sum(counts) / 40 < 70


def test_every_patch_can_be_seen_and_be_a_target():
    mask = hide(IjepaMasking(), (6, 6), images=4000)
    for share in ((~mask.hidden).float().mean((0, 1)), mask.predict.float().mean((0, 1, 2))):
        field = share.view(6, 6)
        assert field.min() > 0.02
        assert (field - field.flip(0)).abs().max() < 0.05
        assert (field - field.flip(1)).abs().max() < 0.05


def test_targets_that_would_cover_the_context_are_placed_together():
    # the middle of the picture, 8 x 8 of 14 x 14, is often covered by 10 blocks of 6 x 6
    masking = IjepaMasking(targets=10, target_scale=(0.2, 0.2), target_aspect=(1.0, 1.0), context_scale=(0.33, 0.33))
    mask = hide(masking, images=400)
    together = mask.predict.any(2).sum(-1) == mask.asked
    assert 0 < together.sum() < 200
    assert ((~mask.hidden).sum(-1) == mask.seen).all()
    assert not (~mask.hidden & mask.predict.any(2)).any()


def test_local_views_stay_whole():
    view = tiny_view(2, 8, 8)
    assert IjepaMasking()(View(view.image, view.clean, "local"), (8, 8), tiny_draws(2)) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IjepaMasking(targets=0), "such as 4"),
        (lambda: IjepaMasking(target_scale=(0.3, 0.2)), "smaller number first"),
        (lambda: IjepaMasking(target_scale=(0.0, 0.2)), "above 0"),
        (lambda: IjepaMasking(context_scale=(0.5, 1.5)), "at most 1"),
        (lambda: IjepaMasking(target_aspect=(0.0, 1.5)), "above 0"),
        (lambda: hide(IjepaMasking(context_scale=(0.1, 0.1))), "larger context_scale"),
        (lambda: hide(IjepaMasking(), (1, 1)), "larger context_scale"),
    ],
)
def test_a_masking_that_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def parts(dtype=torch.float64, **options):
    torch.manual_seed(0)
    student = Student(TinyEncoder())
    target = EmaTarget(student)
    objective = Ijepa(student, target, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.to(dtype), target.to(dtype), objective.to(dtype)


def view_of(count=3, dtype=torch.float64):
    view = tiny_view(count, 16, 24)
    return View(view.image.to(dtype), view.clean.to(dtype))


def plain_block(block, x):
    """A pre-norm transformer block on tokens (L, W), head by head."""
    heads, width = block.attn.num_heads, x.shape[-1]
    size = width // heads
    q, k, v = F.linear(block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias).split(width, -1)
    mixed = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        mixed.append((q[:, part] @ k[:, part].T / size**0.5).softmax(-1) @ v[:, part])
    x = x + F.linear(torch.cat(mixed, -1), block.attn.proj.weight, block.attn.proj.bias)
    hidden = F.gelu(F.linear(block.norm2(x), block.mlp.fc1.weight, block.mlp.fc1.bias))
    return x + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


def plain(objective, context, target, mask):
    """The paper's loss by loops over images, masks, blocks, tokens and channels."""
    position = sincos(16, *context.grid, cls=False).to(context.patches)
    errors = []
    for b in range(len(mask.hidden)):
        for k in range(mask.hidden.shape[1]):
            where = [n for n in range(mask.hidden.shape[-1]) if not mask.hidden[b, k, n]]
            seen = [
                objective.predictor_embed(x) + position[n] for x, n in zip(context.patches[b, k], where, strict=True)
            ]
            for block in mask.predict[b, k]:
                asked = [n for n in range(len(block)) if block[n]]
                x = torch.stack([*seen, *(objective.mask_token[0, 0] + position[n] for n in asked)])
                for layer in objective.predictor_blocks:
                    x = plain_block(layer, x)
                said = objective.predictor_proj(objective.predictor_norm(x))[len(seen) :]
                for y, n in zip(said, asked, strict=True):
                    t = target.patches[b, 0, n]
                    t = (t - t.mean()) / (t.var(correction=0) + 1e-5).sqrt()
                    away = (y - t).abs()
                    errors.append(torch.where(away < 1, away**2 / 2, away - 0.5).mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize("masking", [IjepaMasking(), RandomMasking(masks=2)])
def test_the_loss_and_its_gradients_are_the_papers(masking):
    student, target, objective = parts()
    view = view_of()
    mask = masking(view, (4, 6), tiny_draws(3))
    context, taught = student([view], [mask])[0], target([view])[0]
    found = objective([context], [taught], [mask])["loss"]
    expected = plain(objective, context, taught, mask)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    weights = [*objective.parameters(), *student.parameters()]
    ours, theirs = (torch.autograd.grad(x, weights, retain_graph=True) for x in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_block_does_not_see_what_is_asked_in_another():
    student, _, objective = parts()
    view = view_of()
    mask = IjepaMasking()(view, (4, 6), tiny_draws(3))
    context = student([view], [mask])[0]
    where = mask.predict.byte().argsort(dim=-1, stable=True)[..., -mask.asked :]
    together = objective.predict(context, where)
    alone = objective.predict(context, where[:, :, 2:3])
    torch.testing.assert_close(together[:, :, 2:3], alone, rtol=1e-12, atol=1e-12)


def test_the_teacher_sees_the_whole_picture_and_gets_no_gradient():
    student, target, objective = parts()
    view = view_of()
    mask = IjepaMasking()(view, (4, 6), tiny_draws(3))
    objective(student([view], [mask]), target([view]), [mask])["loss"].backward()
    assert not any(p.requires_grad or p.grad is not None for p in target.parameters())
    assert target([view])[0].patches.shape[2] == 24
    assert student.encoder.embed.weight.grad.any()


def test_a_target_that_tells_no_patches_apart_is_revealed():
    student, target, objective = parts()
    view = view_of()
    mask = IjepaMasking()(view, (4, 6), tiny_draws(3))
    outputs, taught = student([view], [mask]), target([view])
    found = objective(outputs, taught, [mask])
    assert found["target_std"] > 0.05
    assert found["prediction_std"] > 0
    flat = Tokens(None, taught[0].patches[:1, :, :1].expand(3, 1, 24, 16), None, (4, 6))
    assert objective(outputs, [flat], [mask])["target_std"].item() == pytest.approx(0, abs=1e-12)


def test_weights_start_as_the_released_ones():
    torch.manual_seed(0)
    student = tiny_student()
    objective = Ijepa(student, EmaTarget(student), width=128, depth=3, heads=4)
    assert objective.mask_token.std().item() == pytest.approx(0.02, rel=0.2)
    for number, block in enumerate(objective.predictor_blocks, start=1):
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for layer in (block.attn.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
            assert not layer.bias.any()
        assert block.norm1.eps == 1e-6
    names = {name.split(".")[0] for name in objective.state_dict()}
    assert names == {"predictor_embed", "mask_token", "predictor_blocks", "predictor_norm", "predictor_proj"}


def test_ijepa_keeps_the_contract():
    check_objective(Ijepa, target=EmaTarget, **SMALL)
    check_objective(Ijepa, target=EmaTarget, views=2, **SMALL)


def test_recomputing_activations_changes_no_gradient():
    student, target, objective = parts()
    view = view_of()
    mask = IjepaMasking()(view, (4, 6), tiny_draws(3))
    gradients = []
    for again in (False, True):
        objective.recompute = again
        objective.zero_grad()
        objective(student([view], [mask]), target([view]), [mask])["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_loss_is_fp32_under_mixed_precision():
    student, target, objective = parts(torch.float32)
    view = view_of(dtype=torch.float32)
    mask = IjepaMasking()(view, (4, 6), tiny_draws(3))
    exact = objective(student([view], [mask]), target([view]), [mask])["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(student([view], [mask]), target([view]), [mask])["loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.03)


def share(rank=0, world=1):
    """Loss and gradients of one rank's images of four."""
    student, target, objective = parts()
    rows = slice(4 * rank // world, 4 * (rank + 1) // world)
    view = view_of(4)
    view = View(view.image[rows], view.clean[rows])
    mask = IjepaMasking()(view, (4, 6), Draws(0, 0, 0, torch.arange(4)[rows], torch.zeros(4, dtype=torch.int64)[rows]))
    loss = objective(student([view], [mask]), target([view]), [mask])["loss"]
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in (*student.parameters(), *objective.parameters())])


def test_two_processes_are_as_one():
    loss, gradient = share()
    found = run(share)
    assert sum(r[0] for r in found) / 2 == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(sum(r[1] for r in found) / 2, gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"depth": 0}, "at least 1"), ({"heads": 3}, "multiple"), ({"width": 18, "heads": 2}, "multiple of 4")],
)
def test_a_predictor_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        parts(**options)


def test_a_method_that_does_not_fit_is_refused():
    student, target, objective = parts()
    view = view_of()
    mask = IjepaMasking()(view, (4, 6), tiny_draws(3))
    outputs, taught = student([view], [mask]), target([view])
    with pytest.raises(ValueError, match="target: ema"):
        Ijepa(student, None)
    with pytest.raises(ValueError, match="at least one view"):
        objective(outputs, [None], [mask])
    with pytest.raises(ValueError, match="masking: ijepa"):
        objective(outputs, taught, [None])
    told = Mask(mask.hidden, mask.predict, mask.seen, mask.asked, "token")
    with pytest.raises(ValueError, match="how: drop"):
        objective(student([view], [None]), taught, [told])
    with pytest.raises(ValueError, match="this target has none"):
        objective(outputs, [Tokens(taught[0].pooled, None, None, (4, 6))], [mask])
    with pytest.raises(ValueError, match="grid"):
        objective(outputs, [Tokens(None, taught[0].patches, None, (6, 4))], [mask])
