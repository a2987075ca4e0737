"""What the processes of a run share amid a step: gathered rows, means, batch-norm statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ussl.precision import precise


def world() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if world() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """Rows (B, ...) of every rank, in the order of ranks: (world * B, ...), B equal everywhere.

    Differentiable: a row's gradient is the sum of what every rank's loss says of it, so that the mean of the ranks'
    gradients, which DDP takes, is that of the mean of their losses.
    """
    if world() == 1:
        return x
    return _Gather.apply(x) if torch.is_grad_enabled() and x.requires_grad else _gathered(x)


def mean(x: Tensor) -> Tensor:
    """The mean over ranks, without gradient; `x` stays as it is."""
    if world() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world()


def _gathered(x: Tensor) -> Tensor:
    rows = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _gathered(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world())[rank()]


class _Sum(torch.autograd.Function):
    """The sum over ranks; each rank's gradient is the sum of all ranks'."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of every device's images, on a GPU torch's own, on a CPU ours.

    torch's SyncBatchNorm refuses to work on a CPU, and DDP a network that holds one there. Without other processes
    both are torch's plain batch norm. Input (B, C) or (B, C, ...); every rank gives as many values a channel.
    """

    process_group = None  # these two are what torch's forward asks for: all ranks
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes (B, C) or (B, C, ...), not {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """As nn.BatchNorm of the rows of all ranks together. ValueError = one value a channel has no variance."""
        if self.training and world() * x.numel() // x.shape[1] < 2:
            raise ValueError(
                "batch norm needs more than one image: write a larger train.batch_size or train.micro_batch"
            )
        if world() == 1 or not (self.training or self.running_mean is None):
            return super().forward(x)
        if x.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]
        return self._normalise(precise(x)).to(x.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        over = [0, *range(2, x.ndim)]
        count = world() * x.numel() // x.shape[1]
        mean = _Sum.apply(x.sum(over)) / count
        away = x - _shaped(mean, x)
        variance = _Sum.apply(away.square().sum(over)) / count
        self._remember(mean, variance * count / max(count - 1, 1))
        x = away * _shaped((variance + self.eps).rsqrt(), x)
        x = x if self.weight is None else x * _shaped(self.weight, x)
        return x if self.bias is None else x + _shaped(self.bias, x)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def _shaped(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) to be broadcast over x (B, C, ...)."""
    return channels.view(1, -1, *[1] * (x.ndim - 2))


def synchronised(network: nn.Module) -> nn.Module:
    """The network with every plain batch norm in it replaced by BatchNorm, of the same tensors; for CNN encoders."""
    for name, child in network.named_children():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(network, name, _twin(child))
        else:
            synchronised(child)
    return network


def _twin(norm: Any) -> BatchNorm:
    twin = BatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        setattr(twin, name, tensor)  # not copied, which would lose its type and whether it is trained
    return twin.train(norm.training)
