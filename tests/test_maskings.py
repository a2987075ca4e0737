"""Maskings: counts, independence, and the forms they hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ussl.parts import View
from ussl.phantom.render import render
from ussl.testing import check_masking, tiny_draws, tiny_view
from ussl_plugins.maskings.block import BlockMasking
from ussl_plugins.maskings.random import RandomMasking, shows_scan


def hide(masking, grid=(14, 14), images=8, seed=0):
    view = tiny_view(images, grid[0], grid[1])
    return masking(view, grid, tiny_draws(images, seed))


class Given:
    """Draws that a test chooses."""

    def __init__(self, **streams):
        self.streams = streams

    def uniform(self, stream, *shape):
        value = self.streams[stream]
        return value if isinstance(value, torch.Tensor) else torch.full((1, *shape), value)


@pytest.mark.parametrize(
    ("masking", "options"),
    [
        (RandomMasking, {}),
        (RandomMasking, {"masks": 4, "decode": 0.3}),
        (RandomMasking, {"predict": "all"}),
        (BlockMasking, {}),
        (BlockMasking, {"masks": 3, "decode": 0.5, "ratio": 0.6}),
        (RandomMasking, {"how": "token", "decode": 0.5}),
        (BlockMasking, {"how": "token"}),
        (RandomMasking, {"scan": True, "decode": 0.5}),
        (BlockMasking, {"scan": True, "masks": 2}),
    ],
)
def test_a_masking_keeps_its_contract(masking, options):
    check_masking(masking, **options)


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
@pytest.mark.parametrize(("grid", "ratio", "seen"), [((14, 14), 0.75, 49), ((16, 16), 0.4, 153), ((5, 9), 0.6, 18)])
def test_as_many_patches_are_seen_as_in_mae_in_every_row(masking, grid, ratio, seen):
    mask = hide(masking(ratio=ratio, masks=2), grid)
    patches = grid[0] * grid[1]
    assert mask.seen == seen == int(patches * (1 - ratio))
    assert mask.asked == patches - seen
    assert (mask.hidden.sum(-1) == patches - seen).all()
    assert torch.equal(mask.predict[:, :, 0], mask.hidden)
    assert mask.how == "drop"


def test_random_masking_sees_the_patches_of_lowest_noise():
    noise = torch.tensor([[[0.9, 0.1, 0.5, 0.1, 0.8, 0.7, 0.6, 0.2]]])
    mask = RandomMasking(ratio=0.75)(
        View(torch.zeros(1, 1, 8, 16), torch.zeros(1, 1, 8, 16)), (2, 4), Given(mask=noise)
    )
    assert mask.hidden[0, 0].tolist() == [True, False, True, False, True, True, True, True]


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
def test_partial_decoding_asks_for_a_random_part_of_what_is_hidden(masking):
    mask = hide(masking(ratio=0.5, decode=0.3, masks=2))
    assert mask.asked == round(0.3 * 98)
    assert (mask.predict.sum(-1) == mask.asked).all()
    assert not (mask.predict[:, :, 0] & ~mask.hidden).any()
    chosen = mask.predict[:, :, 0].reshape(16, 196).float()
    assert not torch.equal(chosen[0], chosen[1])
    assert hide(masking(decode=0.001)).asked == 1


def test_all_patches_can_be_asked_for():
    mask = hide(RandomMasking(predict="all"))
    assert mask.predict.shape == (8, 1, 1, 196)
    assert mask.predict.all()
    assert mask.asked == 196
    assert mask.seen == 49


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
def test_images_masks_and_seeds_get_masks_of_their_own(masking):
    mask = hide(masking(masks=3)).hidden
    rows = mask.reshape(24, 196)
    assert len({tuple(row) for row in rows.tolist()}) == 24
    assert not torch.equal(mask, hide(masking(masks=3), seed=1).hidden)


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
def test_every_patch_can_be_hidden_and_seen(masking):
    share = hide(masking(ratio=0.5), (6, 4), images=400).hidden.float().mean((0, 1))
    assert share.min() > 0.1
    assert share.max() < 0.95
    sides = share.view(6, 4)
    assert (sides - sides.flip(0)).abs().max() < 0.12
    assert (sides - sides.flip(1)).abs().max() < 0.12


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
@pytest.mark.parametrize("options", [{}, {"decode": 0.5}])
def test_hidden_patches_may_be_told_to_stay_as_tokens(masking, options):
    dropped, told = hide(masking(**options)), hide(masking(how="token", **options))
    assert (dropped.how, told.how) == ("drop", "token")
    assert torch.equal(dropped.hidden, told.hidden)
    assert torch.equal(dropped.predict, told.predict)
    assert hide(RandomMasking(how="token", predict="all")).how == "token"


def fan_views(images=6, side=112):
    """Views (B, 1, side, side) of simulated livers: fans in black corners."""
    pictures = [render(0, i, 0, "liver", "normal", side, 60.0).image for i in range(images)]
    image = torch.from_numpy(np.stack(pictures))[:, None] / 255
    return View(image, image)


def black_outside(image, grid):
    """(N,) bool of one view (h, w), by loops: patches all black, with no lighter one on a side of row or column."""
    side = image.shape[0] // grid
    lit = [
        [image[r * side : (r + 1) * side, c * side : (c + 1) * side].max() > 10 / 255 for c in range(grid)]
        for r in range(grid)
    ]
    column = [[lit[r][c] for r in range(grid)] for c in range(grid)]
    return [
        not lit[r][c] and not (any(lit[r][:c]) and any(lit[r][c:]) and any(column[c][:r]) and any(column[c][r:]))
        for r in range(grid)
        for c in range(grid)
    ]


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
@pytest.mark.parametrize("decode", [1.0, 0.4])
def test_black_corners_of_a_fan_are_neither_hidden_nor_predicted(masking, decode):
    view = fan_views()
    black = torch.tensor([black_outside(image[0], 14) for image in view.image])
    assert (black.sum(1) > 20).all()
    mask = masking(ratio=0.5, masks=2, decode=decode, scan=True)(view, (14, 14), tiny_draws(6))
    assert (mask.hidden.sum(-1) == 98).all()
    assert (mask.predict.sum(-1) == mask.asked).all()
    assert not (mask.hidden & black[:, None]).any()
    assert not (mask.predict & black[:, None, None]).any()
    plain = masking(ratio=0.5, masks=2, decode=decode)(view, (14, 14), tiny_draws(6))
    assert (plain.hidden & black[:, None]).any()


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
def test_where_the_scan_is_too_small_all_of_it_is_hidden_and_predicted_first(masking):
    image = torch.zeros(5, 1, 32, 32)
    image[:, :, 8:16, 12:24] = 0.5  # 2 x 3 patches of 4
    scan = torch.zeros(8, 8, dtype=torch.bool)
    scan[2:4, 3:6] = True
    options = {"ratio": 0.5, "decode": 0.1, "scan": True}
    mask = masking(**options)(View(image, image), (8, 8), tiny_draws(5))
    assert (mask.hidden.sum(-1) == 32).all()
    assert mask.hidden[:, 0, scan.flatten()].all()
    assert mask.asked == 3
    assert not mask.predict[..., ~scan.flatten()].any()
    others = mask.hidden[:, 0, ~scan.flatten()]
    assert not (others == others[:1]).all()


def test_a_black_cyst_is_of_the_scan_and_the_degraded_picture_does_not_matter():
    clean = torch.full((1, 1, 32, 32), 0.4)
    clean[..., 8:24, 8:24] = 0
    clean[..., :4] = 0
    view = View(torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)), clean)
    shown = shows_scan(view, (8, 8))[0].view(8, 8)
    assert shown[:, 1:].all()
    assert not shown[:, 0].any()
    lifted = View(view.image, 0.2 + clean / 2)  # less contrast: black is not 0 any more
    assert torch.equal(shows_scan(lifted, (8, 8))[0].view(8, 8), shown)


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
@pytest.mark.parametrize("options", [{}, {"decode": 0.5, "masks": 2}])
def test_where_all_is_scan_the_masks_are_those_without_the_option(masking, options):
    view = tiny_view(8, 56, 56)  # of noise: every patch has light pixels
    with_scan, without = (masking(scan=scan, **options)(view, (14, 14), tiny_draws(8)) for scan in (True, False))
    assert torch.equal(with_scan.hidden, without.hidden)
    assert torch.equal(with_scan.predict, without.predict)


@pytest.mark.parametrize("masking", [RandomMasking, BlockMasking])
def test_local_views_stay_whole(masking):
    view = tiny_view(2, 8, 8)
    assert masking()(View(view.image, view.clean, "local"), (8, 8), tiny_draws(2)) is None
    assert masking()(view, (8, 8), tiny_draws(2)) is not None


def neighbours(hidden):
    """The mean share of a hidden patch's right and lower neighbours that are hidden, by a plain loop."""
    same = total = 0
    for image in hidden.tolist():
        for row in range(14):
            for column in range(14):
                if image[row][column]:
                    for r, c in ((row + 1, column), (row, column + 1)):
                        if r < 14 and c < 14:
                            same += image[r][c]
                            total += 1
    return same / total


def test_blocks_are_compact_where_random_patches_are_not():
    block = neighbours(hide(BlockMasking(ratio=0.4, min_patches=16)).hidden[:, 0].view(-1, 14, 14))
    scattered = neighbours(hide(RandomMasking(ratio=0.4)).hidden[:, 0].view(-1, 14, 14))
    assert block > 0.8
    assert scattered < 0.5


def test_a_first_block_has_the_area_and_form_that_were_drawn():
    # area 4 + 0.5 (16 - 4) = 10 patches of aspect 1: 3 x 3, placed at 0.5 (8 - 3 + 1) = 3; the rest grows around it
    view = View(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    hidden = BlockMasking(ratio=0.25, min_patches=4)(view, (8, 8), Given(block=0.5)).hidden[0, 0].view(8, 8)
    assert hidden[3:6, 3:6].all()
    assert hidden.sum() == 16
    assert hidden[2:7, 2:7].sum() == 16


def test_a_block_of_the_full_count_is_one_rectangle():
    # area 16 and the smallest aspect 0.25 = height / width: height 2, width 8
    place = torch.tensor([1.0, 0.0, 0.4, 0.0]).view(1, 4, 1, 1, 1).expand(1, 4, 1, 16, 1).clone()
    place[:, 1] = 1.0
    view = View(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    hidden = BlockMasking(ratio=0.25, aspect=0.25)(view, (8, 8), Given(block=place)).hidden[0, 0].view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4] = True  # 0.4 (8 - 2 + 1) = 2.8
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomMasking(ratio=1.0), "between 0 and 1"),
        (lambda: RandomMasking(ratio=0.0), "between 0 and 1"),
        (lambda: RandomMasking(masks=0), "at least 1"),
        (lambda: RandomMasking(decode=0.0), "above 0"),
        (lambda: RandomMasking(predict="all", decode=0.5), "decode has no effect"),
        (lambda: RandomMasking(predict="seen"), "hidden or all"),
        (lambda: RandomMasking(how="fill"), "drop or token"),
        (lambda: BlockMasking(how="fill"), "drop or token"),
        (lambda: BlockMasking(min_patches=0), "at least 1"),
        (lambda: BlockMasking(aspect=2.0), "at most 1"),
        (lambda: hide(RandomMasking(ratio=0.9), (2, 2)), "nothing to see"),
        (lambda: hide(BlockMasking(ratio=0.9), (2, 2)), "nothing to see"),
        (lambda: hide(BlockMasking(ratio=0.2, min_patches=16), (4, 4)), "at most 4"),
    ],
)
def test_options_that_cannot_be_met_are_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
