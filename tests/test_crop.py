"""Crops: where they lie, and that they are resampled as Pillow does."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as torchvision

from ussl.data.pictures import read
from ussl.data.resample import _at_once, _one_by_one, random_boxes, resample, resize
from ussl.parts import Batch, Draws
from ussl_plugins.augmentations.crop import Crop

REAL = Path(__file__).parents[1].parent / "shared/data/ultrasound"
BOUND = 1.2 / 255  # Pillow rounds to 8 bits after each of its two passes
WAYS = {"for the processor": _one_by_one, "for an accelerator": _at_once}
METHOD = pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)


def speckle(height, width, channels=1):
    """Rayleigh noise of a pixel's size: the hardest picture to resample."""
    noise = np.random.default_rng(0).rayleigh(60, (height, width, channels))
    return np.clip(noise, 0, 255).astype(np.uint8)


def by_torchvision(picture, box, size):
    """(C, h, w) in [0, 1] by Pillow, as the authors of masked autoencoders crop."""
    image = Image.fromarray(picture.squeeze())
    image = torchvision.resized_crop(image, *box, size, interpolation=InterpolationMode.BICUBIC)
    return torchvision.to_dtype(torchvision.to_image(image), torch.float32, scale=True)


def error(how, picture, box, size):
    """Largest difference to torchvision of a box of `picture`, lying on a larger canvas of 255."""
    height, width, channels = picture.shape
    canvas = torch.full((1, channels, height + 9, width + 20), 255, dtype=torch.uint8)
    canvas[0, :, :height, :width] = torch.from_numpy(picture).permute(2, 0, 1)
    ours = how(canvas, torch.tensor([box]), *size).clamp(0, 255) / 255
    return (ours[0] - by_torchvision(picture, box, list(size))).abs().max().item()


OLD = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 took columns first always")
BOXES = [
    (0, 0, 120, 150),  # the whole picture
    pytest.param((0, 0, 120, 40), marks=OLD),  # rows before columns
    pytest.param((9, 20, 110, 70), marks=OLD),
    (30, 40, 75, 100),  # shrunk a little
    (20, 13, 32, 32),  # of the size asked for
    (100, 120, 20, 30),  # enlarged, to the far corner
    (5, 7, 9, 90),  # enlarged one way, shrunk the other
    pytest.param((5, 7, 90, 9), marks=OLD),
    (60, 60, 1, 1),
    (0, 60, 3, 2),
]


@METHOD
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("channels", [1, 3])
def test_resampling_equals_torchvision_on_pillow_images(how, box, channels):
    assert error(how, speckle(120, 150, channels), box, (32, 32)) <= BOUND
    assert error(how, speckle(120, 150, channels), box, (17, 40)) <= BOUND


@METHOD
@OLD
@pytest.mark.parametrize("shape", [(110, 70), (108, 70), (33, 32), (40, 9), (9, 40), (20, 10)])
def test_passes_are_in_pillows_order(how, shape):
    """Black and white noise is clipped between the passes, so that their order shows: by up to 20 grey levels."""
    noise = np.random.default_rng(0).integers(0, 2, (*shape, 1), dtype=np.uint8) * 255
    assert error(how, noise, (0, 0, *shape), (32, 32)) <= BOUND


@METHOD
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images at {REAL}")
def test_resampling_equals_torchvision_on_real_speckle(how):
    for path in [next(REAL.glob(f"{name}/*/*/*.*")) for name in ("liver735", "hc18", "spj_hip", "timtrack")]:
        picture = read(path)
        picture = picture[..., None] if picture.ndim == 2 else picture
        height, width = picture.shape[:2]
        for box in [(0, 0, height, width), (height // 4, width // 5, height // 2, width // 2), (9, 9, 90, 110)]:
            assert error(how, picture, box, (224, 224)) <= BOUND


def test_both_ways_agree_closely():
    pixels = torch.from_numpy(speckle(70, 90, 9)).permute(2, 0, 1).reshape(3, 3, 70, 90)
    box = torch.tensor([[0, 0, 70, 90], [11, 13, 9, 40], [0, 0, 70, 31]])
    torch.testing.assert_close(_at_once(pixels, box, 24, 30), _one_by_one(pixels, box, 24, 30), rtol=0, atol=1e-3)


def test_white_noise_is_antialiased():
    noise = torch.randint(0, 256, (1, 1, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shrunk = resample(noise, torch.tensor([[0, 0, 256, 256]]), 64)
    assert shrunk.std() < 0.08  # .29 before; .25 without antialiasing


def test_sharp_edges_stay_within_0_and_1():
    pixels = (torch.arange(40) % 8 < 4).to(torch.uint8).mul(255).expand(1, 1, 40, 40)
    shrunk = resample(pixels, torch.tensor([[0, 0, 40, 40]]), 30)
    assert shrunk.dtype == torch.float32
    assert shrunk.min() == 0
    assert shrunk.max() == 1


def batch(sizes, canvas=None, fill=0, index=None, channels=1):
    """Pictures of `sizes` filled with noise on a canvas whose padding is `fill`."""
    height, width = canvas or np.max(sizes, axis=0)
    pixels = torch.full((len(sizes), channels, height, width), fill, dtype=torch.uint8)
    index = list(range(len(sizes))) if index is None else index
    for canvas_, (h, w), i in zip(pixels, sizes, index, strict=True):
        noise = np.random.default_rng(i).integers(0, 256, (channels, h, w), dtype=np.uint8)
        canvas_[:, :h, :w] = torch.from_numpy(noise)
    box = torch.tensor([(0, 0, h, w) for h, w in sizes])
    index = torch.tensor(index)
    return Batch(pixels, box, torch.ones(len(sizes)), index, torch.zeros_like(index))


def draws(of, seed=0, epoch=0):
    return Draws(seed, epoch, 0, of.index, of.turn)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_one_global_view_that_is_its_own_clean_view(channels):
    pictures = batch([(40, 60), (50, 30)], channels=channels)
    (view,) = Crop(size=16)(pictures, draws(pictures))
    assert view.image.shape == (2, channels, 16, 16)
    assert view.image is view.clean
    assert view.role == "global"


def test_a_crop_does_not_depend_on_the_other_pictures_or_the_canvas():
    crop = Crop(size=16, horizontal_flip=0.5)
    sizes = [(40, 60), (50, 30), (33, 44)]
    together = batch(sizes)
    alone = batch(sizes[1:2], canvas=(91, 83), index=[1])
    (views,), (view,) = crop(together, draws(together)), crop(alone, draws(alone))
    assert torch.equal(views.image[1:2], view.image)


def test_crops_differ_between_pictures_epochs_and_seeds():
    pictures = batch([(40, 60), (40, 60)])
    box = pictures.box
    here = random_boxes(box, draws(pictures), (0.2, 1.0), (0.75, 1.33))
    assert not torch.equal(here[0], here[1])
    assert not torch.equal(here, random_boxes(box, draws(pictures, epoch=1), (0.2, 1.0), (0.75, 1.33)))
    assert not torch.equal(here, random_boxes(box, draws(pictures, seed=1), (0.2, 1.0), (0.75, 1.33)))


@METHOD
def test_padding_is_never_seen(how):
    sizes = [(40, 60), (7, 90), (1, 1), (64, 3)] * 50
    pictures = batch(sizes, canvas=(70, 100), fill=255)
    for picture, (h, w) in zip(pictures.pixels, sizes, strict=True):
        picture[:, :h, :w] = 0
    boxes = random_boxes(pictures.box, draws(pictures), (0.08, 1.0), (0.75, 4 / 3))
    assert how(pictures.pixels, boxes, 8, 8).max() == 0


def test_boxes_lie_inside_a_picture_that_lies_anywhere():
    index = torch.arange(2000)
    box = torch.tensor([5, 9, 30, 20]).expand(2000, 4)
    y, x, height, width = random_boxes(box, Draws(0, 0, 0, index, 0 * index), (0.2, 1.0), (0.75, 1.33)).unbind(1)
    assert height.min() >= 1
    assert width.min() >= 1
    assert (y.min(), x.min()) == (5, 9)
    assert ((y + height).max(), (x + width).max()) == (35, 29)


@pytest.mark.parametrize("shape", [(384, 512), (300, 100), (60, 60)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.4)])
def test_boxes_are_distributed_as_torchvisions(shape, scale):
    count, ratio = 3000, (3 / 4, 4 / 3)
    index = torch.arange(count)
    box = torch.tensor([0, 0, *shape]).expand(count, 4)
    ours = random_boxes(box, Draws(0, 0, 0, index, torch.zeros_like(index)), scale, ratio).double()
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(torch.empty(1, *shape), list(scale), list(ratio)) for _ in range(count)]
    torch.random.set_rng_state(state)
    theirs = torch.tensor(theirs, dtype=torch.float64)

    def features(boxes):
        y, x, height, width = boxes.unbind(1)
        free = torch.stack([shape[0] - height, shape[1] - width]).clamp(min=1)
        return {"area": height * width, "aspect": width / height, "y": y, "x": x, "place": y / free[0] + x / free[1]}

    for name, values in features(ours).items():
        assert ks_2samp(values.numpy(), features(theirs)[name].numpy()).pvalue > 1e-3, name


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 400), (0, 197, 4, 5)), ((400, 4), (197, 0, 5, 4)), ((1, 1), (0, 0, 1, 1))],
)
def test_where_no_attempt_fits_the_middle_is_taken(shape, expected):
    """By hand: a 4 x 400 strip admits at most 4 x round(4 * 4/3) = 4 x 5, from column (400 - 5) // 2."""
    pictures = batch([shape])
    box = random_boxes(pictures.box, draws(pictures), (0.9, 1.0), (3 / 4, 4 / 3))
    assert tuple(box[0].tolist()) == expected


def test_the_first_attempt_that_fits_is_taken(monkeypatch):
    pictures = batch([(30, 100)])
    area, aspect = torch.full((10,), 0.5), torch.full((10,), 0.5)
    area[:2] = 0.999  # too tall: 30 x 100 at ratio 1 is 55 x 55
    area[2], area[3] = 0.1, 0.2
    numbers = {"crop": torch.stack([area, aspect], 1)[None], "crop/position": torch.tensor([[0.0, 0.9999999]])}
    monkeypatch.setattr(Draws, "uniform", lambda self, stream, *shape: numbers[stream])
    box = random_boxes(pictures.box, draws(pictures), (1e-6, 1.0), (0.5, 2.0))
    side = round((0.1 * 30 * 100) ** 0.5)
    assert box.tolist() == [[0, 100 - side, side, side]]


def test_half_of_the_crops_are_flipped_on_request():
    pictures = batch([(20, 30)] * 200)
    (plain,), (flipped,) = (
        Crop(size=8)(pictures, draws(pictures)),
        Crop(size=8, horizontal_flip=0.5)(pictures, draws(pictures)),
    )
    mirrored = (flipped.image == plain.image.flip(-1)).flatten(1).all(1)
    same = (flipped.image == plain.image).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 75 <= mirrored.sum() <= 125


def test_a_crop_never_waits_for_an_accelerator():
    """Fake tensors have no values: whatever asks for one fails."""
    pictures = batch([(20, 30)] * 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = {f.name: getattr(pictures, f.name) for f in fields(Batch) if f.name != "labels"}
        fake = Batch(**{name: torch.empty_like(x, device="cuda") for name, x in fake.items()})
        (view,) = Crop(size=8, horizontal_flip=0.5)(fake, draws(fake))
    assert isinstance(view.image, FakeTensor)
    assert view.image.shape == (4, 1, 8, 8)


def test_autocast_does_not_coarsen_pixels():
    pictures = batch([(40, 60)] * 2)
    expected = _at_once(pictures.pixels, pictures.box, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = _at_once(pictures.pixels, pictures.box, 16, 16)
        fine = resize(pictures, 16)
    assert (coarse - expected).abs().max() > 0.1
    assert fine.dtype == torch.float32
    torch.testing.assert_close(fine * 255, expected.clamp(0, 255), rtol=0, atol=1e-3)


def test_a_whole_picture_is_resized_without_its_padding():
    pictures = batch([(20, 30), (9, 40)], fill=255)
    shrunk = resize(pictures, (8, 12))
    for i, (h, w) in enumerate([(20, 30), (9, 40)]):
        image = Image.fromarray(pictures.pixels[i, 0, :h, :w].numpy()).resize((12, 8), Image.Resampling.BICUBIC)
        assert (shrunk[i, 0] * 255 - torch.from_numpy(np.array(image))).abs().max() <= 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"scale": (0.5, 0.2)}, "scale is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"ratio": (2.0, 1.0)}, "ratio is"),
        ({"horizontal_flip": 1.5}, "horizontal_flip is 1.5; write a probability"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Crop(**options)
