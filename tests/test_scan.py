"""The scan in one picture: where it is, what stands beside it, and pictures without that."""

from __future__ import annotations

import csv

import layouts
import numpy as np
import pytest
from layouts import FORMS, MARKS, compressed, ellipse, fan, marked, overlap, rectangle, shown, speckle
from PIL import Image

from ussl.data import pictures
from ussl.data.colour import colourless
from ussl.data.scan import burned_in, cleaned, kind, scan_box, scan_mask

ALL = tuple(MARKS)


def beside(mask):
    """The marks of a layout whose places are free of `mask`."""
    drawn = {name: marked(np.zeros(mask.shape, np.uint8), name) > 0 for name in ALL}
    return [
        name
        for name, where in drawn.items()
        if not (where & layouts.ndimage.binary_dilation(mask, iterations=8)).any()
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("background", "quality"), [(0, None), (0, 60), (60, None), (30, 75)])
def test_a_scan_is_found_among_what_a_display_shows_around_it(form, background, quality):
    mask = FORMS[form]
    picture = marked(shown(mask, background), *beside(mask))
    if quality:
        picture = compressed(picture, quality)
    assert overlap(scan_mask(picture), mask) > 0.95
    assert burned_in(picture)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quality", [None, 50, 75, 95])
def test_a_scan_without_marks_is_not_burned_in(form, quality):
    picture = shown(FORMS[form])
    assert not burned_in(compressed(picture, quality) if quality else picture)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("quality", [None, 60])
def test_every_kind_of_mark_is_seen(mark, quality):
    picture = marked(shown(fan(radii=(0.2, 0.9), half=0.5)), mark)
    assert burned_in(compressed(picture, quality) if quality else picture)


@pytest.mark.parametrize("form", ["linear", "convex", "phased"])
def test_cysts_and_shadows_are_of_the_scan(form):
    shape, mask = layouts.SHAPE, FORMS[form]
    shadow = ellipse(shape, (0.9, 0.58), (0.45, 0.03))
    dark = ellipse(shape, (0.5, 0.45), (0.12, 0.1)) | shadow
    found = scan_mask(shown(mask, dark=dark))
    assert overlap(found, mask) > 0.95
    assert found[dark & mask].mean() > 0.95


def test_a_fan_is_completed_where_its_side_or_its_middle_is_dark():
    mask = FORMS["convex"]
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    side = x > 0.5 * mask.shape[1] + 0.5 * y  # beside the right edge, but for its upper and lower end
    side &= (y > 0.3 * mask.shape[0]) & (y < 0.65 * mask.shape[0])
    assert (side & mask).sum() > 0.01 * mask.size
    assert overlap(scan_mask(shown(mask, dark=side)), mask) > 0.95


def test_a_band_of_black_does_not_cut_a_fan_in_two():
    radius = np.hypot(*(np.mgrid[: layouts.SHAPE[0], : layouts.SHAPE[1]] - np.array([-28.8, 192.0])[:, None, None]))
    band = abs(radius - 140) < 9
    mask = FORMS["convex"]
    assert overlap(scan_mask(shown(mask, dark=band)), mask) > 0.95


@pytest.mark.parametrize("half", [rectangle((288, 192), (0.12, 0.12, 0.7, 0.76)), fan((288, 192), radii=(0.15, 0.6))])
def test_panels_have_an_outline_each(half):
    mask = np.concatenate([half, half], 1)
    assert overlap(scan_mask(shown(mask)), mask) > 0.94


def dark_at_the_edge():
    return ellipse((256, 256), (1.0, 0.6), (0.4, 0.2))


@pytest.mark.parametrize(
    "picture",
    [
        speckle((256, 256)),
        np.stack([speckle((200, 300))] * 3, -1),
        np.where(dark_at_the_edge(), 0, speckle((256, 256))).astype(np.uint8),
        np.zeros((64, 64), np.uint8),
        np.full((64, 64), 200, np.uint8),
        np.zeros((1, 1), np.uint8),
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.tile(np.arange(256, dtype=np.uint8), (100, 1)),
    ],
)
def test_a_picture_whose_scan_cannot_be_told_from_its_surround_is_all_scan(picture):
    assert scan_mask(picture).all()
    assert scan_mask(picture).shape == picture.shape[:2]
    assert scan_box(picture) == (0, 0, *picture.shape[:2])
    assert kind(picture) == "whole"
    assert not burned_in(picture)
    assert np.array_equal(cleaned(picture, "crop"), picture)


def test_a_screenshot_on_a_page_is_looked_into():
    page = np.full((400, 560), 255, np.uint8)
    mask = np.zeros(page.shape, dtype=bool)
    mask[60:348, 80:464] = FORMS["linear"]
    page[60:348, 80:464] = marked(shown(FORMS["linear"], background=50), *beside(FORMS["linear"]))
    assert overlap(scan_mask(page), mask) > 0.93
    assert burned_in(page)


@pytest.mark.parametrize("factor", [0.25, 3])
def test_a_scan_is_the_same_at_other_sizes(factor):
    size = [round(n * factor) for n in layouts.SHAPE]
    mask = fan(size)
    assert overlap(scan_mask(marked(shown(mask), "text", "ruler")), mask) > 0.94


def test_rotation_and_mirroring_turn_the_mask_alike():
    picture = marked(shown(FORMS["convex"]), "bar", "logo")
    found = scan_mask(picture)
    for turn in (np.rot90, np.fliplr, np.flipud):
        assert overlap(scan_mask(np.ascontiguousarray(turn(picture))), turn(found)) > 0.98


@pytest.mark.parametrize(
    ("form", "expected"), [("linear", "linear"), ("convex", "convex"), ("phased", "phased"), ("tilted", "convex")]
)
def test_the_kind_of_probe_is_told_from_the_outline(form, expected):
    assert kind(marked(shown(FORMS[form]), "text", "ruler")) == expected


def test_cleaned_pictures_keep_the_scan_and_nothing_else():
    mask = FORMS["convex"]
    picture = marked(shown(mask), *beside(mask))
    found, (y, x, height, width) = scan_mask(picture), scan_box(picture)
    assert cleaned(picture) is picture
    masked = cleaned(picture, "mask")
    assert np.array_equal(masked, np.where(found, picture, 0))
    assert not burned_in(masked)
    assert np.array_equal(cleaned(picture, "crop"), masked[y : y + height, x : x + width])
    assert not masked[:y].any()
    assert masked[y].any() or masked[y + 1].any()
    colour = np.stack([picture, picture, np.where(found, picture, 99)], -1).astype(np.uint8)
    assert np.array_equal(cleaned(colour, "mask"), np.where(scan_mask(colour)[..., None], colour, 0))


def tinted(picture, seed=0):
    """Grey as JPEG leaves it: channels a few levels apart."""
    noise = np.random.default_rng(seed).integers(-6, 7, (*picture.shape, 3))
    return np.clip(picture[..., None] + noise, 0, 255).astype(np.uint8)


def test_grey_with_the_tints_of_compression_becomes_one_channel():
    picture = tinted(shown(FORMS["convex"]))
    assert colourless(picture)
    grey = cleaned(picture, grey=True)
    assert np.array_equal(grey, np.asarray(Image.fromarray(picture).convert("L")))
    assert np.array_equal(cleaned(picture), picture)
    jpeg = compressed(np.stack([shown(FORMS["convex"])] * 3, -1), 60)
    assert cleaned(jpeg, grey=True).ndim == 2


def test_colour_that_says_something_stays():
    picture = tinted(shown(FORMS["convex"]))
    doppler, caliper, sepia = picture.copy(), picture.copy(), picture.copy()
    doppler[120:150, 180:210, 0] = 220
    caliper[140, 190:201] = caliper[135:146, 195] = (255, 255, 0)
    sepia[..., 2] = sepia[..., 2] * 0.6
    for coloured in (doppler, caliper, sepia):
        assert not colourless(coloured)
        assert cleaned(coloured, grey=True).shape == coloured.shape
    logo = picture.copy()
    logo[5:25, 350:370] = (0, 60, 200)
    assert cleaned(logo, grey=True).ndim == 3
    assert cleaned(logo, "mask", grey=True).ndim == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: scan_mask(np.zeros((4, 4))), r"uint8 \(H, W\) or \(H, W, 3\), not float64 \(4, 4\)"),
        (lambda: burned_in(np.zeros((4, 4, 4), np.uint8)), r"not uint8 \(4, 4, 4\)"),
        (lambda: cleaned(np.zeros((0, 4), np.uint8)), r"not uint8 \(0, 4\)"),
        (lambda: cleaned(np.zeros((4, 4), np.uint8), "blur"), "scan is 'blur'; write keep, mask or crop"),
    ],
)
def test_what_is_no_picture_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def rows(ultrasound, source, count):
    with open(ultrasound / "manifest.csv") as file:
        found = [row for row in csv.DictReader(file) if row["source"] == source]
    return found[:: len(found) // count]


def test_livers_and_heads_lie_in_the_scans_of_real_pictures(ultrasound):
    for source, least in (("liver735", 0.85), ("hc18", 0.97)):
        for row in rows(ultrasound, source, 12):
            organ = pictures.read(ultrasound / row["mask_organ"]) > 0
            picture = pictures.read(ultrasound / row["path"])
            assert scan_mask(picture)[organ].mean() > least, row["path"]
            assert source != "liver735" or not scan_mask(picture).all()


def test_real_crops_are_all_scan(ultrasound):
    whole = [
        scan_mask(pictures.read(ultrasound / row["path"])).all() for row in rows(ultrasound, "ba_gallbladder", 60)
    ]
    assert np.mean(whole) > 0.95
