"""The public checks: sound parts pass, and each broken part is told what is wrong with it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ussl.parts import Head, Mask, Masking, Objective, Tokens
from ussl.testing import (
    TinyEncoder,
    TinyTarget,
    check_encoder,
    check_head,
    check_masking,
    check_objective,
    check_target,
    save_biomedclip,
    tiny_batch,
    tiny_draws,
    tiny_mask,
    tiny_student,
    tiny_view,
)


class Halves(Masking):
    """Hides a random half."""

    def __init__(self, *, masks: int = 1):
        super().__init__()
        self.masks = masks
        self.register_buffer("calls", torch.zeros(()))

    def noise(self, view, patches, draws):
        return draws.uniform("mask", self.masks, patches)

    def forward(self, view, grid, draws):
        patches = grid[0] * grid[1]
        rank = self.noise(view, patches, draws).argsort(-1).argsort(-1)
        hidden = rank >= patches // 2
        return Mask(hidden, hidden[:, :, None], patches // 2, patches - patches // 2)


class TokenEncoder(TinyEncoder):
    """The tiny encoder with a mask token too."""

    accepts = frozenset({"drop", "fill", "token"})

    def __init__(self, *, width: int = 16):
        super().__init__(width=width)
        self.mask_token = nn.Parameter(torch.randn(3 * 16))

    def _patches(self, views):
        return self.hidden(super()._patches(views))

    def hidden(self, patches):
        if self.mask is None or self.mask.how != "token":
            return patches
        return torch.where(self.mask.hidden[..., None], self.mask_token, patches)

    def forward(self, image, mask=None):
        self.mask = mask
        return super().forward(image, mask)


class Scale(Head):
    """A linear map of all tokens."""

    def __init__(self, encoder, *, width: int = 5):
        super().__init__()
        self.width = width
        self.map = nn.Linear(encoder.width, width)

    def forward(self, tokens):
        return Tokens(self.map(tokens.pooled), self.map(tokens.patches), tokens.where, tokens.grid)


class Agree(Objective):
    """The image feature predicts the target's."""

    additive = True

    def __init__(self, student, target, *, power: float = 2.0):
        super().__init__()
        self.map = nn.Linear(student.width, target.width)
        self.power = power
        self.register_buffer("calls", torch.zeros(()))

    def losses(self, output, target):
        return (self.map(output.pooled) - target.pooled).abs().pow(self.power).mean((1, 2))

    def forward(self, outputs, targets, masks):
        pairs = zip(outputs, targets, strict=True)
        return {"loss": torch.stack([self.losses(o, t).mean() for o, t in pairs]).mean()}


def test_sound_parts_pass():
    check_masking(Halves, masks=2)
    check_masking(Halves(masks=1))
    check_encoder(TinyEncoder)
    check_encoder(TinyEncoder(width=24), (8, 24))
    check_encoder(TokenEncoder)
    check_head(Scale, width=7)
    check_head(lambda encoder: Scale(encoder, width=3))
    check_target(TinyTarget, width=3)
    check_target(lambda student: TinyTarget(student))
    check_objective(Agree, power=1.5)
    check_objective(Agree, views=2, masked=False)
    check_objective(lambda student, target: Agree(student, target))


def broken(base, **members):
    """A subclass of a sound part with something replaced."""
    return type(f"Broken{base.__name__}", (base,), {"__doc__": "A broken part.", **members})


def positional(self, masks: int = 1):
    Halves.__init__(self, masks=masks)


def unequal(self, view, grid, draws):
    mask = Halves.forward(self, view, grid, draws)
    mask.hidden[0, 0, mask.hidden[0, 0].nonzero()[0]] = False
    return mask


def changes(name, value):
    def forward(self, view, grid, draws):
        mask = Halves.forward(self, view, grid, draws)
        setattr(mask, name, value(mask))
        return mask

    return forward


def in_place(self, view, grid, draws):
    view.image.mul_(0.5)
    return Halves.forward(self, view, grid, draws)


def counts_calls(self, view, grid, draws):
    self.calls += 1
    return Halves.forward(self, view, grid, draws)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"__init__": positional}, "must be keyword-only"),
        ({"forward": unequal}, "not every row has seen"),
        ({"forward": lambda self, view, grid, draws: None}, "return a Mask"),
        ({"forward": changes("predict", lambda m: m.predict[:, :, 0])}, r"must be \(B, K, P, N\)"),
        ({"forward": changes("hidden", lambda m: m.hidden[:, 0])}, r"must be \(B, K, N\)"),
        ({"forward": changes("hidden", lambda m: m.hidden.byte())}, "torch.bool"),
        ({"forward": changes("asked", lambda m: m.asked + 1)}, "asked"),
        ({"forward": changes("seen", lambda m: torch.tensor(m.seen))}, "Python ints"),
        ({"forward": changes("how", lambda m: "cut")}, "drop, token or fill"),
        ({"forward": changes("how", lambda m: "fill")}, "mask.image is None"),
        ({"forward": in_place}, "in place"),
        ({"forward": counts_calls}, "forward changed"),
        ({"noise": lambda self, view, n, draws: torch.rand(len(view.image), 1, n)}, "use draws only"),
        (
            {"noise": lambda self, view, n, draws: (draws.uniform("m", 1, n) + draws.uniform("m", 1, n).mean(0)) % 1},
            "other images of its batch",
        ),
    ],
)
def test_a_broken_masking_fails(members, words):
    with pytest.raises(AssertionError, match=words):
        check_masking(broken(Halves, **members))


def test_masks_that_are_all_the_same_fail():
    def noise(self, view, patches, draws):
        return draws.uniform("mask", 1, patches).expand(-1, self.masks, -1)

    with pytest.raises(AssertionError, match="all the same"):
        check_masking(broken(Halves, noise=noise), masks=2)


def looks_at_hidden(self, image, mask=None):
    tokens = TinyEncoder.forward(self, image, mask)
    tokens.patches = tokens.patches + image.mean((1, 2, 3))[:, None, None, None]
    return tokens


def first_masks_twice(self, image, mask=None):
    tokens = TinyEncoder.forward(self, image, mask)
    tokens.pooled = tokens.pooled[:, :1].expand_as(tokens.pooled)
    return tokens


def ignores_pixels(self, image, mask=None):
    return TinyEncoder.forward(self, torch.zeros_like(image), mask)


def colour_only(self, image, mask=None):
    return TinyEncoder.forward(self, image if image.shape[1] == 3 else 2 * image, mask)


def learns_in_forward(self, image, mask=None):
    with torch.no_grad():
        self.embed.bias.add_(1e-3)
    return TinyEncoder.forward(self, image, mask)


def shuffled(self, image, mask=None):
    tokens = TinyEncoder.forward(self, image, mask)
    if tokens.where is not None:
        tokens.where = tokens.where.roll(1, dims=-1) * 0 + torch.arange(tokens.where.shape[-1])
    return tokens


def with_unused(self):
    TinyEncoder.__init__(self)
    self.unused = nn.Parameter(torch.zeros(3))


def with_hidden_state(self):
    TinyEncoder.__init__(self)
    self.extra = [nn.Linear(16, 16)]


def uses_hidden_state(self, image, mask=None):
    tokens = TinyEncoder.forward(self, image, mask)
    tokens.pooled = self.extra[0](tokens.pooled)
    return tokens


def deepcopy_anew(self, memo):
    twin = TinyEncoder()
    twin.__class__ = self.__class__
    twin.load_state_dict(self.state_dict())
    twin.extra = [nn.Linear(16, 16)]
    return twin


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"forward": looks_at_hidden}, "a hidden pixel changes the tokens"),
        ({"forward": first_masks_twice}, "than K passes"),
        ({"forward": ignores_pixels}, "seen pixels do not change"),
        ({"forward": colour_only}, "the same as RGB"),
        ({"forward": learns_in_forward}, "forward changed"),
        ({"forward": shuffled}, "positions of the seen patches"),
        ({"__init__": with_unused}, "no gradient reaches"),
        ({"accepts": frozenset({"drop", "cut"})}, "accepts names"),
        (
            {"__init__": with_hidden_state, "forward": uses_hidden_state, "__deepcopy__": deepcopy_anew},
            "something is not saved",
        ),
    ],
)
def test_a_broken_encoder_fails(members, words):
    with pytest.raises(AssertionError, match=words):
        check_encoder(broken(TinyEncoder, **members))


def test_an_encoder_that_reads_the_view_although_the_mask_has_pixels_fails():
    def forward(self, image, mask=None):
        mask = copy.copy(mask)
        if mask is not None:
            mask.image = None
        return TinyEncoder.forward(self, image, mask)

    with pytest.raises(AssertionError, match="although the mask has an image"):
        check_encoder(broken(TinyEncoder, forward=forward, accepts=frozenset({"fill"})))


def test_a_mask_token_encoder_that_adds_the_hidden_pixels_fails():
    def hidden(self, patches):
        return TokenEncoder.hidden(self, patches) + 0.1 * patches

    with pytest.raises(AssertionError, match="a hidden pixel changes the tokens"):
        check_encoder(broken(TokenEncoder, hidden=hidden))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"__init__": lambda self, width: None}, r"__init__\(self, encoder"),
        ({"forward": lambda self, tokens: tokens}, "it must be"),
        (
            {"forward": lambda self, t: Tokens(self.map(t.pooled.detach()), None, None, t.grid)},
            "comes through the head",
        ),
        ({"forward": lambda self, t: Tokens(self.map(t.pooled), None, None, (1, 1))}, "grid"),
    ],
)
def test_a_broken_head_fails(members, words):
    with pytest.raises(AssertionError, match=words):
        check_head(broken(Scale, **members))


def with_gradient(self, views):
    return [self._tokens(self.features(view.clean.requires_grad_())) for view in views]


def of_the_image(self, views):
    return [self._tokens(self.features(view.image)) for view in views]


def of_nothing(self, views):
    return [self._tokens(self.features(torch.zeros_like(view.clean))) for view in views]


def one_for_all(self, views):
    return TinyTarget.forward(self, views[:1])


def none(self, views):
    return [None for _ in views]


def trained(self, student, *, width: int = 6):
    TinyTarget.__init__(self, student, width=width)
    self.features.requires_grad_(True)


def coarse(self, views):
    tokens = TinyTarget.forward(self, views)
    return [Tokens(t.pooled, t.patches[:, :, :6], None, (2, 3)) for t in tokens]


def drifting(self, views):
    self.features.embed.bias.add_(1)
    return TinyTarget.forward(self, views)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"forward": with_gradient}, "has a gradient"),
        ({"forward": of_the_image}, "depends on view.image"),
        ({"forward": of_nothing}, "does not depend on view.clean"),
        ({"forward": one_for_all}, "two views gave 1"),
        ({"forward": none}, "has no target"),
        ({"forward": coarse}, "it must be"),
        ({"forward": torch.no_grad()(drifting)}, "forward changed"),
        ({"__init__": trained}, "the optimiser would train"),
        ({"lineage": lambda self: [{"name": "x"}]}, "lacks"),
        ({"__init__": lambda self, *, width=6: None}, r"__init__\(self, student"),
    ],
)
def test_a_broken_target_fails(members, words):
    with pytest.raises(AssertionError, match=words):
        check_target(broken(TinyTarget, **members))


def contrastive(self, outputs, targets, masks):
    z = F.normalize(self.map(outputs[0].pooled[:, 0]), dim=-1)
    return {"loss": F.cross_entropy(z @ z.T, torch.arange(len(z)))}


def scaled(function):
    def forward(self, outputs, targets, masks):
        results = Agree.forward(self, outputs, targets, masks)
        return function(self, results)

    return forward


def count(self, results):
    self.calls += 1
    return results


def unused(self, student, target, *, power: float = 2.0):
    Agree.__init__(self, student, target, power=power)
    self.unused = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"forward": contrastive}, "additive is True"),
        ({"forward": scaled(lambda self, r: {"loss": r["loss"][None]})}, "0-dim"),
        ({"forward": scaled(lambda self, r: {"loss": r["loss"].bfloat16()})}, "torch.float32"),
        ({"forward": scaled(lambda self, r: {"loss": r["loss"] / 0})}, "loss is"),
        ({"forward": scaled(lambda self, r: {"total": r["loss"]})}, 'without "loss"'),
        ({"forward": scaled(lambda self, r: {**r, "extra": 1.0})}, "extra is not"),
        ({"forward": scaled(count)}, "forward changed"),
        ({"losses": lambda self, o, t: self.map(t.pooled.repeat(1, 1, 3)[..., :16]).mean((1, 2))}, "to the student"),
        ({"__init__": unused}, "no gradient reaches"),
        ({"__init__": lambda self, student, *, power=2.0: None}, r"__init__\(self, student, target"),
    ],
)
def test_a_broken_objective_fails(members, words):
    with pytest.raises(AssertionError, match=words):
        check_objective(broken(Agree, **members))


def test_an_objective_that_does_not_claim_to_be_additive_may_contrast():
    check_objective(broken(Agree, forward=contrastive, additive=False))


def test_tiny_data_has_the_contracts_shapes():
    batch = tiny_batch(3, channels=3)
    assert batch.pixels.shape == (3, 3, 20, 24)
    assert batch.pixels.dtype == torch.uint8
    assert not batch.pixels[:, :, 18:].any()
    assert not batch.pixels[..., 21:].any()
    assert batch.box.tolist() == [[0, 0, 18, 21]] * 3
    view = tiny_view(2, 8, 12)
    assert view.image.shape == view.clean.shape == (2, 1, 8, 12)
    assert not torch.equal(view.image, view.clean)
    mask = tiny_mask(view, (2, 3), 2, "fill")
    assert mask.image.shape == (2, 2, 1, 8, 12)
    changed = mask.image != view.image[:, None]
    assert torch.equal(changed[:, :, 0, ::4, ::4].flatten(2), mask.hidden)
    assert tiny_draws(3).uniform("x", 2).shape == (3, 2)
    assert tiny_student(8).encoder.patch == 8


def test_a_saved_clip_model_is_the_same_for_the_same_seed(tmp_path):
    def saved(name, seed):
        folder = save_biomedclip(tmp_path / name, seed=seed, model="vit_tiny_patch16_224", width=8)
        assert (folder / "open_clip_config.json").is_file()
        return torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)

    first, again, other = saved("a", 0), saved("b", 0), saved("c", 1)
    assert first["visual.head.proj.weight"].shape == (8, 192)
    assert "logit_scale" in first
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["visual.trunk.norm.weight"], other["visual.trunk.norm.weight"])
