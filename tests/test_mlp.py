"""The projection head: its layers, their first weights, and over which rows its batch norms reckon."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ussl.parts import Student, Tokens
from ussl.testing import TinyEncoder, check_head, tiny_view
from ussl_plugins.heads.mlp import Mlp


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(x):
    return Tokens(x, x[:, :, None], None, (1, 1))


def authors(last):
    """The layers as the papers' code has them, of torch's own batch norm."""
    layers = [nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
    layers += [nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6, bias=False)]
    if last != "none":
        layers.append(nn.BatchNorm1d(6, affine=last == "scale"))
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("last", ["scale", "plain", "none"])
def test_the_authors_weights_copied_in_order_give_their_outputs(last):
    head, theirs = Mlp(TinyEncoder(), layers=3, hidden=8, out=6, last=last).double(), authors(last)
    state = {name: value for name, value in theirs.state_dict().items() if (last, name) != ("scale", "7.bias")}
    with torch.no_grad():
        for i, value in enumerate(theirs.parameters()):
            value.copy_(numbers(*value.shape, seed=i))
        if last == "scale":
            theirs[7].bias.zero_()  # SimCLR shifts nothing
    head.mlp.load_state_dict(state)  # strict: the names and shapes are the same
    x = numbers(5, 1, 16)
    found, expected = head(tokens(x)), theirs(x[:, 0])
    torch.testing.assert_close(found.pooled[:, 0], expected, rtol=1e-12, atol=1e-12)
    assert (found.patches, found.where, found.grid, head.width) == (None, None, (1, 1), 6)
    for mine, other in zip(head.mlp.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def linear_weights(**options):
    torch.manual_seed(0)
    head = Mlp(TinyEncoder(width=64), layers=3, hidden=256, **options)
    return [m.weight.detach() for m in head.mlp if isinstance(m, nn.Linear)]


def test_simclrs_weights_begin_small_and_mocov3s_as_torchs():
    for weight in linear_weights(last="scale"):
        assert float(weight.std()) == pytest.approx(0.01, rel=0.03)
        assert float(weight.abs().max()) > 0.03  # normal, not uniform
    for last in ("plain", "none"):
        bounds = [1 / math.sqrt(64), 1 / 16, 1 / 16]  # uniform up to 1 / sqrt(inputs)
        for weight, bound in zip(linear_weights(last=last), bounds, strict=True):
            assert 0.99 * bound < float(weight.abs().max()) <= bound


def test_the_last_batch_norm_has_a_scale_a_nothing_or_is_not_there():
    encoder = TinyEncoder()
    count = {last: len([*Mlp(encoder, last=last).mlp[-1].parameters()]) for last in ("scale", "plain")}
    assert count == {"scale": 1, "plain": 0}
    assert isinstance(Mlp(encoder, last="none").mlp[-1], nn.Linear)


def test_hidden_layers_are_as_wide_as_the_encoder_unless_told():
    encoder = TinyEncoder(width=24)
    assert Mlp(encoder).mlp[0].weight.shape == (24, 24)
    assert [m.weight.shape for m in Mlp(encoder, layers=4, hidden=10).mlp if isinstance(m, nn.Linear)] == [
        (10, 24),
        (10, 10),
        (10, 10),
        (128, 10),
    ]


def test_masks_of_a_view_share_their_statistics():
    head = Mlp(TinyEncoder(), hidden=8, out=6, last="plain").double()
    found = head(tokens(numbers(3, 4, 16))).pooled
    assert found.shape == (3, 4, 6)
    torch.testing.assert_close(found.mean((0, 1)), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(head(tokens(numbers(3, 4, 16).reshape(12, 1, 16))).pooled[:, 0], found.flatten(0, 1))


@pytest.mark.parametrize("joined", [True, False])
def test_statistics_are_over_both_views_or_over_one_at_a_time(joined):
    encoder = TinyEncoder()
    student = Student(encoder, Mlp(encoder, hidden=8, out=6, last="plain"), joined=joined)
    found = [tokens.pooled[:, 0] for tokens in student([tiny_view(), tiny_view(seed=1)], [None, None])]
    own = torch.stack([x.mean(0) for x in found])
    torch.testing.assert_close(own.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    assert (float(own.detach().abs().max()) < 1e-5) == (not joined)


def test_the_head_keeps_its_contract():
    for last in ("scale", "plain", "none"):
        check_head(Mlp, layers=3, hidden=8, out=6, last=last)


def test_what_no_head_can_be_is_refused():
    encoder = TinyEncoder()
    for options, words in (
        ({"layers": 1}, "write 2 or more"),
        ({"hidden": 0}, "at least 1"),
        ({"out": 0}, "at least 1"),
        ({"last": "affine"}, "write scale, plain or none"),
    ):
        with pytest.raises(ValueError, match=words):
            Mlp(encoder, **options)
    with pytest.raises(ValueError, match="needs an image feature"):
        Mlp(encoder)(Tokens(None, torch.zeros(2, 1, 4, 16), None, (2, 2)))
