"""The views of SimCLR, MoCo-v3 and DINO: as published, or of ultrasound, whatever their batch."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ussl.data.resample import ENOUGH, random_boxes
from ussl.data.sector import CELL, Sector
from ussl.parts import Batch, Draws
from ussl.plugins import misfit
from ussl.sonographic import rescan
from ussl.testing import tiny_batch, tiny_draws
from ussl_plugins.augmentations.dino import DINO
from ussl_plugins.augmentations.mocov3 import MoCoV3
from ussl_plugins.augmentations.simclr import SimCLR

SMALL = {
    SimCLR: {"size": 20},
    MoCoV3: {"size": 20},
    DINO: {"size": 20, "local_size": 12, "local_views": 2},
}
KINDS = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
PRESETS = pytest.mark.parametrize("preset", ["official", "us"])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])
BOTH = (3 / 4, 4 / 3)


def small(kind, preset="official", **options):
    return kind(preset=preset, **SMALL[kind] | options)


def fan(height=120, width=160, radius=110, seed=0):
    """(height, width) uint8 and bool: a sector of 70 degrees full of speckle with a black cyst, and where it is."""
    y, x = np.mgrid[:height, :width]
    angle, distance = np.arctan2(x - width / 2, y + 10), np.hypot(x - width / 2, y + 10)
    inside = (np.abs(angle) < np.radians(35)) & (distance > 20) & (distance < radius)
    cyst = np.hypot(x - width / 2, y - 55) < 15
    noise = np.random.default_rng(seed).rayleigh(50, (height, width)).clip(12, 255)
    return np.where(inside & ~cyst, noise, 3).astype(np.uint8), inside


def batch_of(pixels, count=1, index=None):
    """`count` times the same picture."""
    pixels = torch.as_tensor(pixels).expand(count, 1, *pixels.shape[-2:])
    index = torch.arange(count) if index is None else torch.tensor(index)
    box = torch.tensor([0, 0, *pixels.shape[-2:]]).repeat(count, 1)
    return Batch(pixels, box, torch.ones(count), index, torch.zeros_like(index))


def rows(batch, which):
    return Batch(**{f.name: getattr(batch, f.name)[which] for f in fields(Batch) if f.name != "labels"})


def draws_of(batch):
    return Draws(0, 0, 0, batch.index, batch.turn)


@KINDS
def test_options_can_be_read_by_recipes(kind):
    assert misfit("augmentation", kind) == ""


def test_the_published_pipelines():
    """Chances and strengths as printed in the papers' appendices and set in their code."""
    first, second = SimCLR().looks
    assert first == second
    assert (first.crop.size, first.crop.scale, first.crop.ratio, first.crop.horizontal_flip) == (
        224,
        (0.08, 1),
        BOTH,
        0.5,
    )
    assert first.change.strengths == pytest.approx((0.8, 0.8, 0.8, 0.2))
    chances = ("jitter", "greyscale", "blur", "solarize")
    assert [getattr(first.change, name) for name in chances] == [0.8, 0.2, 0.5, 0]
    assert first.change.taps == 23

    for kind, scale in ((MoCoV3, (0.08, 1)), (DINO, (0.4, 1))):
        first, second, *locals_ = kind().looks
        assert first.crop == second.crop
        assert (first.crop.size, first.crop.scale, first.crop.ratio, first.crop.horizontal_flip) == (
            224,
            scale,
            BOTH,
            0.5,
        )
        assert first.change.strengths == second.change.strengths == (0.4, 0.4, 0.2, 0.1)
        assert [getattr(first.change, name) for name in chances] == [0.8, 0.2, 1, 0]
        assert [getattr(second.change, name) for name in chances] == [0.8, 0.2, 0.1, 0.2]
        assert len(locals_) == (8 if kind is DINO else 0)
    local = locals_[0]
    assert (local.crop.size, local.crop.scale, local.role) == (96, (0.05, 0.4), "local")
    assert local.change == replace(first.change, blur=0.5)


@pytest.mark.parametrize(("size", "taps"), [(224, 23), (128, 13), (96, 9), (64, 7), (30, 3), (8, 3)])
def test_simclrs_blur_spans_a_tenth_of_the_view(size, taps):
    assert SimCLR(size=size).looks[0].change.taps == taps


def test_jitter_strength_scales_simclrs_jitter():
    assert SimCLR(jitter_strength=0.5).looks[0].change.strengths == pytest.approx((0.4, 0.4, 0.4, 0.1))
    batch = tiny_batch()
    plain, none = small(SimCLR)(batch, tiny_draws()), small(SimCLR, jitter_strength=0)(batch, tiny_draws())
    assert not torch.equal(plain[0].image, none[0].image)


@KINDS
def test_the_preset_us_neither_mirrors_nor_inverts_and_looks_at_the_scan(kind):
    augmentation = kind(preset="us")
    assert augmentation.in_sector
    assert not kind().in_sector
    for look in augmentation.looks:
        assert look.change is rescan
        assert look.crop.horizontal_flip == 0
    assert kind(preset="us", horizontal_flip=0.5).looks[0].crop.horizontal_flip == 0.5
    assert kind(preset="us", scale=(0.3, 0.6)).looks[0].crop.scale == (0.3, 0.6)


@KINDS
@PRESETS
@CHANNELS
def test_views_are_crops_in_0_and_1_that_targets_see_too(kind, preset, channels):
    batch = tiny_batch(channels=channels)
    views = small(kind, preset)(batch, tiny_draws())
    sizes = [20, 20] + ([12, 12] if kind is DINO else [])
    assert [view.image.shape for view in views] == [(4, channels, size, size) for size in sizes]
    assert [view.role for view in views] == ["global", "global", "local", "local"][: len(views)]
    for view in views:
        assert view.clean is view.image
        assert view.image.dtype == torch.float32
        assert view.image.min() >= 0
        assert view.image.max() <= 1
    assert not torch.equal(views[0].image, views[1].image)
    if kind is DINO:
        assert not torch.equal(views[2].image, views[3].image)


@KINDS
@PRESETS
@CHANNELS
def test_a_pictures_views_are_the_same_to_the_bit_whatever_its_batch(kind, preset, channels):
    batch = tiny_batch(6, channels=channels)
    batch.pixels = torch.nn.functional.pad(batch.pixels, (0, 5, 0, 3), value=255)  # never seen
    augmentation = small(kind, preset)
    together = augmentation(batch, draws_of(batch))
    torch.rand(1)
    alone = rows(batch, slice(4, 5))
    alone.pixels = alone.pixels[..., :-3, :-5]
    for one, all_ in zip(augmentation(alone, draws_of(alone)), together, strict=True):
        assert torch.equal(one.image, all_.image[4:5])
    for one, all_ in zip(augmentation(batch, draws_of(batch)), together, strict=True):
        assert torch.equal(one.image, all_.image)


@KINDS
@PRESETS
def test_mixed_precision_around_it_changes_nothing(kind, preset):
    batch, augmentation = tiny_batch(2), small(kind, preset)
    plain = augmentation(batch, tiny_draws(2))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = augmentation(batch, tiny_draws(2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain, mixed, strict=True))


@KINDS
@PRESETS
@CHANNELS
def test_views_never_wait_for_an_accelerator(kind, preset, channels):
    """Fake tensors have no values: whatever asks for one fails."""
    batch = tiny_batch(channels=channels)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = {f.name: getattr(batch, f.name) for f in fields(Batch) if f.name != "labels"}
        fake = Batch(**{name: torch.empty_like(x, device="cuda") for name, x in fake.items()})
        views = small(kind, preset)(fake, draws_of(fake))
    assert all(isinstance(view.image, FakeTensor) for view in views)
    assert views[0].image.shape == (4, channels, 20, 20)


@KINDS
def test_half_of_the_published_views_are_mirrored(kind):
    ramp = torch.arange(40, dtype=torch.uint8).mul(6).expand(30, 40)
    batch = batch_of(ramp, 200)
    for view in small(kind)(batch, draws_of(batch))[:1]:
        grey = view.image.mean((1, 2))
        mirrored = (grey[:, 0] > grey[:, -1]).sum()
        assert 70 <= mirrored <= 130
    for view in small(kind, "us")(batch, draws_of(batch)):
        grey = view.image.mean((1, 2))
        assert (grey[:, 0] < grey[:, -1]).all()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (SimCLR, {"preset": "photo"}, 'preset is \'photo\'; write "official" or "us"'),
        (SimCLR, {"preset": "us", "jitter_strength": 1.0}, "jitter_strength has no effect with preset us"),
        (SimCLR, {"jitter_strength": 3.0}, "jitter_strength is 3.0; write 0 to 2.5"),
        (SimCLR, {"size": 0}, "size is 0; write a number of pixels"),
        (MoCoV3, {"scale": (0.0, 1.0)}, r"scale is \[0.0, 1.0\]; write shares"),
        (MoCoV3, {"ratio": (2.0, 1.0)}, r"ratio is \[2.0, 1.0\]; write width / height"),
        (MoCoV3, {"horizontal_flip": 2.0}, "horizontal_flip is 2.0; write a probability"),
        (DINO, {"local_views": -1}, "local_views is -1; write how many"),
        (DINO, {"local_size": 0}, "local_size is 0; write a number of pixels"),
        (DINO, {"local_scale": (0.5, 0.4)}, r"local_scale is \[0.5, 0.4\]; write shares"),
        (
            DINO,
            {"local_views": 0, "local_size": 64},
            "local_size and local_scale have no effect with local_views: 0; write null for both",
        ),
        (DINO, {"local_views": 0, "local_scale": (0.1, 0.4)}, "local_size and local_scale have no effect"),
    ],
)
def test_a_wrong_option_is_refused(kind, options, said):
    with pytest.raises(ValueError, match=f"^{said}") as error:
        kind(**options)
    assert "\n" not in str(error.value)


def test_dino_without_local_views_has_two():
    assert len(DINO(local_views=0, local_size=None, local_scale=None).looks) == 2


def test_null_stands_for_dinos_published_local_views():
    *_, local = DINO(local_size=None, local_scale=None).looks
    assert (local.crop.size, local.crop.scale) == (96, (0.05, 0.4))


def test_a_sector_holds_the_scan_and_its_cyst_but_not_the_surround():
    pixels, inside = fan()
    sector = Sector(batch_of(pixels))
    numbers = np.random.default_rng(0)
    for _ in range(200):
        height, width = numbers.integers(2 * CELL, 60, 2)
        y, x = numbers.integers(0, 120 - height), numbers.integers(0, 160 - width)
        ours = sector.share(torch.tensor([[[y, x, height, width]]], dtype=torch.float32)).item()
        expected = inside[y : y + height, x : x + width].mean()
        assert ours == pytest.approx(expected, abs=2 * CELL * (height + width) / (height * width))
    assert sector.share(torch.tensor([[[45.0, 70.0, 20.0, 20.0]]])).item() == 1  # in the cyst


def test_a_few_letters_beside_the_scan_are_not_of_the_sector():
    pixels, _ = fan()
    plain = Sector(batch_of(pixels)).share(torch.tensor([[[0.0, 0.0, 120.0, 160.0]]])).item()
    pixels[5:20:3, 2] = pixels[100, 150:156] = pixels[110:114, 3] = 255
    assert Sector(batch_of(pixels)).share(torch.tensor([[[0.0, 0.0, 120.0, 160.0]]])).item() == plain


@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.2, 1.0)])
def test_at_least_half_of_a_crop_is_scan(scale):
    pixels, inside = fan()
    batch = batch_of(pixels, 500)
    shares = []
    for share in (None, Sector(batch).share):
        boxes = random_boxes(batch.box, draws_of(batch), scale, BOTH, share).tolist()
        shares.append(np.array([inside[y : y + h, x : x + w].mean() for y, x, h, w in boxes]))
    plain, aware = shares
    assert (plain < 0.5).mean() > 0.15
    assert aware.min() > 0.4  # to the precision of a cell
    assert (aware < 0.5).mean() < 0.05
    assert aware.mean() > plain.mean()
    assert (aware < 0.7).mean() > 0.1  # edges of the fan stay in reach


def test_a_picture_without_surround_is_cropped_anywhere_in_scale():
    batch = batch_of(np.full((60, 80), 90, np.uint8), 300)
    y, x, height, width = random_boxes(batch.box, draws_of(batch), (0.2, 1.0), BOTH, Sector(batch).share).unbind(1)
    area = height * width / (60 * 80)
    assert area.min() > 0.19
    assert area.max() > 0.9
    assert (y == 0).any()
    assert (x + width == 80).any()
    for black in (np.zeros((60, 80), np.uint8), np.zeros((3, 2), np.uint8)):
        batch = batch_of(black, 5)
        boxes = random_boxes(batch.box, draws_of(batch), (0.2, 1.0), BOTH, Sector(batch).share)
        assert (boxes[:, 2:] >= 1).all()


def test_the_first_attempt_with_enough_is_taken_else_the_best():
    box = torch.tensor([[0, 0, 50, 50]])
    draws = tiny_draws(1)
    seen = []

    def boxes_with(worth):
        def share(attempts):
            seen.append(attempts)
            return torch.tensor([worth])

        return random_boxes(box, draws, (0.1, 0.3), BOTH, share)[0].tolist()

    enough = boxes_with([0.1, 0.2, ENOUGH, 1.0, 0.9, 0, 0, 0, 0, 0])
    best = boxes_with([0.1, 0.2, 0.05, 0.3, 0.3, 0, 0, 0, 0, 0.2])
    attempts = seen[0][0].tolist()
    assert enough == attempts[2]
    assert best == attempts[3]
    assert len({tuple(a[:2]) for a in attempts}) == 10  # each in a place of its own


def test_where_no_attempt_fits_the_middle_is_taken_of_a_sector_too():
    batch = batch_of(np.full((4, 400), 200, np.uint8))
    box = random_boxes(batch.box, draws_of(batch), (0.9, 1.0), BOTH, Sector(batch).share)
    assert box.tolist() == [[0, 197, 4, 5]]
