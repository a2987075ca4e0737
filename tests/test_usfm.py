"""USFM: what is filled and which frequencies go, the head, and both losses against plain loops."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from processes import run
from torch import nn

from ussl.parts import Mask, Student, Tokens, View
from ussl.testing import TinyEncoder, TinyTarget, check_masking, check_objective, tiny_draws, tiny_student, tiny_view
from ussl_plugins.encoders.vit import VisionTransformer
from ussl_plugins.maskings.usfm import UsfmMasking, radii
from ussl_plugins.objectives.usfm import Restoration
from ussl_plugins.targets.pixels import PixelTarget

PUBLISHED = [4, 5, 6, 7, 9, 11, 14, 18, 23, 29, 37, 48, 62, 80, 100]


def mask_of(view, grid=(14, 14), seed=0, **options):
    return UsfmMasking(**options)(view, grid, tiny_draws(len(view.image), seed))


# the masking


@pytest.mark.parametrize(
    "options",
    [{}, {"masks": 2}, {"spatial_ratio": 0.0}, {"frequency_ratio": 0.0}, {"cell": 4, "base": 2, "increase": 0.5}],
)
def test_the_masking_keeps_its_contract(options):
    check_masking(UsfmMasking, **options)


def test_thirty_cells_of_32_pixels_are_filled():
    """Of 7 x 7 cells ceil(0.6 x 49) = 30, which are 120 of 196 patches."""
    mask = mask_of(tiny_view(6, 224, 224))
    assert (mask.seen, mask.asked, mask.how) == (76, 120, "fill")
    assert (mask.hidden.sum(-1) == 120).all()
    assert torch.equal(mask.predict[:, :, 0], mask.hidden)
    cells = mask.hidden.view(6, 7, 2, 7, 2).transpose(2, 3).flatten(3).float().mean(-1)
    assert set(cells.unique().tolist()) == {0, 1}
    assert (cells.sum((1, 2)) == 30).all()
    assert len({tuple(row.flatten().tolist()) for row in cells}) == 6  # each image its own


@pytest.mark.parametrize("channels", [1, 3])
def test_cells_are_filled_with_the_mean_of_each_channel_of_the_picture(channels):
    view = tiny_view(2, 64, 96, channels)
    mask = mask_of(view, (4, 6), frequency_ratio=0.0, masks=2)
    assert mask.bands is None
    for b, k, n in np.ndindex(2, 2, 24):
        y, x = 16 * (n // 6), 16 * (n % 6)
        for c in range(channels):
            patch, before = mask.image[b, k, c, y : y + 16, x : x + 16], view.image[b, c, y : y + 16, x : x + 16]
            if mask.hidden[b, k, n]:
                assert (patch - view.image[b, c].mean()).abs().max() < 1e-6
            else:
                assert torch.equal(patch, before)


def test_radii_are_those_of_the_published_example():
    assert radii(224, 4, 0.3, 20) == PUBLISHED
    assert radii(224, 4, 0.3, 5)[:9] == [4, 5, 6, 7, 9, 11, 14, 18, 23]
    assert radii(16, 4, 0.3, 20) == [4, 5, 6, 7]
    assert radii(6, 4, 0.3, 20) == []


def rings_in(bands, bounds):
    """Which rings of one picture (h, w) are removed, by walking over all frequencies; every ring whole or not."""
    inside = [set() for _ in range(len(bounds) - 1)]
    for y, x in np.ndindex(*bands.shape):
        distance = np.hypot(y - bands.shape[0] // 2, x - bands.shape[1] // 2)
        found = [k for k in range(len(bounds) - 1) if bounds[k] < distance <= bounds[k + 1]]
        if found:
            inside[found[0]].add(bool(bands[y, x]))
        else:
            assert not bands[y, x]  # the disc within and what lies beyond stay
    assert all(len(ring) == 1 for ring in inside)
    return [k for k, ring in enumerate(inside) if ring == {True}]


def test_six_of_the_published_rings_are_removed_from_each_image():
    mask = mask_of(tiny_view(2, 224, 224))
    assert mask.bands.shape == (2, 1, 224, 224)
    found = [rings_in(bands.numpy(), PUBLISHED) for bands in mask.bands[:, 0]]
    assert [len(rings) for rings in found] == [6, 6]  # int(0.4 x 15)
    assert found[0] != found[1]


@pytest.mark.parametrize("size", [(32, 32), (33, 33)])
def test_removed_frequencies_are_gone_and_the_others_as_they_were(size):
    view = tiny_view(3, *size, 3)
    mask = mask_of(view, (1, 1), spatial_ratio=0.0, masks=2)
    assert not mask.hidden.any()
    assert mask.predict.all()
    assert (mask.seen, mask.asked) == (1, 1)
    for b, k, c in np.ndindex(3, 2, 3):
        spectrum = np.fft.fftshift(np.fft.fft2(view.image[b, c].double().numpy()))
        spectrum[mask.bands[b, k].numpy()] = 0
        expected = np.fft.ifft2(np.fft.ifftshift(spectrum))
        assert abs(expected.imag).max() < 1e-12  # so that nothing is lost with it
        assert abs(mask.image[b, k, c].numpy() - expected.real).max() < 1e-6
    assert torch.allclose(mask.image.mean((-2, -1)), view.image.mean((-2, -1))[:, None].expand(-1, 2, -1), atol=1e-6)
    assert mask.image.amax() > 1  # not clamped, which would put frequencies back
    assert mask.image.amin() < 0


def test_the_picture_is_filled_after_its_frequencies_were_removed():
    view = tiny_view(2, 64, 64)
    both, bands = mask_of(view, (4, 4)), mask_of(view, (4, 4), spatial_ratio=0.0)
    assert torch.equal(both.bands, bands.bands)
    pixels = both.hidden.view(2, 1, 1, 4, 4).repeat_interleave(16, -1).repeat_interleave(16, -2)
    mean = view.image.mean((-2, -1), keepdim=True)[:, None].expand_as(both.image)
    assert torch.equal(both.image, torch.where(pixels, mean, bands.image))


def test_rings_of_an_oblong_picture_are_round_in_cycles_a_pixel():
    mask = mask_of(tiny_view(1, 32, 64), (4, 8), spatial_ratio=0.0)
    wide = mask.bands[0, 0]
    for y, x in np.ndindex(32, 64):
        if (x - 32) % 2 == 0 and abs(y - 16) < 16:
            assert wide[y, x] == wide[16 + (x - 32) // 2, 32 + 2 * (y - 16)]  # the axes exchanged


def test_local_views_stay_whole():
    view = tiny_view(2, 32, 32)
    assert mask_of(View(view.image, view.clean, "local"), (2, 2)) is None


@pytest.mark.parametrize(
    ("size", "grid", "side"),
    [((224, 224), (16, 16), 28), ((64, 64), (8, 8), 32), ((16, 16), (4, 4), 8), ((18, 48), (3, 8), 6)],
)
def test_cells_are_smaller_where_32_pixels_do_not_fit(size, grid, side):
    cells = size[0] * size[1] // side**2
    patches = (side * grid[0] // size[0]) ** 2
    assert mask_of(tiny_view(1, *size), grid).asked == int(np.ceil(0.6 * cells)) * patches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_ratio": 1.0}, "spatial_ratio is 1.0; write a fraction below 1"),
        ({"frequency_ratio": -0.1}, "frequency_ratio is -0.1"),
        ({"spatial_ratio": 0.0, "frequency_ratio": 0.0}, "are both 0, so nothing is masked"),
        ({"masks": 0}, "masks is 0"),
        ({"cell": 0}, "cell is 0"),
        ({"cell": 32, "spatial_ratio": 0.0}, "cell has no effect when spatial_ratio is 0"),
        ({"base": 4, "frequency_ratio": 0.0}, "base has no effect when frequency_ratio is 0"),
        ({"increase": 0.2}, "so radii would not grow; write increase: 0.25 or more"),  # would loop for ever
        ({"base": 3}, "so radii would not grow; write increase: 0.34 or more"),
        ({"base": 0}, "base is 0"),
        ({"max_increase": 0}, "max_increase 0"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UsfmMasking(**options)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"cell": 24}, 64, "^cell is 24, which is no multiple of the patch, 16 pixels; write cell: 32$"),
        ({"cell": 48}, 64, "^cell is 48, which does not divide a view of 64 x 64; write cell: 32$"),
        ({"cell": 64}, 64, "^cell is 64, which leaves nothing to see of .* at spatial_ratio 0.6; write cell: 32$"),
        (
            {"spatial_ratio": 0.99},
            64,
            "^spatial_ratio 0.99 leaves nothing to see of a view of 64 x 64 with patches of 16",
        ),
        ({"base": 40}, 64, "has no rings of frequencies from base 40 on: write a lower base"),
    ],
)
def test_options_that_do_not_fit_the_view_are_refused(options, size, message):
    with pytest.raises(ValueError, match=message):
        mask_of(tiny_view(1, size, size), (4, 4), **options)


# the objective


def parts(dtype=torch.float64, **options):
    torch.manual_seed(0)
    student = tiny_student()
    target = PixelTarget(student, norm=False)
    return student.to(dtype), target.to(dtype), Restoration(student, target, **options).to(dtype)


def asked_of(view, dtype=torch.float64, grid=(4, 4), **options):
    """The view in that precision, and its mask."""
    view = View(view.image.to(dtype), view.clean.to(dtype))
    return view, mask_of(view, grid, **options)


def dft(size):
    """(n, n) the matrix of the discrete Fourier transform that keeps lengths."""
    turns = np.outer(np.arange(size), np.arange(size)) / size
    return torch.from_numpy(np.exp(-2j * np.pi * turns) / size**0.5)


def plain(student, objective, view, mask, alpha=1.0, spectrum="batch", frequency_weight=0.1):
    """Both losses and their sum, image by image and patch by patch, from the formulas."""
    tokens = student([view], [mask])[0].patches
    weight, bias = objective.decoder[0].weight[:, :, 0, 0], objective.decoder[0].bias
    height, width = view.image.shape[-2:]
    mean, std = (torch.tensor(x).double() for x in (student.encoder.mean, student.encoder.std))
    wrong, pixels, spectra = 0.0, 0, []
    for b, k in np.ndindex(*mask.hidden.shape[:2]):
        restored, truth = (torch.empty(3, height, width, dtype=torch.float64) for _ in range(2))
        for n in range(mask.hidden.shape[-1]):
            rows, columns = slice(4 * (n // 4), 4 * (n // 4) + 4), slice(4 * (n % 4), 4 * (n % 4) + 4)
            said = (weight @ tokens[b, k, n] + bias).view(3, 4, 4)  # PixelShuffle: channel, row, column
            x = (view.clean[b, 0, rows, columns] - mean[:, None, None]) / std[:, None, None]
            truth[:, rows, columns] = x
            if mask.predict[b, k, 0, n]:
                wrong, pixels = wrong + (x - said).abs().sum(), pixels + 16
                restored[:, rows, columns] = said
            else:
                restored[:, rows, columns] = 0.5 * said.detach() + 0.5 * x
        spectra.append(dft(height) @ (restored - truth).to(torch.complex128) @ dft(width).T)
    spatial = wrong / (pixels * 3 + 1e-5)
    spectra = torch.stack(spectra)
    if spectrum == "batch":
        spectra = spectra.mean(0, keepdim=True)
    w = torch.log(1 + spectra.detach().abs() ** alpha)
    frequency = (w / w.max() * (spectra.real**2 + spectra.imag**2)).mean()
    return spatial + frequency_weight * frequency, spatial, frequency


@pytest.mark.parametrize(
    ("given", "masking"),
    [
        ({}, {}),
        ({"spectrum": "image"}, {"masks": 2}),
        ({"spectrum": "image", "alpha": 0.5, "frequency_weight": 3.0}, {}),
        ({"alpha": 2.0}, {"masks": 2, "spatial_ratio": 0.0}),
    ],
)
def test_losses_and_gradients_are_those_of_plain_loops(given, masking):
    student, target, objective = parts(**given)
    view, mask = asked_of(tiny_view(3), **masking)
    found = objective(student([view], [mask]), target([view]), [mask])
    expected = plain(student, objective, view, mask, **given)
    for name, value in zip(("loss", "spatial", "frequency"), expected, strict=True):
        assert abs(found[name] - value) < 1e-10, name
    weights = [*student.parameters(), *objective.parameters()]
    for a, b in zip(
        torch.autograd.grad(found["loss"], weights), torch.autograd.grad(expected[0], weights), strict=True
    ):
        assert (a - b).abs().max() < 1e-10


def answer(objective, bias):
    """Make the head say the same everywhere."""
    with torch.no_grad():
        objective.decoder[0].weight.zero_()
        objective.decoder[0].bias.fill_(bias)


@pytest.mark.parametrize("spectrum", ["batch", "image"])
def test_a_hand_made_error_of_one_half_everywhere(spectrum):
    """|D| is 1/2 in every pixel, so sqrt(16 x 16) / 2 at frequency 0 alone: its square over 16 x 16 is 1/4."""
    student, target, objective = parts(spectrum=spectrum)
    view, mask = asked_of(tiny_view(2), spatial_ratio=0.0)
    normalised = [(0.5 - m) / s for m, s in zip(student.encoder.mean, student.encoder.std, strict=True)]
    view.clean = torch.full_like(view.clean, 0.5)
    answer(objective, 0.0)
    with torch.no_grad():
        objective.decoder[0].bias.view(3, 16).copy_(torch.tensor(normalised)[:, None] + 0.5)
    found = objective(student([view], [mask]), target([view]), [mask])
    assert abs(found["spatial"] - 0.5) < 1e-6
    assert abs(found["frequency"] - 0.25) < 1e-6
    assert abs(found["loss"] - 0.525) < 1e-6


@pytest.mark.parametrize("spectrum", ["batch", "image"])
def test_a_perfect_restoration_costs_nothing(spectrum):
    student, _, objective = parts(spectrum=spectrum)
    view, mask = asked_of(tiny_view(2))
    answer(objective, 0.0)
    found = objective(
        student([view], [mask]), [Tokens(None, torch.zeros(2, 1, 16, 48).double(), None, (4, 4))], [mask]
    )
    found["loss"].backward()
    assert found["loss"] == 0
    assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_without_its_weight_the_loss_of_frequencies_is_left_out():
    student, target, objective = parts(frequency_weight=0.0)
    view, mask = asked_of(tiny_view(2))
    found = objective(student([view], [mask]), target([view]), [mask])
    assert found["loss"] == found["spatial"]
    assert found["frequency"] == 0
    assert objective.additive
    assert not parts()[2].additive


def test_chance_is_the_loss_of_one_colour_everywhere():
    student, target, objective = parts(frequency_weight=0.0)
    view, mask = asked_of(tiny_view(3))
    chance = objective(student([view], [mask]), target([view]), [mask])["chance"]
    pixels = mask.hidden.view(3, 1, 4, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    values = view.clean[pixels].numpy()
    expected = np.mean([abs(values - np.median(values)).mean() / s for s in student.encoder.std])
    assert abs(chance - expected) < 1e-3  # torch's median of an even count is the lower of two


class Whole(TinyEncoder):
    """Gives a token for every patch, whatever is masked."""

    def forward(self, image, mask=None):
        if mask is None:
            return super().forward(image)
        image = image[:, None].expand(-1, mask.hidden.shape[1], -1, -1, -1)
        return super().forward(image[:, 0], Mask(mask.hidden, mask.predict, mask.seen, mask.asked, "fill", image))


@pytest.mark.parametrize("options", [{}, {"spectrum": "image"}, {"frequency_weight": 0.0}])
def test_the_objective_keeps_its_contract(options):
    torch.manual_seed(0)
    check_objective(Restoration, student=Student(Whole()), target=partial(PixelTarget, norm=False), **options)


def test_weights_have_the_names_of_the_released_code():
    shapes = {name: tuple(x.shape) for name, x in parts()[2].state_dict().items()}
    assert shapes == {"decoder.0.weight": (48, 16, 1, 1), "decoder.0.bias": (48,)}


def test_a_vision_transformer_restores_pictures():
    torch.manual_seed(0)
    student = Student(VisionTransformer(size="tiny", depth=1, patch=16, image_size=64)).double()
    target = PixelTarget(student, norm=False).double()
    objective = Restoration(student, target).double()
    view, mask = asked_of(tiny_view(2, 64, 64, 3), masks=2)
    outputs = student([view], [mask])
    assert objective.restore(outputs[0]).shape == (4, 3, 64, 64)
    loss = objective(outputs, target([view]), [mask])["loss"]
    loss.backward()
    assert loss.dtype == torch.float64
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)


def steps(rank=0, world=1):
    """Loss and gradients of this rank's share of four images, for both kinds of spectra."""
    found = []
    for spectrum in ("batch", "image"):
        student, target, objective = parts(spectrum=spectrum)
        view, mask = asked_of(tiny_view(4))
        rows = slice(rank * 4 // world, (rank + 1) * 4 // world)
        view = View(view.image[rows], view.clean[rows])
        mask = Mask(mask.hidden[rows], mask.predict[rows], mask.seen, mask.asked, "fill", mask.image[rows])
        loss = objective(student([view], [mask]), target([view]), [mask])["loss"]
        weights = nn.ModuleList([student, objective]).parameters()
        found += [loss.detach(), *torch.autograd.grad(loss, list(weights))]
    return found


def test_two_processes_are_as_one():
    for expected, *found in zip(steps(), *run(steps), strict=True):
        mean = sum(found) / 2  # as DDP takes it
        assert (mean - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequency_weight": -1.0}, "frequency_weight is -1.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"spectrum": "all"}, "spectrum is 'all'; write batch or image"),
        ({"frequency_weight": 0.0, "alpha": 1.0}, "alpha has no effect when frequency_weight is 0"),
        ({"frequency_weight": 0.0, "spectrum": "image"}, "spectrum has no effect"),
    ],
)
def test_settings_of_the_objective_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        parts(**options)


@pytest.mark.parametrize("target", [lambda student: None, PixelTarget, TinyTarget])
def test_a_target_that_is_not_the_picture_is_refused(target):
    student = tiny_student()
    with pytest.raises(ValueError, match=r"write target: \{name: pixels, norm: false\}"):
        Restoration(student, target(student))


def test_masks_that_leave_nothing_to_restore_are_refused():
    student, target, objective = parts()
    view, mask = asked_of(tiny_view(2))
    whole, dropped = student([view], [None]), Mask(mask.hidden, mask.predict, mask.seen, mask.asked)
    with pytest.raises(ValueError, match="needs a mask for every view with a target; write masking: usfm"):
        objective(whole, target([view]), [None])
    with pytest.raises(ValueError, match="needs a token for every patch"):
        objective(student([view], [dropped]), target([view]), [dropped])
    with pytest.raises(ValueError, match="a target for at least one view"):
        objective(whole, [None], [mask])
