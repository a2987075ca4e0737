"""Masked prediction against a plain masked autoencoder that keeps every token, and the checks of the method itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ussl.parts import Mask, Student, Tokens, View
from ussl.positions import sincos
from ussl.testing import TinyEncoder, TinyTarget, check_objective, tiny_draws, tiny_mask, tiny_student, tiny_view
from ussl_plugins.maskings.random import RandomMasking
from ussl_plugins.objectives.masked_prediction import MaskedPrediction
from ussl_plugins.targets.pixels import PixelTarget

SMALL = {"width": 16, "depth": 3, "heads": 2}


class ClsEncoder(TinyEncoder):
    """The tiny encoder with a class token for its feature."""

    def __init__(self, **options):
        super().__init__(**options)
        self.cls = nn.Parameter(torch.randn(self.width))

    def forward(self, image, mask=None):
        tokens = super().forward(image, mask)
        tokens.pooled = tokens.pooled * self.cls
        return tokens


def parts(dtype=torch.float32, norm=True, encoder=ClsEncoder, **options):
    torch.manual_seed(0)
    student = Student(encoder())
    target = PixelTarget(student, norm=norm)
    objective = MaskedPrediction(student, target, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.to(dtype), target.to(dtype), objective.to(dtype)


def view_of(dtype=torch.float32, count=3, size=(16, 24)):
    view = tiny_view(count, *size)
    return View(view.image.to(dtype), view.clean.to(dtype))


def mae(objective, tokens, hidden, target, told=None):
    """The released model's decoder and loss for one mask (B, N), from tokens that the encoder kept.

    All N tokens are embedded, unshuffled and decoded with the class token; `told` (B, N) restricts attention to the
    seen tokens and these mask tokens. (B,) loss of each image.
    """
    losses = []
    for b in range(len(hidden)):
        count = hidden.shape[1]
        x = objective.decoder_embed(tokens.patches[b])
        cls = objective.decoder_embed(tokens.pooled[b])
        kept = dict(zip(tokens.where[b].tolist(), x, strict=True))
        full = torch.stack([kept.get(n, objective.mask_token[0, 0]) for n in range(count)])
        position = sincos(x.shape[-1], *tokens.grid, cls=True).to(x)
        full = torch.cat([cls[None], full]) + position
        keep = torch.ones(1 + count, dtype=torch.bool)
        if told is not None:
            keep[1:] = ~hidden[b] | told[b]
        for block in objective.decoder_blocks:
            full = plain_block(block, full, keep)
        predicted = objective.decoder_pred(objective.decoder_norm(full))[1:]
        loss = ((predicted - target[b]) ** 2).mean(-1)
        mask = (hidden[b] if told is None else told[b]).to(loss)
        losses.append((loss * mask).sum() / mask.sum())
    return torch.stack(losses)


def plain_block(block, x, keep):
    """A pre-norm transformer block, head by head; no token attends to one that is not kept."""
    heads, width = block.attn.num_heads, x.shape[-1]
    size = width // heads
    q, k, v = F.linear(block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias).split(width, -1)
    mixed = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        score = (q[:, part] @ k[:, part].T / size**0.5).masked_fill(~keep, float("-inf"))
        mixed.append(score.softmax(-1) @ v[:, part])
    x = x + F.linear(torch.cat(mixed, -1), block.attn.proj.weight, block.attn.proj.bias)
    hidden = F.gelu(F.linear(block.norm2(x), block.mlp.fc1.weight, block.mlp.fc1.bias))
    return x + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


def reference(objective, student, target, view, mask):
    """MAE's loss, mask by mask."""
    tokens, wanted = student([view], [mask])[0], target([view])[0].patches[:, 0]
    losses = []
    for k in range(mask.hidden.shape[1]):
        one = Tokens(tokens.pooled[:, k], tokens.patches[:, k], tokens.where[:, k], tokens.grid)
        partial = mask.asked < mask.hidden.shape[-1] - mask.seen
        told = mask.predict[:, k, 0] if partial else None
        losses.append(mae(objective, one, mask.hidden[:, k], wanted, told))
    return torch.stack(losses).mean()


def ours(objective, student, target, view, mask):
    return objective(student([view], [mask]), target([view]), [mask])["loss"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("options", [{}, {"masks": 3}, {"masks": 2, "decode": 0.4}])
def test_loss_and_gradients_are_those_of_a_plain_masked_autoencoder(dtype, tolerance, norm, options):
    student, target, objective = parts(dtype, norm)
    view = view_of(dtype)
    mask = RandomMasking(**options)(view, (4, 6), tiny_draws(3))
    gradients = []
    for loss in (
        ours(objective, student, target, view, mask),
        reference(objective, student, target, view, mask),
    ):
        both = nn.ModuleList([student, objective])
        both.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in both.parameters()])
        gradients[-1].append(loss.detach())
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


def test_all_patches_are_predicted_when_the_masking_or_the_objective_says_so():
    student, target, objective = parts(torch.float64)
    _, _, everything = parts(torch.float64, on="all")
    view = view_of(torch.float64)
    hidden = RandomMasking()(view, (4, 6), tiny_draws(3))
    both = RandomMasking(predict="all")(view, (4, 6), tiny_draws(3))
    tokens, wanted = student([view], [hidden])[0], target([view])[0].patches[:, 0]
    one = Tokens(tokens.pooled[:, 0], tokens.patches[:, 0], tokens.where[:, 0], tokens.grid)
    expected = mae(objective, one, hidden.hidden[:, 0], wanted, torch.ones(3, 24, dtype=torch.bool)).mean()
    for loss in (ours(objective, student, target, view, both), ours(everything, student, target, view, hidden)):
        assert abs(loss - expected) < 1e-9


@pytest.mark.parametrize("on", ["masked", "all"])
def test_an_encoder_that_keeps_all_tokens_needs_no_mask_tokens(on):
    student, target, objective = parts(torch.float64, on=on)
    view = view_of(torch.float64)
    mask = tiny_mask(view, (4, 6), 2, "fill")
    tokens = student([view], [mask])[0]
    assert tokens.where is None
    loss = objective([tokens], target([view]), [mask])["loss"]
    x = objective.decoder_embed(tokens.patches) + sincos(16, 4, 6, cls=False).to(tokens.patches)
    x = torch.cat([objective.decoder_embed(tokens.pooled)[:, :, None], x], 2).flatten(0, 1)
    for block in objective.decoder_blocks:
        x = block(x)
    predicted = objective.decoder_pred(objective.decoder_norm(x))[:, 1:].unflatten(0, (3, 2))
    each = ((predicted - target([view])[0].patches) ** 2).mean(-1)
    asked = mask.hidden if on == "masked" else torch.ones_like(mask.hidden)
    assert abs(loss - (each * asked).sum() / asked.sum()) < 1e-9
    loss.backward()
    assert objective.mask_token.grad is not None  # zero, and there on every rank


def losses_of(loss, beta=None):
    predicted, wanted = torch.tensor([0.5, 2.0]), torch.tensor([0.0, -1.0])
    student = tiny_student()
    objective = MaskedPrediction(student, PixelTarget(student), **SMALL, loss=loss, beta=beta)
    return objective._distance(predicted, wanted).item()


def test_each_loss_is_its_formula():
    assert losses_of("mse") == pytest.approx((0.5**2 + 3**2) / 2)
    assert losses_of("smooth_l1") == pytest.approx((0.5 * 0.5**2 + 3 - 0.5) / 2)
    assert losses_of("smooth_l1", 0.25) == pytest.approx((0.5 - 0.125 + 3 - 0.125) / 2)
    assert losses_of("cosine") == pytest.approx(1 + 2.0 / (0.5**2 + 2.0**2) ** 0.5)


def test_views_with_a_target_are_averaged_and_others_left_out():
    student, target, objective = parts()
    views = [view_of(), view_of(count=3, size=(16, 16))]
    masks = [RandomMasking()(v, g, tiny_draws(3)) for v, g in zip(views, ((4, 6), (4, 4)), strict=True)]
    outputs, targets = student(views, masks), target(views)
    single = [objective([o], [t], [m])["loss"] for o, t, m in zip(outputs, targets, masks, strict=True)]
    assert objective(outputs, targets, masks)["loss"].item() == pytest.approx(sum(single).item() / 2)
    partly = objective(outputs, [targets[0], None], [masks[0], None])["loss"]
    assert partly.item() == pytest.approx(single[0].item())


def test_the_loss_ignores_the_target_of_patches_that_are_not_asked_for():
    student, target, objective = parts()
    view = view_of()
    mask = RandomMasking(decode=0.5)(view, (4, 6), tiny_draws(3))
    outputs, (tokens,) = student([view], [mask]), target([view])
    loss = objective(outputs, [tokens], [mask])["loss"]
    other = tokens.patches.masked_fill(~mask.predict[:, :, 0, :, None], 7.0)
    assert objective(outputs, [Tokens(None, other, None, (4, 6))], [mask])["loss"] == loss
    changed = tokens.patches.masked_fill(mask.predict[:, :, 0, :, None], 7.0)
    assert objective(outputs, [Tokens(None, changed, None, (4, 6))], [mask])["loss"] != loss


@pytest.mark.parametrize(("loss", "best"), [("mse", 0.0), ("smooth_l1", 0.0), ("cosine", 0.0)])
def test_a_decoder_that_outputs_the_target_has_no_loss(loss, best):
    student, _, objective = parts(loss=loss)
    view = view_of()
    mask = RandomMasking()(view, (4, 6), tiny_draws(3))
    outputs = student([view], [mask])
    predicted, where = objective.decode(outputs[0], mask)
    answer = torch.zeros(3, 1, 24, predicted.shape[-1])
    answer.scatter_(2, where[..., None].expand_as(predicted), predicted.detach())
    found = objective(outputs, [Tokens(None, answer, None, (4, 6))], [mask])["loss"]
    assert found.item() == pytest.approx(best, abs=1e-6)


def test_a_teacher_is_unchanged_by_training():
    student = tiny_student()
    target = TinyTarget(student)
    objective = MaskedPrediction(student, target, **SMALL)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    trained = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW([p for p in trained if p.requires_grad], 0.01)
    view = tiny_view()
    first = last = None
    for _ in range(30):
        mask = tiny_mask(view, (4, 4))
        last = objective(student([view], [mask]), target([view]), [mask])["loss"]
        first = last.item() if first is None else first
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
    assert last.item() < 0.8 * first
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_recomputing_activations_changes_no_gradient():
    student, target, objective = parts()
    view = view_of()
    mask = RandomMasking()(view, (4, 6), tiny_draws(3))
    gradients = []
    for again in (False, True):
        objective.recompute = again
        objective.zero_grad()
        ours(objective, student, target, view, mask).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_loss_is_fp32_under_mixed_precision():
    student, target, objective = parts()
    view = view_of()
    mask = RandomMasking()(view, (4, 6), tiny_draws(3))
    exact = ours(objective, student, target, view, mask)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(objective, student, target, view, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


def test_deviations_reveal_a_dead_target():
    student, _, objective = parts()
    view = view_of()
    mask = RandomMasking()(view, (4, 6), tiny_draws(3))
    outputs = student([view], [mask])
    constant = torch.randn(48).expand(3, 1, 24, 48)
    results = objective(outputs, [Tokens(None, constant, None, (4, 6))], [mask])
    assert results["target_std"].item() == pytest.approx(0, abs=1e-6)
    live = torch.randn(3, 1, 24, 48)
    results = objective(outputs, [Tokens(None, live, None, (4, 6))], [mask])
    chosen = live[:, 0][mask.hidden[:, 0]].numpy()
    assert results["target_std"].item() == pytest.approx(chosen.std(0).mean(), rel=1e-4)
    assert results["prediction_std"] > 0
    assert not results["target_std"].requires_grad


def test_weights_have_maes_names_shapes_and_initial_values():
    student = tiny_student()
    objective = MaskedPrediction(student, PixelTarget(student), **SMALL)
    names = set(objective.state_dict())
    block = {f"norm{i}.{x}" for i in (1, 2) for x in ("weight", "bias")}
    block |= {f"{m}.{x}" for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for x in ("weight", "bias")}
    expected = {f"decoder_blocks.{i}.{name}" for i in range(3) for name in block} | {"mask_token"}
    expected |= {f"{m}.{x}" for m in ("decoder_embed", "decoder_norm", "decoder_pred") for x in ("weight", "bias")}
    assert names == expected
    assert objective.mask_token.shape == (1, 1, 16)
    assert objective.decoder_norm.eps == objective.decoder_blocks[0].norm1.eps == 1e-6
    bound = (6 / (16 + 48)) ** 0.5
    assert objective.decoder_pred.weight.abs().max() <= bound
    assert objective.decoder_pred.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not objective.decoder_blocks[0].attn.qkv.bias.any()


@pytest.mark.parametrize("options", [{}, {"on": "all"}, {"loss": "smooth_l1", "beta": 0.5}, {"loss": "cosine"}])
def test_masked_prediction_keeps_the_contract(options):
    check_objective(MaskedPrediction, **SMALL, **options)
    check_objective(MaskedPrediction, target=PixelTarget, views=2, **SMALL, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "mse", "beta": 1.0}, "beta has no effect"),
        ({"loss": "smooth_l1", "beta": 0.0}, "above 0"),
        ({"loss": "l1"}, "mse, smooth_l1 or cosine"),
        ({"on": "seen"}, "masked or all"),
        ({"heads": 3}, "does not divide into 3 heads"),
        ({"depth": 0}, "at least 1"),
        ({"width": 18, "heads": 2}, "divisible by 4"),
    ],
)
def test_options_without_effect_or_meaning_are_refused(options, words):
    student = tiny_student()
    with pytest.raises(ValueError, match=words) as error:
        MaskedPrediction(student, PixelTarget(student), **{**SMALL, **options})
    assert "\n" not in str(error.value)


def test_a_method_that_does_not_fit_is_refused():
    student, target, objective = parts()
    _, _, everything = parts(on="all")
    view = view_of()
    mask = RandomMasking()(view, (4, 6), tiny_draws(3))
    outputs, targets = student([view], [mask]), target([view])
    with pytest.raises(ValueError, match="needs a target"):
        MaskedPrediction(student, None)
    with pytest.raises(ValueError, match="target for at least one view"):
        objective(outputs, [None], [mask])
    with pytest.raises(ValueError, match=r"local views have none; write masking: random, and .* global views only"):
        objective(outputs, targets, [None])
    blocks = Mask(mask.hidden, mask.predict.expand(-1, -1, 2, -1), mask.seen, mask.asked)
    with pytest.raises(ValueError, match="this masking asks 2"):
        objective(outputs, targets, [blocks])
    with pytest.raises(ValueError, match="grid"):
        objective(outputs, [Tokens(None, targets[0].patches, None, (6, 4))], [mask])
    with pytest.raises(ValueError, match="this target has none"):
        objective(outputs, [Tokens(targets[0].patches[:, :, 0], None, None, (4, 6))], [mask])
    partial = RandomMasking(decode=0.5)(view, (4, 6), tiny_draws(3))
    with pytest.raises(ValueError, match="decodes a part"):
        everything(outputs, targets, [partial])
    both = RandomMasking(predict="all")(view, (4, 6), tiny_draws(3))
    with pytest.raises(ValueError, match="on: all has no effect: the masking asks for every patch already; remove it"):
        everything(outputs, targets, [both])
