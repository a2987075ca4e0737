"""Random numbers depend on what they are for, and on nothing else."""

import zlib

import pytest
import torch
from scipy.stats import kstest

from ussl.draws import Draws


def draws(index, seed=7, epoch=0, step=0, turn=None):
    index = torch.as_tensor(index)
    return Draws(seed, epoch, step, index, torch.zeros_like(index) if turn is None else torch.as_tensor(turn))


def splitmix64(x):
    """The finaliser in Python's whole numbers."""
    x %= 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def by_hand(seed, epoch, index, turn, stream, number):
    golden = 0x9E3779B97F4A7C15
    key = seed % 2**64
    for word in (epoch, zlib.crc32(stream.encode())):
        key = splitmix64(key * golden + word + 1)
    for word in (index, turn, number + 1):
        key = splitmix64(key + word * golden)
    return (key >> 40) / 2**24


@pytest.mark.parametrize("seed", [0, 1, -1, 42, 2**63 - 1])
def test_draws_are_the_documented_hash(seed):
    got = draws([5, 123_456], seed=seed, epoch=3, turn=[0, 2]).uniform("crop", 2)
    for row, (index, turn) in enumerate([(5, 0), (123_456, 2)]):
        for number in range(2):
            assert got[row, number].item() == by_hand(seed, 3, index, turn, "crop", number)


def test_draws_never_change_between_versions():
    """Runs are repeated from their seeds: other numbers here would silently be other runs."""
    assert draws([0, 1]).uniform("crop", 2).tolist() == [
        [0.2804529070854187, 0.758891761302948],
        [0.44532203674316406, 0.23571676015853882],
    ]
    assert draws([0], epoch=4).view(1).uniform("mask").tolist() == [0.1301649808883667]
    assert draws([0], step=9).shared("order", 2).tolist() == [0.8921224474906921, 0.8974635601043701]


def test_draws_are_float32_from_0_to_below_1():
    values = draws(torch.arange(2000)).uniform("a", 50)
    assert values.dtype == torch.float32
    assert values.shape == (2000, 50)
    assert 0 <= values.min() < 1e-3
    assert 0.999 < values.max() < 1
    assert draws([1, 2, 3]).uniform("a").shape == (3,)


def test_draws_are_uniform_over_images_and_over_numbers():
    values = draws(torch.arange(500)).uniform("a", 400)
    assert kstest(values.flatten().numpy(), "uniform").pvalue > 0.01
    assert kstest(values[:, 0].numpy(), "uniform").pvalue > 0.01
    assert kstest(values[0].numpy(), "uniform").pvalue > 0.01


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()


def test_streams_views_epochs_turns_seeds_and_neighbours_are_unrelated():
    index = torch.arange(20_000)
    one = draws(index)
    reference = one.uniform("a")
    others = {
        "stream": one.uniform("b"),
        "view": one.view(0).uniform("a"),
        "view of a view": one.view(0).view(0).uniform("a"),
        "epoch": draws(index, epoch=1).uniform("a"),
        "turn": draws(index, turn=torch.ones_like(index)).uniform("a"),
        "seed": draws(index, seed=8).uniform("a"),
        "neighbour": draws(index + 1).uniform("a"),
        "next number": one.uniform("a", 2)[:, 1],
    }
    for what, other in others.items():
        assert (other != reference).float().mean() > 0.999, what
        assert correlation(reference, other) < 0.03, what  # 4 standard deviations of unrelated draws


def test_the_views_of_one_image_differ():
    one = draws([3])
    assert one.view(0).uniform("a", 4).tolist() != one.view(1).uniform("a", 4).tolist()


def test_an_image_gets_the_same_numbers_in_any_batch_and_order():
    together = draws([3, 9, 4], turn=[0, 1, 0]).uniform("a", 5)
    assert torch.equal(draws([9], turn=[1]).uniform("a", 5), together[1:2])
    assert torch.equal(draws([4, 9, 3], turn=[0, 1, 0]).uniform("a", 5), together[[2, 1, 0]])


def test_the_numbers_of_an_image_do_not_depend_on_the_step():
    assert torch.equal(draws([3, 4], step=0).uniform("a", 5), draws([3, 4], step=77).uniform("a", 5))


def test_asking_for_more_numbers_keeps_the_first_ones():
    assert torch.equal(draws([3]).uniform("a", 9)[:, :4], draws([3]).uniform("a", 4))


def test_shared_draws_are_the_same_for_any_images_and_differ_between_steps():
    here, there = draws([0, 1, 2], step=5).shared("order", 3), draws([77], step=5, epoch=2).shared("order", 3)
    assert torch.equal(here, there)
    assert here.shape == (3,)
    assert not torch.equal(here, draws([0, 1, 2], step=6).shared("order", 3))
    assert not torch.equal(here, draws([0, 1, 2], step=5).uniform("order", 3)[0])
