"""Operations on views: the numbers of torchvision and Pillow, a picture's own draws, and grey left alone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import functional as torchvision

from ussl import notice, photometric
from ussl.photometric import Distortion, blur, brightness, contrast, gamma, greyscale, hue, saturation, solarize
from ussl.sonographic import CHANGES, attenuate, rescan, speckle
from ussl.testing import tiny_draws

COUNT = 3
FACTORS = torch.tensor([0.3, 1.0, 1.7])
TURNS = torch.tensor([-0.4, 0.0, 0.2])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def pictures(channels=3, dtype=torch.float64, size=24, count=COUNT):
    """Noise with some black, white and colourless pixels."""
    image = torch.rand(
        count, channels, size, size + 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    image[:, :, 0], image[:, :, 1], image[:, :, 2] = 0, 1, image[:, :1, 2]
    return image.to(dtype)


def one_by_one(function, image, numbers):
    """A function of a library, a picture and its number at a time."""
    return torch.cat([function(x[None], n) for x, n in zip(image, numbers.tolist(), strict=True)])


def close(ours, expected, tolerance=1e-5):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


@DTYPES
@CHANNELS
def test_brightness_is_torchvisions(channels, dtype):
    image = pictures(channels, dtype)
    close(brightness(image, FACTORS), one_by_one(torchvision.adjust_brightness, image, FACTORS))


@DTYPES
def test_hue_is_torchvisions(dtype):
    image = pictures(dtype=dtype)
    close(hue(image, TURNS), one_by_one(torchvision.adjust_hue, image, TURNS))


@DTYPES
@CHANNELS
def test_solarizing_is_torchvisions(channels, dtype):
    image = pictures(channels, dtype)
    image[0, 0, 5, :3] = torch.tensor([127 / 255, 0.5, 128 / 255])
    close(solarize(image), torchvision.solarize(image, 0.5))


@DTYPES
@CHANNELS
@pytest.mark.parametrize("taps", [3, 7, 23])
def test_blur_is_torchvisions_of_each_pictures_sigma(channels, dtype, taps):
    image, sigmas = pictures(channels, dtype), torch.tensor([0.1, 0.8, 2.0])
    close(
        blur(image, sigmas, taps),
        one_by_one(lambda x, s: torchvision.gaussian_blur(x, [taps, taps], [s, s]), image, sigmas),
    )


@DTYPES
def test_gamma_is_torchvisions(dtype):
    image = pictures(dtype=dtype)
    close(gamma(image, FACTORS), one_by_one(torchvision.adjust_gamma, image, FACTORS))


def grey_of(image):
    """Luma after ITU-R BT.601, written out."""
    red, green, blue = image.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


@DTYPES
def test_contrast_saturation_and_greyscale_are_their_formulas(dtype):
    image = pictures(dtype=dtype)
    for i, factor in enumerate(FACTORS.tolist()):
        picture, grey = image[i : i + 1], grey_of(image[i : i + 1])
        mean = grey.sum() / grey.numel()
        close(contrast(image, FACTORS)[i : i + 1], (factor * picture + (1 - factor) * mean).clamp(0, 1), 1e-6)
        close(saturation(image, FACTORS)[i : i + 1], (factor * picture + (1 - factor) * grey).clamp(0, 1), 1e-6)
        close(greyscale(image)[i : i + 1], grey.expand(-1, 3, -1, -1), 1e-6)


def test_contrast_saturation_and_greyscale_are_torchvisions_up_to_its_weight_of_red():
    """torchvision gives red 0.2989 where Pillow and the standard say 0.299: up to 1e-4 of difference."""
    image = pictures()
    close(contrast(image, FACTORS), one_by_one(torchvision.adjust_contrast, image, FACTORS), 1e-4)
    close(saturation(image, FACTORS), one_by_one(torchvision.adjust_saturation, image, FACTORS), 1e-4)
    close(greyscale(image), torchvision.rgb_to_grayscale(image, 3), 1.01e-4)


def test_contrast_of_grey_is_torchvisions():
    image = pictures(1)
    close(contrast(image, FACTORS), one_by_one(torchvision.adjust_contrast, image, FACTORS))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (brightness, lambda x, f: ImageEnhance.Brightness(x).enhance(f)),
        (contrast, lambda x, f: ImageEnhance.Contrast(x).enhance(f)),
        (saturation, lambda x, f: ImageEnhance.Color(x).enhance(f)),
        (lambda image, _: greyscale(image), lambda x, _: ImageOps.grayscale(x).convert("RGB")),
        (lambda image, _: solarize(image), lambda x, _: ImageOps.solarize(x, 128)),
    ],
    ids=["brightness", "contrast", "saturation", "greyscale", "solarize"],
)
def test_eight_bit_pictures_come_out_as_pillows(ours, theirs):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    for factor in (0.3, 1.0, 1.7):
        expected = torch.from_numpy(np.array(theirs(Image.fromarray(pixels), factor))).permute(2, 0, 1)[None] / 255
        close(ours(image, torch.tensor([factor])), expected, 1.6 / 255)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_a_blur_of_17_taps_is_nearly_pillows(sigma):
    """Pillow approximates a Gaussian by three box blurs and rounds; white noise shows the difference most."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    expected = np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float64)
    ours = 255 * blur(torch.from_numpy(pixels)[None, None] / 255, torch.tensor([sigma]), 17)[0, 0].double().numpy()
    assert np.abs(ours - expected)[8:-8, 8:-8].max() < 0.06 * np.abs(pixels - expected).max()


def test_a_blur_fits_into_a_small_view():
    image = torch.full((1, 1, 3, 3), 0.3)
    close(blur(image, torch.tensor([2.0]), 17), image)


@pytest.mark.parametrize("change", [saturation, hue])
def test_colours_of_grey_pictures_stay(change):
    image = pictures(1)
    assert change(image, TURNS) is image
    close(change(image.expand(-1, 3, -1, -1), TURNS.abs()), image.expand(-1, 3, -1, -1))


STRONG = Distortion((0.8, 0.8, 0.8, 0.2), blur=0.5, taps=5, solarize=0.5)


def test_what_is_skipped_on_grey_would_have_changed_nothing():
    grey, draws = pictures(1, count=40), tiny_draws(40)
    computed = STRONG(grey.expand(-1, 3, -1, -1), draws)
    close(STRONG(grey, draws).expand(-1, 3, -1, -1), computed)


def test_grey_pictures_never_compute_colours(monkeypatch, capsys):
    monkeypatch.setattr(notice, "_said", set())
    for name in ("hue", "saturation", "greyscale"):
        monkeypatch.setattr(photometric, name, lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(photometric, "_JITTER", (brightness, contrast, photometric.saturation, photometric.hue))
    STRONG(pictures(1), tiny_draws(COUNT))
    STRONG(pictures(1), tiny_draws(COUNT))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("note      the pictures are grey")
    Distortion((0.4, 0.4, 0.0, 0.0), blur=0, taps=3, greyscale=0)(pictures(1), tiny_draws(COUNT))
    notice.once(photometric._GREY)
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_takes_notes(monkeypatch, capsys):
    monkeypatch.setattr(notice, "_said", set())
    monkeypatch.setattr(notice, "rank", lambda: 1)
    notice.once("a thing")
    monkeypatch.setattr(notice, "rank", lambda: 0)
    notice.once("a thing")
    notice.once("a thing")
    assert capsys.readouterr().err == "note      a thing\n"


def jittered(image, draws, strengths):
    """The jitter of each picture written out: its order and factors from the same numbers, a step at a time."""
    numbers, order = draws.uniform("jitter/strength", 4).double(), draws.uniform("jitter/order", 4)
    out = image.clone()
    for b in range(len(image)):
        x = image[b : b + 1]
        for kind in sorted(range(4), key=lambda k: order[b, k].item()):
            s, u = strengths[kind], numbers[b, kind].item()
            factor = max(0, 1 - s) + (1 + s - max(0, 1 - s)) * u
            if kind == 0:
                x = factor * x
            elif kind == 1:
                x = factor * x + (1 - factor) * grey_of(x).mean()
            elif kind == 2:
                x = factor * x + (1 - factor) * grey_of(x)
            else:
                x = torchvision.adjust_hue(x, -s + 2 * s * u)
            x = x.clamp(0, 1)
        out[b] = x[0]
    return out


def test_every_picture_is_jittered_in_its_own_order():
    image, draws, strengths = pictures(count=24, size=6), tiny_draws(24), (1.2, 0.8, 0.6, 0.2)
    ours = Distortion(strengths, blur=0, taps=3, jitter=1.0, greyscale=0)(image, draws)
    close(ours, jittered(image, draws, strengths))
    orders = draws.uniform("jitter/order", 4).argsort(1)
    assert len({tuple(order) for order in orders.tolist()}) > 10


@CHANNELS
def test_each_picture_is_changed_with_the_probability_said(channels):
    count = 400
    image, draws = pictures(channels, torch.float32, 4, 1).expand(count, -1, -1, -1), tiny_draws(count)
    none = {"jitter": 0.0, "greyscale": 0.0, "blur": 0.0, "solarize": 0.0}
    for name, probability in {"jitter": 0.8, "blur": 0.5, "solarize": 0.2, "greyscale": 0.2}.items():
        if name == "greyscale" and channels == 1:
            continue
        change = Distortion((0.4, 0.4, 0.2, 0.1), taps=3, **none | {name: probability})
        changed = (change(image, draws) != image).flatten(1).any(1).double().mean().item()
        assert abs(changed - probability) < 4 * math.sqrt(probability * (1 - probability) / count), name


@CHANNELS
def test_both_ways_to_change_some_pictures_agree(channels):
    image, chosen = pictures(channels), torch.tensor([True, False, True])
    ways = [how(chosen, gamma, image, FACTORS) for how in (photometric._one_by_one, photometric._at_once)]
    close(*ways, 1e-12)
    assert torch.equal(ways[0][1], image[1])
    assert not torch.equal(ways[0][2], image[2])


@DTYPES
@CHANNELS
@pytest.mark.parametrize("change", [STRONG, rescan])
def test_images_stay_in_0_and_1_and_in_their_precision(change, channels, dtype):
    image = pictures(channels, dtype, count=30)
    before = image.clone()
    changed = change(image, tiny_draws(30))
    assert changed.shape == image.shape
    assert changed.dtype == dtype
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(image, before)


def test_attenuation_falls_exponentially_from_the_first_row_to_the_last():
    image = torch.ones(2, 3, 5, 2, dtype=torch.float64)
    dark = attenuate(image, torch.tensor([0.0, 2.0]))
    assert torch.equal(dark[0], image[0])
    close(dark[1, 1, :, 1], torch.tensor([math.exp(-2 * i / 4) for i in range(5)], dtype=torch.float64), 1e-12)
    close(attenuate(image[:, :, :1], torch.tensor([1.0, 2.0])), image[:, :, :1])


def test_speckle_multiplies_by_rayleigh_numbers_of_mean_1():
    numbers = tiny_draws(1).uniform("pixels", 200 * 200)
    image = torch.full((1, 3, 200, 200), 0.1, dtype=torch.float64)
    ratio = speckle(image, torch.tensor([1.0]), numbers) / 0.1
    assert torch.equal(ratio[:, 0], ratio[:, 2])
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert ratio.std() == pytest.approx(math.sqrt(4 / math.pi - 1), abs=0.01)
    assert (ratio[:, 0] > 2).double().mean() == pytest.approx(math.exp(-math.pi), abs=0.003)  # 1 - F(2) by hand
    half = speckle(image, torch.tensor([0.5]), numbers) / 0.1
    close(half - 1, (ratio - 1) / 2)


def test_another_scan_lifts_black_by_0_3_of_the_mean_at_most_and_keeps_bright_above_dark():
    image = torch.zeros(50, 1, 8, 8)
    image[..., 4:] = 0.6
    again = rescan(image, tiny_draws(50))
    mean = 0.3 * 1.3  # of the image, times the highest gain
    assert again[..., 0].max() <= (0.3 * mean) ** 0.7 + 1e-3  # the lowest gamma; blur does not reach the first column
    assert (again[..., 4:].mean((1, 2, 3)) > again[..., :4].mean((1, 2, 3)) + 0.05).all()


@pytest.mark.parametrize("change", CHANGES, ids=[change.name for change in CHANGES])
def test_each_change_of_a_scan_happens_with_its_probability_within_its_range(change, monkeypatch):
    count, seen = 400, []
    image = pictures(1, torch.float32, 4, 1).expand(count, -1, -1, -1)
    spy = SimpleNamespace(apply=lambda x, n, *rest: seen.append(n.item()) or change.apply(x, n, *rest))
    changed = type(change)(change.name, spy.apply, change.low, change.high, change.probability, change.noisy)
    changed(image, tiny_draws(count))
    assert abs(len(seen) / count - change.probability) < 4 * math.sqrt(0.25 / count)
    assert change.low <= min(seen) < change.low + 0.1 * (change.high - change.low)
    assert change.high - 0.1 * (change.high - change.low) < max(seen) <= change.high
