"""What tells one picture from another: digests of pixels, hashes that copies share, flags."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ussl.data.duplicates import DISTANCE
from ussl.data.fingerprint import BITS, fingerprint


def scan(seed, sector=True, size=(240, 320)):
    """Speckled tissue, within the sector of a convex probe on black, which all pictures share."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 255, (10, 12), dtype=np.uint8))
    tissue = np.asarray(coarse.resize(size[::-1], Image.BICUBIC)) * rng.rayleigh(0.6, size)
    tissue = np.asarray(Image.fromarray(tissue.clip(0, 255).astype(np.uint8)).resize(size[::-1], Image.BOX))
    if not sector:
        return tissue
    fan = Image.new("L", size[::-1], 0)
    ImageDraw.Draw(fan).pieslice((-20, -150, 340, 230), 50, 130, fill=1)
    return tissue * np.asarray(fan)


def bits(one, other):
    """How many bits of the hashes of two pictures differ."""
    return (int(fingerprint(one)["hash"], 16) ^ int(fingerprint(other)["hash"], 16)).bit_count()


def resized(picture, factor):
    image = Image.fromarray(picture)
    return np.asarray(image.resize([round(side * factor) for side in image.size], Image.BICUBIC))


def compressed(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


ALTERED = {
    "half the size": lambda x: resized(x, 0.5),
    "twice the size": lambda x: resized(x, 2),
    "compressed": lambda x: compressed(x, 60),
    "cut by 3 %": lambda x: x[7:-7, 10:-10],
    "darker": lambda x: (255 * (x / 255) ** 1.4).astype(np.uint8),
    "brighter": lambda x: (255 * (x / 255) ** 0.7).astype(np.uint8),
    "less contrast": lambda x: (0.6 * x).astype(np.uint8),
    "on a black frame": lambda x: np.pad(x, ((4, 4), (5, 5))),
    "in colour": lambda x: np.stack([x] * 3, -1),
}


@pytest.mark.parametrize("sector", [False, True])
@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_copy_is_near(name, sector):
    for seed in range(5):
        picture = scan(seed, sector)
        assert bits(picture, ALTERED[name](picture)) <= DISTANCE


def test_the_sector_of_a_scanner_makes_no_two_pictures_near():
    pictures = [scan(seed) for seed in range(20)]
    apart = [bits(pictures[i], pictures[j]) for i in range(20) for j in range(i)]
    assert min(apart) > DISTANCE + 20
    assert 0.4 * BITS < np.mean(apart) < 0.6 * BITS


def test_the_digest_is_of_shape_and_pixels():
    picture = scan(0)
    expected = hashlib.sha256(b"(240, 320)" + picture.tobytes()).hexdigest()[:32]
    assert fingerprint(picture)["digest"] == expected
    assert fingerprint(picture[:, ::-1])["digest"] != expected
    assert fingerprint(picture.reshape(320, 240))["digest"] != expected


def test_one_changed_pixel_changes_the_digest_and_hardly_the_hash():
    picture = scan(0)
    other = picture.copy()
    other[120, 160] ^= 1
    assert fingerprint(other)["digest"] != fingerprint(picture)["digest"]
    assert bits(picture, other) <= 2


def test_parts_of_an_array_are_read_as_the_picture_they_show():
    picture = scan(0, False)
    assert fingerprint(picture[::2, ::2]) == fingerprint(picture[::2, ::2].copy())


@pytest.mark.parametrize(("shape", "channels"), [((40, 60), 1), ((40, 60, 3), 3)])
def test_sizes_and_channels_are_told(shape, channels):
    seen = fingerprint(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    assert (seen["width"], seen["height"], seen["channels"]) == (60, 40, channels)
    assert len(seen["hash"]) == BITS // 4
    assert set(seen) == {"width", "height", "channels", "digest", "hash", "flag"}


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_one_level_and_a_little_noise_is_blank(level):
    noise = np.random.default_rng(0).integers(-3, 4, (64, 64))
    assert fingerprint((level + noise).clip(0, 255).astype(np.uint8))["flag"] == "blank"


def test_a_dark_picture_that_shows_something_is_not_blank():
    dark = np.zeros((128, 128), np.uint8)
    dark[40:80, 40:80] = 30
    assert "blank" not in (fingerprint(dark)["flag"] or "")


@pytest.mark.parametrize(("size", "tiny"), [((31, 200), True), ((32, 32), False), ((200, 31), True)])
def test_a_side_below_32_pixels_is_tiny(size, tiny):
    picture = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    assert ("tiny" in (fingerprint(picture)["flag"] or "").split(";")) == tiny


def test_flags_are_joined():
    assert fingerprint(np.zeros((8, 8), np.uint8))["flag"] == "blank;tiny"


def test_text_outside_of_the_scan_is_flagged_and_a_clean_scan_is_not():
    clean = scan(0, size=(480, 640))
    fan = Image.new("L", (640, 480))
    fan.paste(Image.fromarray(scan(0)), (160, 120))
    plain = np.asarray(fan)
    ImageDraw.Draw(fan).text((10, 10), "HOSPITAL 12:30  C5-1  MI 1.2", fill=230)
    assert fingerprint(clean)["flag"] is None
    assert fingerprint(plain)["flag"] is None
    assert fingerprint(np.asarray(fan))["flag"] == "burned_in"


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 3), (64, 64), (65, 63)])
def test_every_size_has_a_hash(size):
    assert len(fingerprint(np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8))["hash"]) == BITS // 4
