"""AdamW as masked autoencoders use it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ussl.hookspecs import hookimpl
from ussl.parts import Optimizer, Progress


class AdamW(Optimizer):
    """AdamW, decay on matrices only; rate = base x batch / 256, linear warm-up then cosine, every step.

    He et al. 2022 (arXiv:2111.06377), appendix A.1; Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """

    def __init__(
        self,
        *,
        base_learning_rate: float = 1.5e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        min_learning_rate: float = 0.0,
        clip: float | None = None,
    ) -> None:
        """Settings.

        Args:
            base_learning_rate: learning rate for a global batch of 256; it grows in proportion to the batch.
            betas: decay rates of the gradient's running mean and square.
            weight_decay: decoupled decay of parameters with two or more dimensions, biases excepted.
            warmup: share of the training during which the rate rises from 0, such as .1 for 40 of 400 epochs.
            min_learning_rate: rate at the end of the cosine.
            clip: largest allowed norm of all gradients together; null leaves them alone.
        """
        if not 0 < base_learning_rate < math.inf:
            raise ValueError(f"base_learning_rate must be above 0, not {base_learning_rate}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a share of the training in [0, 1), such as 0.1, not {warmup}")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be above 0, not {clip}; write null to leave gradients alone")
        if not all(0 <= b < 1 for b in betas) or weight_decay < 0 or min_learning_rate < 0:
            raise ValueError("betas lie in [0, 1), weight_decay and min_learning_rate are 0 or more")
        self.base_learning_rate = base_learning_rate
        self.betas = betas
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.min_learning_rate = min_learning_rate
        self.clip = clip

    def start(self, method: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        self.peak = self.base_learning_rate * batch_size / 256
        if self.min_learning_rate > self.peak:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above the peak rate {self.peak:g} "
                f"(base_learning_rate x batch_size / 256)"
            )
        trained = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
        plain = [p for name, p in trained if p.ndim <= 1 or name.endswith(".bias")]
        matrices = [p for name, p in trained if not (p.ndim <= 1 or name.endswith(".bias"))]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.peak, betas=self.betas, fused=True)

    def learning_rate(self, at: Progress) -> float:
        """The rate of a step, from its share of the training."""
        share = at.step / at.steps
        if share < self.warmup:
            return self.peak * share / self.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup)))
        return self.min_learning_rate + (self.peak - self.min_learning_rate) * cosine

    def before_step(self, optimizer: torch.optim.Optimizer, at: Progress) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(at)

    def warmup_steps(self, steps: int) -> int:
        return round(self.warmup * steps)

    def clip_gradients(self, parameters: list[nn.Parameter], norm: Tensor) -> None:
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)


@hookimpl
def ussl_optimizers() -> dict[str, type[Optimizer]]:
    """Offer AdamW."""
    return {"adamw": AdamW}
