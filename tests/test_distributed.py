"""What ranks share amid a step is what one process would have had, and the tests' own way to run several."""

from __future__ import annotations

import pytest
import torch
from processes import RankFailed, run
from torch import nn

from ussl.distributed import BatchNorm, gather, mean, rank, synchronised, world

SHAPES = {"rows": (6, 3), "maps": (4, 3, 2, 5)}
OPTIONS = {
    "affine": {},
    "plain": {"affine": False},
    "cumulative": {"momentum": None},
    "forgetful": {"track_running_stats": False},
    "unshifted": {},  # its bias is taken away
}
CASES = [(shape, option) for shape in SHAPES for option in OPTIONS]


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def share_of(x):
    """This rank's rows."""
    return x.chunk(world())[rank()].clone()


def of_ours(shape, option):
    norm = BatchNorm(3, **OPTIONS[option]).double()
    if option == "unshifted":
        norm.bias = None
    return normalised(norm, SHAPES[shape])


def of_torchs(shape, option):
    kind = nn.BatchNorm1d if shape == "rows" else nn.BatchNorm2d
    norm = kind(3, **OPTIONS[option]).double()
    if option == "unshifted":
        norm.bias.requires_grad_(False)
    return normalised(norm, SHAPES[shape])


def normalised(norm, shape):
    """Outputs and gradients of two training passes, the gradients of the parameters, buffers, and an evaluation."""
    with torch.no_grad():
        for i, parameter in enumerate(norm.parameters()):
            parameter.copy_(numbers(3, seed=10 + i) if parameter.requires_grad else parameter)
    outputs, slopes = [], []
    for seed in range(2):
        x = share_of(3 * numbers(*shape, seed=seed) + 2).requires_grad_()
        outputs.append(norm(x))
        (outputs[-1].square() * share_of(numbers(*shape, seed=20 + seed))).sum().backward()
        slopes.append(x.grad)
    parameters = {name: p.grad for name, p in norm.named_parameters() if p.requires_grad}
    evaluated = norm.eval()(share_of(numbers(*shape, seed=5))) if norm.running_mean is not None else outputs[0]
    return [*outputs, *slopes, evaluated], parameters, dict(norm.named_buffers())


class Network(nn.Module):
    """A CNN with batch norms, one of them nested."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3)
        self.block = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3), nn.ReLU(), nn.Conv2d(3, 4, 3))
        self.last = nn.BatchNorm2d(4, momentum=0.3)

    def forward(self, x):
        return self.last(self.block(self.first(x)))


def network():
    torch.manual_seed(0)
    return Network().double()


def learned(net):
    """The gradients of a network's parameters and its statistics after one pass."""
    out = net(share_of(numbers(4, 1, 8, 8)))
    (out * share_of(numbers(*out.shape[1:], seed=1).expand(4, -1, -1, -1))).sum().backward()
    return {name: p.grad for name, p in net.named_parameters()}, dict(net.named_buffers())


def of_half_precision():
    norm = BatchNorm(3)
    x = share_of(30 + numbers(64, 3).to(torch.bfloat16)).requires_grad_()
    out = norm(x)
    return out, norm.running_var


def shared():
    """Everything that the tests below look at, on one rank."""
    x = (numbers(2, 3) + rank()).requires_grad_()
    rows = gather(x)
    (rows * numbers(*rows.shape, seed=rank())).sum().backward()
    with torch.no_grad():
        silent = gather(x)
    value = torch.tensor([1.0 + rank(), 4.0], dtype=torch.float64)
    return {
        "gathered": (rows.detach(), x.grad, silent, gather(x.detach().flatten(0, 1)[::2])),
        "mean": (mean(value), value),
        "norms": {case: of_ours(*case) for case in CASES},
        "network": learned(synchronised(network())),
        "half": of_half_precision(),
    }


@pytest.fixture(scope="module")
def ranks():
    return run(shared, 2)


def assert_as_one(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_gathered_rows_are_in_the_order_of_ranks(ranks):
    x = numbers(2, 3)
    for found in ranks:
        rows, _, silent, strided = found["gathered"]
        assert torch.equal(rows, torch.cat([x, x + 1]))
        assert torch.equal(silent, rows)
        assert torch.equal(strided, torch.cat([x.flatten()[::2], x.flatten()[::2] + 1]))
        assert not silent.requires_grad


def test_a_gathered_rows_gradient_sums_what_every_rank_says_of_it(ranks):
    says = [numbers(4, 3, seed=r) for r in range(2)]
    for r, found in enumerate(ranks):
        assert_as_one(found["gathered"][1], (says[0] + says[1])[2 * r : 2 * r + 2])


def test_a_mean_over_ranks_leaves_what_it_is_of(ranks):
    for r, found in enumerate(ranks):
        assert found["mean"][0].tolist() == [1.5, 4.0]
        assert found["mean"][1].tolist() == [1.0 + r, 4.0]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_batch_norm_of_two_ranks_is_torchs_of_all_rows(case, ranks):
    outputs, parameters, buffers = of_torchs(*case)
    found = [one["norms"][case] for one in ranks]
    assert_as_one([torch.cat(pair) for pair in zip(found[0][0], found[1][0], strict=True)], outputs)
    assert_as_one({name: found[0][1][name] + found[1][1][name] for name in found[0][1]}, parameters)
    for one in found:
        assert_as_one(one[2], buffers)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_batch_norm_of_one_process_is_torchs(case):
    assert_as_one(of_ours(*case), of_torchs(*case))


def test_half_precision_is_normalised_by_statistics_in_single_precision(ranks):
    norm = nn.BatchNorm1d(3).double()
    x = (30 + numbers(64, 3).to(torch.bfloat16)).double()
    expected = norm(x)
    found = torch.cat([one["half"][0] for one in ranks])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.005, atol=0.005)
    torch.testing.assert_close(ranks[0]["half"][1].double(), norm.running_var, rtol=1e-5, atol=0)


def test_a_synchronised_network_learns_on_two_ranks_as_a_plain_one_on_one(ranks):
    parameters, buffers = learned(network())
    first, second = (one["network"] for one in ranks)
    assert_as_one({name: first[0][name] + second[0][name] for name in first[0]}, parameters)
    assert_as_one(first[1], buffers)
    assert_as_one(second[1], buffers)


def test_synchronising_keeps_tensors_names_and_modes():
    plain = network()
    plain.block[0].eval()
    plain.last.weight.requires_grad_(False)
    before = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    net = synchronised(plain)
    assert isinstance(net.block[0], BatchNorm)
    assert isinstance(net.last, BatchNorm)
    assert [net.block[0].training, net.last.training] == [False, True]
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert synchronised(net).last is net.last


def alone(number):
    """What a batch norm gives in a group of one process; torch's SyncBatchNorm refuses to."""
    return world(), number, BatchNorm(3).double()(numbers(4, 3))


def test_a_group_of_one_process_needs_no_gpu():
    ((size, number, found),) = run(alone, 1, 7)
    assert (size, number) == (1, 7)
    assert_as_one(found, nn.BatchNorm1d(3).double()(numbers(4, 3)))


def failing(rank, world):
    if rank == 1:
        raise ValueError(f"rank {rank} of {world} stumbled")
    gather(torch.zeros(1))


def test_a_failing_process_fails_its_test():
    with pytest.raises(RankFailed, match="rank 1 of 2 stumbled"):
        run(failing, 2)
