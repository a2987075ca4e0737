"""LARS: momentum with a rate of its own for every layer, for large batches and networks with batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ussl.hookspecs import hookimpl
from ussl.parts import Optimizer, Progress
from ussl.schedules import refuse_rates, warmup_cosine


class LayerwiseAdaptiveRate(torch.optim.Optimizer):
    """g <- g + decay p; g <- g trust |p| / |g|, where both norms are above 0; then momentum on g.

    You et al. 2017, arXiv:1708.03888. lightly's and timm's divide by |g| + decay |p| where the authors of SimCLR and
    MoCo-v3 divide by |g + decay p|: ten steps of a small network at rate 4.8 and decay 1e-4 then end 4e-5 apart.

    Args:
        groups: parameter groups; those with `adapted` False neither decay nor have a rate of their own.
        lr: the rate, written anew before every step.
        momentum: share of the last move that is kept.
        weight_decay: share of a parameter that is added to its gradient.
        trust: length of a move as a share of the layer's norm, at rate 1.
        rate_in_momentum: v <- m v + rate g; p <- p - v (SimCLR), else v <- m v + g; p <- p - rate v (MoCo-v3).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust: float,
        rate_in_momentum: bool,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(groups, settings | {"rate_in_momentum": rate_in_momentum, "adapted": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; parameters without gradient stay as they are, their momentum too."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if group["adapted"]:
            gradients = adapted(parameters, gradients, group["weight_decay"], group["trust"])
        velocities = [self._velocity(p) for p in parameters]
        inside, outside = (group["lr"], 1.0) if group["rate_in_momentum"] else (1.0, group["lr"])
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients, alpha=inside)
        torch._foreach_add_(parameters, velocities, alpha=-outside)

    def _velocity(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["velocity"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["velocity"]


def adapted(parameters: list[Tensor], gradients: list[Tensor], decay: float, trust: float) -> list[Tensor]:
    """Gradients with decay, each scaled to `trust` times its parameter's norm; new tensors, no wait for the device."""
    gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
    lengths = zip(torch._foreach_norm(parameters), torch._foreach_norm(gradients), strict=True)
    ratios = [torch.where((p > 0) & (g > 0), trust * p / g, 1.0) for p, g in lengths]
    torch._foreach_mul_(gradients, ratios)
    return gradients


class Lars(Optimizer):
    """LARS, no decay or adaptation of biases and norms; rate = .3 x batch / 256, warm-up then cosine, every step.

    You et al. 2017 (arXiv:1708.03888); the defaults are those of SimCLR, Chen et al. 2020 (arXiv:2002.05709).
    """

    def __init__(
        self,
        *,
        base_learning_rate: float = 0.3,
        scaling: Literal["linear", "sqrt"] = "linear",
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
        rate_in_momentum: bool = True,
        warmup: float = 0.1,
        min_learning_rate: float = 0.0,
    ) -> None:
        """Settings.

        Args:
            base_learning_rate: learning rate for a global batch of 256, or of 1 where `scaling` is sqrt (.075 then).
            scaling: whether the rate is base x batch / 256 (`linear`) or base x the batch's square root (`sqrt`).
            momentum: share of the last move that is kept.
            weight_decay: share of a parameter that is added to its gradient before norms are taken.
            trust: length of a layer's move as a share of the layer's norm, at rate 1.
            rate_in_momentum: whether the momentum holds moves at the rate of their own time (SimCLR), or gradients,
                which the rate of the day multiplies (false: MoCo-v3).
            warmup: share of the training during which the rate rises from 0, such as .1 for 10 of 100 epochs.
            min_learning_rate: rate at the end of the cosine.
        """
        refuse_rates(base_learning_rate, min_learning_rate, warmup)
        if scaling not in ("linear", "sqrt"):
            raise ValueError(f"scaling is {scaling!r}; write linear or sqrt")
        if not 0 <= momentum < 1 or not 0 <= weight_decay < math.inf:
            raise ValueError(f"momentum lies in [0, 1), weight_decay is 0 or more; not {momentum} and {weight_decay}")
        if not 0 < trust < math.inf:
            raise ValueError(f"trust must be above 0, such as 0.001, not {trust}")
        self.base_learning_rate = base_learning_rate
        self.scaling = scaling
        if not momentum and not rate_in_momentum:
            raise ValueError("rate_in_momentum has no effect without momentum: remove it")
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.trust = trust
        self.rate_in_momentum = rate_in_momentum
        self.warmup = warmup
        self.min_learning_rate = min_learning_rate

    def start(self, method: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        factor = batch_size / 256 if self.scaling == "linear" else math.sqrt(batch_size)
        self.peak = self.base_learning_rate * factor
        if self.min_learning_rate > self.peak:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above the peak rate {self.peak:g}: lower it"
            )
        trained = [p for p in method.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups = [{"params": matrices, "adapted": True}, {"params": vectors, "weight_decay": 0.0, "adapted": False}]
        return LayerwiseAdaptiveRate(
            [group for group in groups if group["params"]],
            lr=self.peak,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            trust=self.trust,
            rate_in_momentum=self.rate_in_momentum,
        )

    def before_step(self, optimizer: torch.optim.Optimizer, at: Progress) -> None:
        rate = warmup_cosine(self.peak, self.min_learning_rate, at.step / at.steps, self.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def warmup_steps(self, steps: int) -> int:
        return round(self.warmup * steps)


@hookimpl
def ussl_optimizers() -> dict[str, type[Optimizer]]:
    """Offer LARS."""
    return {"lars": Lars}
