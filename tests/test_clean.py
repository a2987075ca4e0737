"""Batches cleaned on the device: as one picture is, in any batch, and as the encoder is given them ever after."""

from __future__ import annotations

import layouts
import numpy as np
import pytest
import torch
from layouts import FORMS, compressed, fan, marked, overlap, rectangle, shown, speckle
from torch.utils._python_dispatch import TorchDispatchMode

from ussl import recipe as recipes
from ussl.data.clean import Cleaned, Cleaning
from ussl.data.finding import scan_cells
from ussl.data.grid import Grid
from ussl.data.preprocess import check, parting, prepared
from ussl.data.resample import resample
from ussl.data.scan import cleaned, scan_box, scan_mask
from ussl.export import write_encoder
from ussl.loaded import load
from ussl.parts import Augmentation, Batch, View
from ussl.plugins import Host
from ussl.testing import tiny_draws
from ussl.training import build_method
from ussl_plugins.augmentations.crop import Crop
from ussl_plugins.encoders.vit import VisionTransformer

CELL = 3  # pixels of a picture of 384


def batch_of(*some, at=(0, 0)):
    """Pictures on the smallest canvas that holds each, `at` pixels from its corner."""
    height, width = (max(p.shape[axis] for p in some) + at[axis] for axis in (0, 1))
    channels = 3 if any(p.ndim == 3 for p in some) else 1
    pixels = torch.zeros(len(some), channels, height, width, dtype=torch.uint8)
    for canvas, picture in zip(pixels, some, strict=True):
        x = torch.from_numpy(picture.reshape(*picture.shape[:2], -1).copy()).permute(2, 0, 1)
        canvas[:, at[0] : at[0] + x.shape[1], at[1] : at[1] + x.shape[2]] = x
    box = torch.tensor([[*at, *p.shape[:2]] for p in some])
    index = torch.arange(len(some))
    return Batch(pixels, box, torch.ones(len(some)), index, torch.zeros_like(index))


def found(picture):
    """(H, W) bool: the scan as the device finds it."""
    batch = batch_of(picture)
    grid = Grid(batch.pixels, batch.box)
    return grid.to_pixels(scan_cells(grid))[0].numpy()


def display(form, background=0, quality=None):
    picture = marked(shown(FORMS[form], background), *("text", "ruler", "bar", "logo") if form != "cut" else ())
    return compressed(picture, quality) if quality else picture


def within(one, other, pixels):
    """Whether every pixel of one mask is so near to one of the other."""
    size = 2 * pixels + 1
    near = layouts.ndimage.maximum_filter(other, size)
    return (one & ~near).sum() <= 2e-3 * one.sum()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("background", "quality"), [(0, None), (0, 60), (60, None), (30, 75)])
def test_the_device_finds_the_scan_that_is_found_in_one_picture(form, background, quality):
    picture = display(form, background, quality)
    here, there = scan_mask(picture), found(picture)
    assert overlap(there, FORMS[form]) > 0.95
    assert within(here, there, 2 * CELL)
    assert within(there, here, 2 * CELL)


def test_a_cyst_is_of_the_scan_and_panels_are_apart():
    cyst = layouts.ellipse(layouts.SHAPE, (0.5, 0.45), (0.12, 0.1))
    assert found(shown(FORMS["convex"], dark=cyst))[cyst].all()
    half = rectangle((288, 192), (0.12, 0.12, 0.7, 0.76))
    both = np.concatenate([half, half], 1)
    assert overlap(found(shown(both)), both) > 0.95


@pytest.mark.parametrize(
    "picture",
    [speckle((256, 256)), np.zeros((64, 64), np.uint8), np.full((40, 60), 9, np.uint8), np.zeros((1, 1), np.uint8)],
)
def test_a_picture_without_surround_is_left_as_it_is(picture):
    batch = Cleaning("crop", True)(batch_of(picture))
    assert batch.box.tolist() == [[0, 0, *picture.shape]]
    assert np.array_equal(batch.pixels[0, 0].numpy(), picture)


@pytest.mark.parametrize("scan", ["mask", "crop"])
def test_a_picture_comes_out_the_same_in_any_batch_and_on_any_canvas(scan):
    some = [display("convex"), display("linear", 60), speckle((100, 140)), shown(fan((180, 120), half=0.3))]
    together = Cleaning(scan)(batch_of(*some, at=(5, 9)))
    for i, picture in enumerate(some):
        alone = Cleaning(scan)(batch_of(picture))
        y, x, height, width = together.box[i].tolist()
        assert [y - 5, x - 9, height, width] == alone.box[0].tolist()
        across = together.pixels[i, :, 5 : 5 + picture.shape[0], 9 : 9 + picture.shape[1]]
        assert torch.equal(across, alone.pixels[0])


def test_many_pictures_are_cleaned_as_few_are(monkeypatch):
    batch = batch_of(*[shown(fan((60, 80), half=0.3 + 0.05 * i)) for i in range(7)])
    whole = Cleaning("crop")(batch)
    monkeypatch.setattr("ussl.data.clean.CHUNK", 3)
    parts = Cleaning("crop")(batch)
    assert torch.equal(whole.pixels, parts.pixels)
    assert torch.equal(whole.box, parts.box)


def test_the_mask_blacks_out_the_surround_and_the_crop_is_the_scans_box():
    picture = display("linear")
    mask, crop = (Cleaning(scan)(batch_of(picture)) for scan in ("mask", "crop"))
    assert torch.equal(mask.pixels, crop.pixels)
    assert mask.box.tolist() == [[0, 0, *picture.shape]]
    assert np.array_equal(mask.pixels[0, 0].numpy(), np.where(found(picture), picture, 0))
    assert np.abs(np.array(crop.box[0].tolist()) - scan_box(picture)).max() <= 2 * CELL
    assert torch.equal(mask.index, torch.tensor([0]))


def test_colourless_pictures_alone_become_grey():
    plain = np.stack([shown(FORMS["convex"])] * 3, -1).astype(int) + np.array([3, 0, -3])
    plain = plain.clip(0, 255).astype(np.uint8)
    doppler = plain.copy()
    doppler[120:150, 180:210, 0] = 220
    batch = Cleaning(grey=True)(batch_of(plain, doppler))
    assert np.array_equal(batch.pixels[0, 0].numpy(), cleaned(plain, grey=True))
    assert torch.equal(batch.pixels[0, 0], batch.pixels[0, 2])
    assert np.array_equal(batch.pixels[1].permute(1, 2, 0).numpy(), doppler)
    grey = batch_of(plain[..., 0])
    assert Cleaning(grey=True)(grey).pixels is grey.pixels


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a device wait for the host, or the host for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select")), (
            name
        )
        return function(*args, **(kwargs or {}))


def test_the_device_is_not_waited_for():
    batch = batch_of(*[np.stack([shown(fan((60, 80)))] * 3, -1)] * 2)
    with NoWaiting():
        Cleaning("crop", True)(batch)


def test_the_augmentation_is_given_the_cleaned_batch_and_tells_what_was_done():
    class Whole(Augmentation):
        preprocess = {"gaussian_blur": 1.1}

        def forward(self, batch, draws):
            image = resample(batch.pixels, batch.box, 32)
            return [View(image, image)]

    part = Cleaned(Cleaning("crop", True), Whole())
    assert part.preprocess == {"scan_crop": 1, "grey": 1, "gaussian_blur": 1.1}
    batch = batch_of(display("linear"))
    (view,) = part(batch, tiny_draws(1))
    cut = Cleaning("crop")(batch)
    assert torch.equal(view.image, resample(cut.pixels, cut.box, 32))


@pytest.mark.parametrize(("scan", "grey"), [("mask", False), ("crop", True), ("keep", True)])
def test_an_encoder_is_given_ever_after_what_it_was_trained_on(tmp_path, scan, grey):
    picture = np.stack([display("linear")] * 3, -1)
    cleaning = Cleaning(scan, grey)
    done = cleaning(batch_of(picture))
    expected = resample(done.pixels, done.box, 32)
    assert torch.equal(prepared(batch_of(picture).pixels[0], 32, cleaning.preprocess), expected[0])
    encoder = VisionTransformer(size="tiny", depth=1, image_size=32)
    encoder.preprocess = cleaning.preprocess
    write_encoder(encoder, tmp_path / "encoder")
    loaded = load(tmp_path / "encoder")
    assert loaded.preprocess == cleaning.preprocess
    assert torch.equal(loaded.prepare(picture), expected)
    assert Cleaning.undergone(loaded.preprocess).scan == scan
    assert Cleaning.undergone(loaded.preprocess).grey == grey


def test_a_cropped_picture_of_the_wanted_size_is_not_resampled():
    picture = display("linear")
    batch = Cleaning("crop")(batch_of(picture))
    y, x, height, width = batch.box[0].tolist()
    image = prepared(batch_of(picture).pixels[0], (height, width), {"scan_crop": 1})
    assert torch.equal(image, batch.pixels[0, :, y : y + height, x : x + width] / 255)


@pytest.mark.parametrize(
    ("preprocess", "words"),
    [
        ({"scan_mask": 2}, "scan_mask: 2; write 1, or leave it out"),
        ({"grey": "yes"}, "grey: 'yes'; write 1"),
        ({"scan_mask": 1, "scan_crop": 1}, "write one of them"),
    ],
)
def test_a_cleaning_that_is_not_known_is_refused(preprocess, words):
    with pytest.raises(ValueError, match=words):
        check(preprocess, "an encoder")


def test_going_on_without_the_cleaning_is_said(tmp_path):
    encoder = VisionTransformer(size="tiny", depth=1, image_size=32)
    encoder.preprocess = {"scan_mask": 1, "grey": 1}
    write_encoder(encoder, tmp_path / "encoder")
    said = parting(tmp_path, {})
    assert said is not None
    assert "was trained on pictures with grey, scan_mask, which this recipe does not do" in said
    assert "loader: {grey: true} keeps the grey, loader: {scan: mask} keeps the mask" in said
    assert parting(tmp_path, {"scan_mask": 1, "grey": 1}) is None
    assert "and this recipe does scan_crop, grey: " in str(parting(tmp_path, {"scan_crop": 1, "grey": 1}))


SMALL = [
    *(("encoder", "vit"), ("encoder.size", "tiny"), ("encoder.depth", "1"), ("encoder.image_size", "32")),
    ("augmentation.size", "32"),
]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], {}),
        ([("loader.scan", "mask")], {"scan_mask": 1}),
        ([("loader.scan", "crop"), ("loader.grey", "true")], {"scan_crop": 1, "grey": 1}),
    ],
)
def test_the_settings_of_the_loader_reach_the_method_and_its_encoder(words, told):
    recipe = recipes.load(["mae"], [*SMALL, *words], Host())
    method, _ = build_method(recipe, fresh=False)
    assert method.student.encoder.preprocess == told
    assert isinstance(method.augmentation, Cleaned if told else Crop)
    assert method(batch_of(display("linear")), tiny_draws(1))["loss"].isfinite()


def test_another_word_for_the_scan_is_refused():
    with pytest.raises(ValueError, match=r"loader\.scan"):
        recipes.load(["mae"], [*SMALL, ("loader.scan", "blur")], Host())
