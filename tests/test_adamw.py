"""AdamW, its groups, schedules and clipping, against numbers worked out by hand and plain loops."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from ussl.parts import Encoder, Progress, Student
from ussl.testing import TinyEncoder
from ussl_plugins.encoders.vit import VisionTransformer
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


def test_a_rate_can_be_meant_for_a_batch_of_512():
    _, optimizer, update = started(2048, base_learning_rate=1e-4, reference_batch=512, warmup_learning_rate=5e-7)
    assert optimizer.peak == pytest.approx(4e-4)
    assert rate(optimizer, update, 0, 800) == pytest.approx(2e-6)  # SimMIM scales it like the base rate
    assert rate(optimizer, update, 40, 800) == pytest.approx((2e-6 + 4e-4) / 2)


def test_dinos_rate_reaches_its_peak_in_the_last_step_of_the_warm_up():
    options = {"schedule": "cosine_dino", "warmup": 0.3, "min_learning_rate": 1e-6}
    _, optimizer, update = started(512, base_learning_rate=5e-4, **options)
    fall = 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + np.cos(np.pi * np.arange(14) / 14))
    expected = [*np.linspace(0, 1e-3, 6), *fall]
    assert [rate(optimizer, update, step, 20) for step in range(20)] == pytest.approx(expected, rel=1e-12)


def test_simmims_rate_drops_at_milestones():
    _, optimizer, update = started(256, base_learning_rate=1.0, schedule="steps", warmup=0.0125, milestones=(0.875,))
    found = {epoch: rate(optimizer, update, epoch, 800) for epoch in (5, 10, 699, 700, 799)}
    assert found == pytest.approx({5: 0.5, 10: 1.0, 699: 1.0, 700: 0.1, 799: 0.1})


def test_only_the_decay_of_what_decays_follows_its_cosine():
    _, optimizer, update = started(weight_decay=0.04, weight_decay_end=0.4)
    for step in range(8):
        rate(optimizer, update, step, 8)
        expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 8))
        assert [g["weight_decay"] for g in update.param_groups] == [pytest.approx(expected, rel=1e-12), 0]


def test_a_decay_can_begin_at_zero():
    method, optimizer, update = started(weight_decay=0.0, weight_decay_end=0.4)
    rate(optimizer, update, 4, 8)
    decayed = {id(p) for g in update.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(method[0].weight), id(method.token)}


def test_moco_v3_decays_every_parameter():
    _, _, update = started(weight_decay=0.1, no_decay="none")
    assert [(g["weight_decay"], len(g["params"])) for g in update.param_groups] == [(0.1, 5)]


def test_the_class_token_can_be_kept_from_decaying():
    method = method_with(vit())
    update = AdamW(no_decay="tokens").start(method, 256)
    plain = {id(p) for g in update.param_groups if not g["weight_decay"] for p in g["params"]}
    names = {name for name, p in method.named_parameters() if id(p) in plain and p.ndim > 1}
    assert names == {"student.encoder.network.cls_token"}


def test_each_gradient_is_clipped_by_its_own_norm():
    method, optimizer, _ = started(clip=0.3, clip_per="parameter")
    method.double()
    parameters, generator = list(method.parameters()), torch.Generator().manual_seed(0)
    for p, size in zip(parameters[:-1], (3.0, 0.01, 0.2, 1.0), strict=True):
        p.grad = size * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    expected = []
    for p in parameters[:-1]:
        norm = math.sqrt(sum(g**2 for g in p.grad.flatten().tolist()))
        expected.append(p.grad * min(1, 0.3 / (norm + 1e-6)))
    optimizer.clip_gradients(parameters, torch.tensor(0.0))
    for p, wanted in zip(parameters, expected, strict=False):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-12, atol=0)
    assert parameters[-1].grad is None


def test_clipping_reads_nothing_back_from_the_device():
    # a tensor on the meta device has no values: to ask for one is an error
    method, optimizer, _ = started(clip=0.3, clip_per="parameter")
    method.to("meta")
    for p in method.parameters():
        p.grad = torch.empty_like(p)
    optimizer.clip_gradients(list(method.parameters()), torch.empty((), device="meta"))


def test_nothing_to_clip_is_no_error():
    method, optimizer, _ = started(clip=0.3, clip_per="parameter")
    optimizer.clip_gradients(list(method.parameters()), torch.tensor(0.0))


class Network(Encoder):
    """Any timm network as an encoder."""

    def __init__(self, network):
        super().__init__()
        self.network, self.width = network, 8

    def grid(self, height, width):
        raise NotImplementedError

    def forward(self, image, mask=None):
        raise NotImplementedError


def vit(**options):
    return VisionTransformer(width=8, depth=12, heads=2, patch=8, image_size=16, **options)


def shapeless():
    """An encoder whose network does not tell its layers apart."""
    network = nn.Linear(2, 8)
    network.group_matcher = lambda coarse: {}
    return Network(network)


def method_with(encoder):
    method = nn.Module()
    method.student = Student(encoder)
    method.objective = nn.Linear(8, 2)
    return method


def scales(method, update):
    """The share of the rate at which each parameter learns, by name."""
    shares = {id(p): g["lr_scale"] for g in update.param_groups for p in g["params"]}
    return {name: shares[id(p)] for name, p in method.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("pooling", ["token", "average"])
def test_the_layers_of_a_transformer_learn_as_in_maes_rule(pooling):
    method = method_with(vit(pooling=pooling))
    found = scales(method, AdamW(layer_decay=0.75).start(method, 256))
    for name, scale in found.items():
        layer = 13
        if "cls_token" in name or "patch_embed" in name:
            layer = 0
        elif ".blocks." in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        assert scale == pytest.approx(0.75 ** (13 - layer), rel=1e-12), name
    assert found["student.encoder.network.cls_token"] == pytest.approx(0.0238, abs=5e-5)
    assert found["student.encoder.network.norm.weight"] == found["objective.weight"] == 1
    assert len(set(found.values())) == 14


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_layers_of_other_networks_are_timms_whose_head_is_ours(name):
    import timm
    from timm.optim import param_groups_layer_decay

    options = {"global_pool": "avg"} if name.startswith("vit") else {}
    whole = timm.create_model(name, num_classes=2, **options)
    expected = {id(p): g["lr_scale"] for g in param_groups_layer_decay(whole, layer_decay=0.6) for p in g["params"]}
    bare = timm.create_model(name, num_classes=0, **options)
    method = method_with(Network(bare))
    found = scales(method, AdamW(layer_decay=0.6).start(method, 256))
    trained = dict(whole.named_parameters())
    for inner, p in bare.named_parameters():
        if p.requires_grad:
            wanted = expected[id(trained[inner])]
            assert found[f"student.encoder.network.{inner}"] == pytest.approx(wanted, rel=1e-12), inner
    assert min(found.values()) < 0.6**4


def test_layers_learn_at_their_share_of_every_rate_and_decay_alike():
    method = method_with(vit())
    optimizer = AdamW(layer_decay=0.75, weight_decay=0.04, weight_decay_end=0.4)
    update = optimizer.start(method, 256)
    for step in (0, 1, 5, 9):
        optimizer.before_step(update, Progress(step, 10, step, 10))
        for group in update.param_groups:
            assert group["lr"] == pytest.approx(
                optimizer.learning_rate(Progress(step, 10, step, 10)) * group["lr_scale"]
            )
            assert (group["weight_decay"] > 0) == (group["params"][0].ndim > 1)
    assert update.param_groups[0]["lr_scale"] == 1


def train(method, optimizer, update, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in method.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.before_step(update, Progress(step, 8, step, 8))
        update.step()
    return [p.detach().clone() for p in method.parameters()]


def test_a_resumed_training_ends_at_the_same_weights():
    options = {"weight_decay_end": 0.4, "schedule": "cosine_dino"}
    method, optimizer, update = started(**options)
    fresh = {name: x.clone() for name, x in method.state_dict().items()}
    whole = train(method, optimizer, update, range(8))
    method, optimizer, update = started(**options)
    method.load_state_dict(fresh)
    train(method, optimizer, update, range(3))
    file = io.BytesIO()
    torch.save({"method": method.state_dict(), "optimizer": update.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    method, optimizer, update = started(**options)
    method.load_state_dict(state["method"])
    update.load_state_dict(state["optimizer"])
    resumed = train(method, optimizer, update, range(3, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_a_checkpoint_without_layer_rates_is_continued():
    _, optimizer, update = started(256, base_learning_rate=0.5)
    state = update.state_dict()
    for group in state["param_groups"]:
        del group["lr_scale"], group["decays"]
    update.load_state_dict(state)
    assert rate(optimizer, update, 1, 10) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"warmup": 40.0}, "share of the training"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"base_learning_rate": -1.0}, "base_learning_rate"),
        ({"base_learning_rate": math.nan}, "base_learning_rate"),
        ({"betas": (1, 0.9)}, r"^betas are \[1, 0.9\]; write numbers from 0 to below 1"),
        ({"weight_decay": math.nan}, "^weight_decay is nan; write a number, 0 or more"),
        ({"weight_decay_end": -0.1}, "^weight_decay_end is -0.1; write a number, 0 or more"),
        ({"reference_batch": 0}, "reference_batch"),
        ({"no_decay": "some"}, "vectors, tokens or none"),
        ({"no_decay": "none", "weight_decay": 0.0}, "no effect without weight_decay"),
        ({"layer_decay": 1.0}, "between 0 and 1"),
        ({"schedule": "linear"}, "cosine, cosine_dino or steps"),
        ({"milestones": (0.5,)}, "no effect with schedule cosine"),
        ({"gamma": 0.5}, "no effect with schedule cosine"),
        ({"schedule": "steps"}, "milestones are"),
        ({"schedule": "steps", "milestones": (0.9, 0.8)}, "ascending"),
        ({"schedule": "steps", "milestones": (0.05,)}, "lies in the warm-up"),
        ({"schedule": "steps", "milestones": (700.0,)}, "shares"),
        ({"schedule": "steps", "milestones": (0.5,), "gamma": 1.0}, "gamma lies"),
        ({"schedule": "steps", "milestones": (0.5,), "min_learning_rate": 1e-6}, "no effect with schedule steps"),
        ({"warmup_learning_rate": 1.0}, "below base_learning_rate"),
        ({"warmup_learning_rate": 1e-7, "warmup": 0.0}, "no effect with warmup 0"),
        ({"clip_per": "parameter"}, "no effect without clip"),
        ({"clip_per": "layer", "clip": 1.0}, "all or parameter"),
    ],
)
def test_impossible_settings_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        AdamW(**options)


@pytest.mark.parametrize(
    ("options", "encoder", "word"),
    [
        ({"min_learning_rate": 1.0}, TinyEncoder, "above the peak rate"),
        ({"no_decay": "tokens"}, TinyEncoder, "no class token"),
        ({"layer_decay": 0.75}, TinyEncoder, "timm network inside"),
        ({"layer_decay": 0.75}, shapeless, "tells no layers"),
    ],
)
def test_settings_that_do_not_fit_the_method_are_refused(options, encoder, word):
    with pytest.raises(ValueError, match=word):
        AdamW(**options).start(method_with(encoder()), 256)
