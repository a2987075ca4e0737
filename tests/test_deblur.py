"""Deblurring: OpenCV's blur of 8-bit pictures, the views, the loss, and the blur that stays with the encoder."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from test_masked_prediction import ClsEncoder, mae
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ussl import notice
from ussl.data.blur import _at_once, _one_by_one, blur_image, gaussian_blur, kernels
from ussl.data.pictures import read
from ussl.data.preprocess import parting, prepared
from ussl.export import write_encoder
from ussl.parts import Progress, Student
from ussl.testing import TinyEncoder, tiny_batch, tiny_draws
from ussl_plugins.augmentations.crop import Crop
from ussl_plugins.augmentations.deblur import Deblur
from ussl_plugins.encoders.vit import VisionTransformer
from ussl_plugins.maskings.random import RandomMasking
from ussl_plugins.objectives.masked_prediction import MaskedPrediction
from ussl_plugins.targets.pixels import PixelTarget

WAYS = {"for the processor": _one_by_one, "for an accelerator": _at_once}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_batch(picture):
    """(1, C, H, W) pixels of a picture (H, W) or (H, W, 3), and its box."""
    pixels = torch.from_numpy(picture.reshape(*picture.shape[:2], -1).copy()).permute(2, 0, 1)[None]
    return pixels, torch.tensor([[0, 0, *picture.shape[:2]]])


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def by_opencv(picture, sigma):
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def differing(picture, sigma, how=_one_by_one):
    """How many values differ from OpenCV's."""
    pixels, box = as_batch(picture)
    blurred = how(pixels, box, kernels(doubles(sigma), sigma))
    return int((blurred[0].permute(1, 2, 0).numpy().reshape(picture.shape) != by_opencv(picture, sigma)).sum())


# the blur


def test_the_published_blur_has_nine_taps():
    assert kernels(doubles(1.1), 1.1).tolist() == [[92, 62, 18, 2, 0]]  # the middle and four to each side


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.45, 0.6, 0.8, 1.0, 1.1, 1.3, 1.7, 2.0, 2.2, 2.5, 3.0, 5.3])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_no_pixel_differs_from_opencv(how, sigma):
    assert differing(noise(60, 75), sigma, how) == 0
    assert differing(noise(40, 31) // 128 * 255, sigma, how) == 0  # black and white
    assert differing(noise(33, 40, 3), sigma, how) == 0


def test_no_pixel_of_real_pictures_differs_from_opencv(ultrasound):
    files = sorted(ultrasound.rglob("*.png"))[:3]
    assert files
    for file in files:
        assert differing(read(file), 1.1) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_pictures_smaller_than_the_kernel_are_reflected_as_often_as_it_takes(how, shape):
    assert differing(noise(*shape), 1.1, how) == 0
    assert differing(noise(*shape), 3.0, how) == 0


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_each_picture_has_its_own_sigma_and_is_reflected_at_its_own_edges(how):
    sizes, sigmas = [(30, 41), (26, 20), (50, 50), (7, 33)], [1.1, 0.55, 2.4, 0.2]
    canvas = torch.full((4, 3, 50, 60), 255, dtype=torch.uint8)
    pictures = [noise(*size, 3, seed=i) for i, size in enumerate(sizes)]
    box = torch.tensor([(0, 0, 30, 41), (5, 9, 26, 20), (0, 10, 50, 50), (43, 2, 7, 33)])
    expected = canvas.clone()
    for i, (y, x, rows, columns) in enumerate(box.tolist()):
        place = (i, slice(None), slice(y, y + rows), slice(x, x + columns))
        canvas[place] = torch.from_numpy(pictures[i]).permute(2, 0, 1)
        expected[place] = torch.from_numpy(by_opencv(pictures[i], sigmas[i])).permute(2, 0, 1)
    before = canvas.clone()
    assert torch.equal(how(canvas, box, kernels(doubles(*sigmas), 2.4)), expected)
    assert torch.equal(how(canvas, box, kernels(doubles(*sigmas), 4.0)), expected)  # a bound that nothing reaches
    assert torch.equal(canvas, before)


def test_an_accelerator_is_not_waited_for():
    pixels, box = as_batch(noise(20, 24))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (pixels, box, doubles(1.1))]
        assert isinstance(_at_once(fake[0], fake[1], kernels(fake[2], 1.1)), FakeTensor)


def test_an_image_is_blurred_in_eight_bits():
    picture = noise(20, 24)
    expected = by_opencv(picture, 1.1).astype(np.float32) / 255
    assert np.array_equal(blur_image(as_batch(picture)[0] / 255, 1.1)[0, 0].numpy(), expected)


# the views


def published(**options):
    return Deblur(**{"size": 16, "horizontal_flip": 0.5, **options})


def test_the_student_sees_the_same_crop_blurred():
    batch, draws = tiny_batch(6, 40, 48), tiny_draws(6)
    (view,) = published()(batch, draws)
    (sharp,) = Crop(size=16, horizontal_flip=0.5)(batch, draws)
    blurred = torch.stack([torch.from_numpy(by_opencv(x[0, :38, :45].numpy(), 1.1)) for x in batch.pixels])
    batch.pixels[:, 0, :38, :45] = blurred
    (expected,) = Crop(size=16, horizontal_flip=0.5)(batch, draws)
    assert torch.equal(view.clean, sharp.clean)
    assert torch.equal(view.image, expected.image)
    assert view.role == "global"
    assert not torch.equal(view.image, view.clean)


def test_sigma_shrinks_with_the_picture():
    batch, draws = tiny_batch(3, 40, 48, channels=3), tiny_draws(3)
    batch.scale = torch.tensor([1.0, 0.5, 0.25])
    (view,) = published()(batch, draws)
    for i, scale in enumerate((1, 0.5, 0.25)):
        picture = batch.pixels[i, :, :38, :45].permute(1, 2, 0).numpy()
        batch.pixels[i, :, :38, :45] = torch.from_numpy(by_opencv(picture, 1.1 * scale)).permute(2, 0, 1)
    (expected,) = Crop(size=16, horizontal_flip=0.5)(batch, draws)
    assert torch.equal(view.image, expected.image)


def test_a_picture_that_was_enlarged_is_blurred_more():
    batch = tiny_batch(2, 40, 48)
    expected = gaussian_blur(batch.pixels, batch.box, doubles(2.2, 2.2))
    batch.scale = torch.full((2,), 2.0)
    (view,) = published()(batch, tiny_draws(2))
    batch.pixels = expected
    assert torch.equal(view.image, Crop(size=16, horizontal_flip=0.5)(batch, tiny_draws(2))[0].image)


def test_the_blur_can_be_of_the_crop():
    (view,) = published(blur_at="crop")(tiny_batch(2, 40, 48), tiny_draws(2))
    for image, clean in zip(view.image, view.clean, strict=True):
        expected = by_opencv((clean[0] * 255).round().to(torch.uint8).numpy(), 1.1)
        assert torch.equal(image[0], torch.from_numpy(expected) / 255)


def test_the_augmentation_says_what_pictures_must_undergo_ever_after():
    assert published().preprocess == {"gaussian_blur": 1.1}
    assert published(blur_at="crop", sigma=2.0).preprocess == {"gaussian_blur_resized": 2.0}


def test_a_blur_below_a_pixel_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(notice, "_said", set())
    augmentation, batch, draws = published(), tiny_batch(2, 40, 48), tiny_draws(2)
    augmentation(batch, draws)
    assert capsys.readouterr().err == ""
    for scale in (0.3, 0.2):
        batch.scale = torch.tensor([1.0, scale])
        augmentation(batch, draws)
        augmentation.after_step(Progress(0, 2, 0.0, 1.0))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "below one pixel of the canvas" in said
    assert "raise loader.canvas" in said
    published(blur_at="crop")(batch, draws)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0.0; write the blur in pixels"),
        ({"sigma": -1.1}, "sigma is -1.1"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"blur_at": "target"}, "blur_at is 'target'; write source or crop"),
        ({"scale": (0.5, 0.2)}, "scale is"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Deblur(**options)


# the loss


def test_the_loss_is_the_squared_error_of_all_patches_of_the_sharp_picture():
    """As the authors': ((prediction - target) ** 2).mean(), seen patches included, targets not normalised by patch."""
    torch.manual_seed(0)
    student = Student(ClsEncoder()).double()
    target = PixelTarget(student, norm=False).double()
    objective = MaskedPrediction(student, target, width=16, depth=2, heads=2).double()
    (view,) = published()(tiny_batch(3, 40, 48), tiny_draws(3))
    view.image, view.clean = view.image.double(), view.clean.double()
    mask = RandomMasking(ratio=0.75, predict="all")(view, (4, 4), tiny_draws(3))
    tokens = student([view], [mask])
    loss = objective(tokens, target([view]), [mask])["loss"]

    wanted = torch.empty(3, 16, 48, dtype=torch.float64)
    for b in range(3):
        for n in range(16):
            y, x = 4 * (n // 4), 4 * (n % 4)
            patch = [view.clean[b, 0, y : y + 4, x : x + 4]] * 3
            channels = [
                (p - m) / s for p, m, s in zip(patch, target.mean.flatten(), target.std.flatten(), strict=True)
            ]
            wanted[b, n] = torch.stack(channels, -1).flatten()
    seen = tokens[0]
    seen.pooled, seen.patches, seen.where = seen.pooled[:, 0], seen.patches[:, 0], seen.where[:, 0]
    everything = torch.ones(3, 16, dtype=torch.bool)
    expected = mae(objective, seen, mask.hidden[:, 0], wanted, everything).mean()
    assert abs(loss - expected) < 1e-9
    assert abs(mae(objective, seen, mask.hidden[:, 0], wanted).mean() - expected) > 1e-3  # hidden patches alone


# the blur stays with the encoder


@pytest.mark.parametrize("shape", [(40, 56), (24, 24), (30, 20, 3)])
def test_pictures_are_blurred_before_they_are_resized(shape):
    picture = noise(*shape)
    sharp = prepared(as_batch(picture)[0][0], 24, {})
    found = prepared(as_batch(picture)[0][0], 24, {"gaussian_blur": 1.1})
    expected = prepared(as_batch(by_opencv(picture, 1.1))[0][0], 24, {})
    assert torch.equal(found, expected)
    assert not torch.equal(found, sharp)
    after = prepared(as_batch(picture)[0][0], 24, {"gaussian_blur_resized": 1.1})
    assert torch.equal(after, blur_image(sharp[None], 1.1)[0])


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"gaussian_blur": 1.1, "median": 3}, "an encoder wants preprocess median, known here are gaussian_blur"),
        ({"gaussian_blur": -1}, "preprocess gaussian_blur: -1; write a sigma"),
        ({"gaussian_blur": "1.1"}, "preprocess gaussian_blur: '1.1'; write a sigma"),
    ],
)
def test_what_cannot_be_done_to_pictures_is_refused(preprocess, message):
    with pytest.raises(ValueError, match=message):
        prepared(as_batch(noise(8, 8))[0][0], 8, preprocess)


def test_going_on_from_a_blurred_encoder_without_the_blur_is_said(tmp_path):
    encoder = VisionTransformer(size="tiny", depth=1, image_size=32)
    write_encoder(encoder, tmp_path / "sharp" / "encoder")
    encoder.preprocess = {"gaussian_blur": 1.1}
    write_encoder(encoder, tmp_path / "run" / "encoder")
    said = parting(tmp_path / "run", {})
    assert said is not None
    assert "was trained on pictures with gaussian_blur 1.1, which this augmentation does not do" in said
    assert said.endswith("is exported without; augmentation: deblur keeps the blur")
    assert parting(tmp_path / "run", {"gaussian_blur": 1.1}) is None
    assert parting(tmp_path / "sharp", {"gaussian_blur": 1.1}) is None
    assert parting("vit_base_patch16_224.mae", {}) is None
    assert parting(None, {}) is None
    assert TinyEncoder().preprocess == {}  # the class' own is no other encoder's


@pytest.mark.parametrize("now", [{"gaussian_blur": 2.0}, {"gaussian_blur_resized": 1.1}])
def test_going_on_from_a_blurred_encoder_with_another_blur_says_which_is_exported(tmp_path, now):
    encoder = VisionTransformer(size="tiny", depth=1, image_size=32)
    encoder.preprocess = {"gaussian_blur": 1.1}
    write_encoder(encoder, tmp_path / "encoder")
    ((name, sigma),) = now.items()
    said = parting(tmp_path, now)
    assert f"was trained on pictures with gaussian_blur 1.1, and this augmentation does {name} {sigma}: " in said
    assert said.endswith(f"is exported with {name} {sigma}")
