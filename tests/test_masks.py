"""Regions from the files they are published in."""

import json

import numpy as np
import pytest
from PIL import Image

from ussl.data import masks

SHAPE = (20, 30)
SQUARE = np.zeros(SHAPE, dtype=bool)
SQUARE[5:12, 8:21] = True


def save(path, values, mode=None, **options):
    Image.fromarray(values, mode).save(path, **options)
    return path


def ellipse(shape, centre, axes, angle):
    """Inside of an ellipse: centre x, y; semi-axes; angle of the first in radians. Values up to 1 are inside."""
    y, x = np.indices(shape) - np.array(centre[::-1], dtype=float)[:, None, None]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (u / axes[0]) ** 2 + (v / axes[1]) ** 2


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def refusal(path, size=SHAPE, **options):
    with pytest.raises(ValueError) as caught:
        masks.read(path, size, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("levels", [(0, 1), (0, 255), (20, 200)])
def test_more_than_half_of_the_largest_value_counts(tmp_path, levels):
    grey = np.where(SQUARE, levels[1], levels[0]).astype(np.uint8)
    region = masks.read(save(tmp_path / "a.png", grey), SHAPE)
    assert region.dtype == bool
    np.testing.assert_array_equal(region, SQUARE)
    np.testing.assert_array_equal(masks.read(save(tmp_path / "b.png", np.dstack([grey] * 3)), SHAPE), SQUARE)


@pytest.mark.parametrize("kind", ["<u2", "<i4", "<f4"])
def test_deep_masks_are_read(tmp_path, kind):
    region = masks.read(save(tmp_path / "a.tif", SQUARE.astype(kind) * 3000), SHAPE)
    np.testing.assert_array_equal(region, SQUARE)


def test_one_bit_masks_are_read(tmp_path):
    np.testing.assert_array_equal(masks.read(save(tmp_path / "a.tif", SQUARE), SHAPE), SQUARE)


def test_the_noise_of_a_jpeg_is_no_region(tmp_path):
    region = masks.read(save(tmp_path / "a.jpg", SQUARE.astype(np.uint8) * 255, quality=60), SHAPE)
    assert overlap(region, SQUARE) > 0.9
    noise = np.random.default_rng(0).integers(0, 4, SHAPE, dtype=np.uint8)
    assert not masks.read(save(tmp_path / "b.jpg", noise, quality=100), SHAPE).any()


def test_an_empty_mask_is_empty(tmp_path):
    path = save(tmp_path / "a.png", np.zeros(SHAPE, dtype=np.uint8))
    assert not masks.read(path, SHAPE).any()
    assert not masks.read(path, SHAPE, outline=True).any()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparency_that_varies_is_the_mask(tmp_path, mode):
    alpha = SQUARE.astype(np.uint8) * 255
    grey = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    pixels = np.dstack([*[grey] * (len(mode) - 1), alpha])
    np.testing.assert_array_equal(masks.read(save(tmp_path / "a.png", pixels), SHAPE), SQUARE)


def test_a_transparency_that_is_the_same_everywhere_is_not_the_mask(tmp_path):
    opaque, clear = np.full(SHAPE, 255, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    white = SQUARE.astype(np.uint8) * 255
    np.testing.assert_array_equal(
        masks.read(save(tmp_path / "a.png", np.dstack([*[white] * 3, opaque])), SHAPE), SQUARE
    )
    np.testing.assert_array_equal(
        masks.read(save(tmp_path / "b.png", np.dstack([*[white] * 3, clear])), SHAPE), SQUARE
    )
    assert not masks.read(save(tmp_path / "c.png", np.dstack([*[opaque] * 3, clear])), SHAPE).any()


def test_any_colour_but_black_is_in_a_coloured_mask(tmp_path):
    colours = np.zeros((*SHAPE, 3), dtype=np.uint8)
    colours[5:12, 8:12] = (64, 0, 0)
    colours[5:12, 12:21] = (0, 128, 0)
    np.testing.assert_array_equal(masks.read(save(tmp_path / "a.png", colours), SHAPE), SQUARE)
    palette = Image.fromarray(np.where(SQUARE, 2, 0).astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 64])
    palette.save(tmp_path / "b.png")
    np.testing.assert_array_equal(masks.read(tmp_path / "b.png", SHAPE), SQUARE)


def test_a_mask_of_another_size_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((30, 20), dtype=np.uint8))
    assert refusal(path) == "is 20 x 30 pixels, its picture 30 x 20"
    assert refusal(path, (4, 4)) == "is 20 x 30 pixels, its picture 4 x 4"


def test_files_that_are_no_mask_are_named(tmp_path):
    (tmp_path / "a.png").write_text("not a picture")
    assert refusal(tmp_path / "a.png").startswith("not a mask that can be read")
    assert refusal(tmp_path / "gone.png") == "no such file or directory"
    whole = save(tmp_path / "b.png", np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:200])
    assert refusal(tmp_path / "b.png").startswith("not a mask that can be read")


def test_polygons_are_filled_and_unite(tmp_path):
    """Against corners on pixel centres, whose border belongs to the region."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([[8.0, 5.0], [20.0, 5.0], [20.0, 11.0], [8.0, 11.0]]))
    np.testing.assert_array_equal(masks.read(path, SHAPE), SQUARE)
    path.write_text(json.dumps([[[8, 5], [20, 5], [20, 8], [8, 8]], [[8, 8], [20, 8], [20, 11], [8, 11]], []]))
    np.testing.assert_array_equal(masks.read(path, SHAPE), SQUARE)
    np.testing.assert_array_equal(masks.read(path, SHAPE, outline=True), SQUARE)
    path.write_text("[]")
    assert not masks.read(path, SHAPE).any()
    path.write_text(json.dumps([[-9, -9], [99, -9], [99, 99], [-9, 99]]))
    assert masks.read(path, SHAPE).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "not a polygon: a list of points [x, y]"),
        ('[{"x": 1}]', "not a polygon: a list of points [x, y]"),
        ("[1, 2, 3]", "not a polygon: a list of points [x, y]"),
        ("[[1, 2, 3], [1, 2, 3], [1, 2, 3]]", "not a polygon: a list of points [x, y]"),
        ("[[1, 2], [3], [4, 5]]", "not a polygon: a list of points [x, y]"),
        ("[[1, 2], [3, 4]]", "a polygon of 2 points encloses nothing"),
        ("[[1, 2], [3, 4], [NaN, 4]]", "a polygon with a point that is not finite"),
        ("[[100, 2], [110, 4], [105, 8]]", "a polygon outside of its picture of 30 x 20 pixels"),
        ("[[1, 2", "not a mask that can be read"),
        ("[" * 5000, "not a mask that can be read"),
    ],
)
def test_json_that_is_no_polygon_is_refused(tmp_path, text, reason):
    (tmp_path / "a.JSON").write_text(text)
    assert refusal(tmp_path / "a.JSON").startswith(reason)


def test_a_closed_line_is_filled_with_the_line(tmp_path):
    form = ellipse((120, 160), (80, 60), (50, 35), 0.4)
    whole, line = form <= 1, (form <= 1) & (form > 0.9)
    path = save(tmp_path / "a.png", line.astype(np.uint8) * 255)
    np.testing.assert_array_equal(masks.read(path, line.shape, outline=True), whole)
    np.testing.assert_array_equal(masks.read(path, line.shape), line)


@pytest.mark.parametrize("gap", [2, 5, 12])
def test_small_gaps_of_a_line_are_closed(tmp_path, gap):
    """A rectangle, so that an ellipse would not do."""
    whole = np.zeros((120, 160), dtype=bool)
    whole[30:90, 20:140] = True
    line = whole.copy()
    line[32:88, 22:138] = False
    line[30:32, 60 : 60 + gap] = False
    path = save(tmp_path / "a.png", line.astype(np.uint8) * 255)
    assert overlap(masks.read(path, line.shape, outline=True), whole) > 0.99


def test_an_ellipse_is_fitted_to_a_line_that_stays_open(tmp_path):
    form = ellipse((200, 260), (130, 95), (90, 60), -0.5)
    line = (form <= 1) & (form > 0.95)
    line[:, 150:190] = False
    path = save(tmp_path / "a.png", line.astype(np.uint8) * 255)
    assert overlap(masks.read(path, line.shape, outline=True), form <= 1) > 0.97


def test_an_ellipse_that_leaves_the_picture_is_filled(tmp_path):
    form = ellipse((100, 120), (60, 80), (45, 40), 0.0)
    line = (form <= 1) & (form > 0.92)
    path = save(tmp_path / "a.png", line.astype(np.uint8) * 255)
    assert overlap(masks.read(path, line.shape, outline=True), form <= 1) > 0.97


@pytest.mark.parametrize("where", [(slice(50, 52), slice(10, 90)), (slice(50, 51), slice(40, 41))])
def test_a_line_that_encloses_nothing_is_refused(tmp_path, where):
    line = np.zeros((100, 120), dtype=np.uint8)
    line[where] = 255
    path = save(tmp_path / "a.png", line)
    assert "the line is open and no ellipse fits it" in refusal(path, line.shape, outline=True)


def test_the_region_files_of_a_row_are_its_masks_and_outlines():
    row = {"path": "a", "mask_lesion": "m.png", "mask_organ": None, "outline_head": "o.png", "masked": "x"}
    assert masks.columns(row) == {"mask_lesion": "m.png", "outline_head": "o.png"}
