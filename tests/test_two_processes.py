"""Every method under two processes trains as under one with the same global batch, to rounding."""

from __future__ import annotations

import pytest
import torch
from processes import run
from torch.nn.parallel import DistributedDataParallel

from ussl import recipe as recipes
from ussl.distributed import mean
from ussl.draws import Draws
from ussl.launch import _own_buffers
from ussl.layers import arguments
from ussl.parts import Batch, Progress
from ussl.plugins import Host
from ussl.training import build_method

IMAGES, STEPS = 8, 3
ENCODER = "--encoder.width 32 --encoder.depth 2 --encoder.heads 2 --encoder.drop_path 0"
DECODER = "--objective.width 32 --objective.heads 2"
METHODS = {  # the shipped recipes with smaller networks, without drop path
    "small/urfm": f"{ENCODER} {DECODER}",
    "small/mae": f"{ENCODER} {DECODER}",
    "small/deblur_mim": f"{ENCODER} {DECODER}",
    "small/usfm": ENCODER,
    "small/simclr": f"{ENCODER} --head.hidden 32 --head.out 8",
    "small/mocov3": f"{ENCODER} --head.hidden 32 --head.out 8 --objective.hidden 32",
    "small/dino": f"{ENCODER} --head.hidden 32 --head.prototypes 16 --head.bottleneck 8",
    "simclr": "--encoder.model resnet10t --head.hidden 32 --augmentation.size 32",
    "ijepa": f"{ENCODER} --encoder.patch 8 --encoder.image_size 64 --augmentation.size 64 "
    "--objective.width 32 --objective.depth 2 --objective.heads 2",
    "ibot": f"{ENCODER} --encoder.patch 8 --encoder.image_size 64 --augmentation.size 64 --augmentation.local_views 2 "
    "--augmentation.local_size 32 --head.hidden 32 --head.prototypes 16 --head.bottleneck 8",
}


def batch(images: slice) -> Batch:
    numbers = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 1, 64, 80), generator=numbers, dtype=torch.uint8)
    box = torch.tensor([[0, 0, 64, 80]]).repeat(IMAGES, 1)
    zeros = torch.zeros(IMAGES, dtype=torch.int64)
    whole = Batch(pixels, box, torch.ones(IMAGES), torch.arange(IMAGES), zeros)
    return Batch(*(getattr(whole, name)[images] for name in ("pixels", "box", "scale", "index", "turn")))


def train(rank: int, world: int, name: str, words: str) -> tuple[list[float], dict, dict]:
    """Losses of a few steps, the last gradients, and the parameters and buffers after them, in float64."""
    recipe = recipes.load([name], arguments(words.split()), Host())
    torch.manual_seed(0)
    method = build_method(recipe, fresh=True)[0].double()
    wrapped = DistributedDataParallel(method, **_own_buffers()) if world > 1 else method
    rule = recipe.optimizer()
    optimizer = rule.start(method, 256)
    trained = [p for p in method.parameters() if p.requires_grad]
    share = IMAGES // world
    losses = []
    for step in range(STEPS):
        at = Progress(step, STEPS, 100 * step / STEPS, 100.0)
        for part in method.parts():
            part.before_step(at)
        rule.before_step(optimizer, at)
        mine = batch(slice(rank * share, (rank + 1) * share))
        loss = wrapped(mine, Draws(0, 0, step, mine.index, mine.turn))["loss"]
        loss.backward()
        losses.append(float(mean(loss)))
        for part in method.parts():
            part.after_backward(at)
        gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        rule.clip_gradients(trained, torch.nn.utils.get_total_norm(list(gradients.values())))
        optimizer.step()
        for part in method.parts():
            part.after_step(at)
        optimizer.zero_grad()
    return losses, gradients, method.state_dict()


def assert_equal(one: dict, two: dict, within: float, floor: float) -> None:
    """Each tensor within a share of its own largest value, or of `floor` times the largest of all (mere rounding)."""
    assert one.keys() == two.keys()
    largest = max(float(x.abs().max()) for x in one.values() if x.is_floating_point())
    for name, expected in one.items():
        scale = max(float(expected.abs().max()), floor * largest)
        assert float((two[name].double() - expected.double()).abs().max()) <= within * scale, name


def train_all(rank: int, world: int) -> dict[str, tuple]:
    """What every method does; a failure is kept, for its own test to raise."""
    torch.set_num_threads(1)
    done = {}
    for name, words in METHODS.items():
        try:
            done[name] = train(rank, world, name, words)
        except (RuntimeError, ValueError) as error:
            done[name] = error
    return done


@pytest.fixture(scope="module")
def results():
    """Of one process, and of both of two."""
    return [train_all(0, 1), *run(train_all, 2)]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(name, results):
    for one in results:
        if isinstance(one[name], Exception):
            raise one[name]
    alone, first, second = (one[name] for one in results)
    assert first[0] == pytest.approx(alone[0], rel=1e-9)
    assert_equal(alone[1], first[1], 1e-9, floor=1e-4)
    assert_equal(alone[2], first[2], 1e-6, floor=1)  # AdamW makes steps of gradients that are mere rounding
    assert_equal(first[2], second[2], 1e-12, floor=1)
