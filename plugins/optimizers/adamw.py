"""AdamW with the parameter groups, schedules and clipping of the methods that use it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ussl.hookspecs import hookimpl
from ussl.parts import Optimizer, Progress
from ussl.schedules import cosine, linspace_cosine, multistep, refuse_rates, warmup_cosine


class AdamW(Optimizer):
    """AdamW, rate = base x batch / 256, warm-up then cosine or steps, every step; the groups of MAE, DINO, MoCo-v3.

    Loshchilov and Hutter 2019 (arXiv:1711.05101); the defaults are those of He et al. 2022 (arXiv:2111.06377),
    appendix A.1.
    """

    first: float = 0.0  # the rate that the warm-up begins with, known after start()

    def __init__(
        self,
        *,
        base_learning_rate: float = 1.5e-4,
        reference_batch: int = 256,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        weight_decay_end: float | None = None,
        no_decay: Literal["vectors", "tokens", "none"] = "vectors",
        layer_decay: float | None = None,
        schedule: Literal["cosine", "cosine_dino", "steps"] = "cosine",
        warmup: float = 0.1,
        warmup_learning_rate: float = 0.0,
        min_learning_rate: float = 0.0,
        milestones: tuple[float, ...] = (),
        gamma: float = 0.1,
        clip: float | None = None,
        clip_per: Literal["all", "parameter"] = "all",
    ) -> None:
        """Settings.

        Args:
            base_learning_rate: learning rate for a global batch of `reference_batch`; it grows in proportion.
            reference_batch: images for which `base_learning_rate` is meant: 256 mostly, 512 for SimMIM and USFM.
            betas: decay rates of the gradient's running mean and square.
            weight_decay: decoupled decay of the parameters that `no_decay` leaves.
            weight_decay_end: decay at the end of the training, reached on half a cosine (DINO); null = constant.
            no_decay: what does not decay: `vectors`, parameters of one dimension and biases (MAE, DINO); `tokens`,
                those and the class token and positions (SimMIM, MAE's fine-tuning); `none` decays all (MoCo-v3).
            layer_decay: the encoder's last block learns at this share of the rate, the one before at its square, ...,
                the first layer slowest, all that follows the blocks at the full rate; null = one rate for all.
            schedule: `cosine`, which reaches the peak when the warm-up is over (MAE, MoCo-v3); `cosine_dino`, which
                reaches it in the warm-up's last step; `steps`, a multiplication by `gamma` at `milestones` (SimMIM).
            warmup: share of the training during which the rate rises, such as .1 for 40 of 400 epochs.
            warmup_learning_rate: rate of the first step, for a batch of `reference_batch` like the base rate.
            min_learning_rate: rate at the end of the cosine, whatever the batch.
            milestones: shares of the training at which the rate drops, such as [.875] for 700 of 800 epochs.
            gamma: what each of the `milestones` multiplies the rate by.
            clip: largest allowed norm of gradients; null leaves them alone.
            clip_per: whether `clip` bounds the norm of `all` gradients together, or of each `parameter` (DINO).
        """
        self.base_learning_rate = base_learning_rate
        self.reference_batch = reference_batch
        self.betas = betas
        self.weight_decay = weight_decay
        self.weight_decay_end = weight_decay_end
        self.no_decay = no_decay
        self.layer_decay = layer_decay
        self.schedule = schedule
        self.warmup = warmup
        self.warmup_learning_rate = warmup_learning_rate
        self.min_learning_rate = min_learning_rate
        self.milestones = milestones
        self.gamma = gamma
        self.clip = clip
        self.clip_per = clip_per
        refuse_rates(base_learning_rate, min_learning_rate, warmup)
        self._check_decay()
        self._check_schedule()
        self._check_clip()

    def _check_decay(self) -> None:
        if self.reference_batch < 1:
            raise ValueError(f"reference_batch is a number of images, such as 256, not {self.reference_batch}")
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; write numbers from 0 to below 1, such as [0.9, 0.95]")
        end = 0.0 if self.weight_decay_end is None else self.weight_decay_end
        for name, decay in (("weight_decay", self.weight_decay), ("weight_decay_end", end)):
            if not 0 <= decay < math.inf:
                raise ValueError(f"{name} is {decay}; write a number, 0 or more")
        if self.no_decay not in ("vectors", "tokens", "none"):
            raise ValueError(f"no_decay is {self.no_decay!r}; write vectors, tokens or none")
        if self.no_decay != "vectors" and not self.weight_decay and not end:
            raise ValueError(f"no_decay {self.no_decay} has no effect without weight_decay: remove it")
        if self.layer_decay is not None and not 0 < self.layer_decay < 1:
            raise ValueError(
                f"layer_decay lies between 0 and 1, not {self.layer_decay}; write null for one rate for all"
            )

    def _check_schedule(self) -> None:
        if self.schedule not in ("cosine", "cosine_dino", "steps"):
            raise ValueError(f"schedule is {self.schedule!r}; write cosine, cosine_dino or steps")
        if not 0 <= self.warmup_learning_rate < self.base_learning_rate:
            raise ValueError(
                f"warmup_learning_rate {self.warmup_learning_rate} must be below base_learning_rate "
                f"{self.base_learning_rate}, and 0 or more"
            )
        if self.warmup_learning_rate and not self.warmup:
            raise ValueError("warmup_learning_rate has no effect with warmup 0: remove it or give warmup a share")
        if self.schedule == "steps":
            self._check_steps()
        elif self.milestones or self.gamma != 0.1:
            raise ValueError(
                f"milestones and gamma have no effect with schedule {self.schedule}: write schedule: steps"
            )

    def _check_steps(self) -> None:
        marks = list(self.milestones)
        if not marks or marks != sorted(set(marks)) or not 0 < marks[0] <= marks[-1] < 1:
            raise ValueError(f"milestones are ascending shares of the training, such as [0.875], not {marks}")
        if marks[0] < self.warmup:
            raise ValueError(f"the milestone {marks[0]} lies in the warm-up, which lasts until {self.warmup}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma lies between 0 and 1, such as 0.1, not {self.gamma}")
        if self.min_learning_rate:
            raise ValueError("min_learning_rate has no effect with schedule steps: remove it or choose a cosine")

    def _check_clip(self) -> None:
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be above 0, not {self.clip}; write null to leave gradients alone")
        if self.clip_per not in ("all", "parameter"):
            raise ValueError(f"clip_per is {self.clip_per!r}; write all or parameter")
        if self.clip is None and self.clip_per != "all":
            raise ValueError("clip_per parameter has no effect without clip: give clip a norm, such as 3.0")

    def start(self, method: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        self.peak = self.base_learning_rate * batch_size / self.reference_batch
        self.first = self.warmup_learning_rate * batch_size / self.reference_batch
        if self.min_learning_rate > self.peak:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above the peak rate {self.peak:g} "
                f"(base_learning_rate x batch_size / {self.reference_batch})"
            )
        trained = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
        if self.no_decay == "tokens" and not any(_is_token(name) for name, _ in trained):
            raise ValueError("no_decay tokens has no effect: no class token or positions are trained; write vectors")
        return torch.optim.AdamW(self._groups(method, trained), lr=self.peak, betas=self.betas, fused=True)

    def _groups(self, method: nn.Module, trained: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Parameters that share decay and rate: those that decay come first, the fastest first."""
        scales = {} if self.layer_decay is None else layer_scales(method, self.layer_decay)
        members: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, p in trained:
            members.setdefault((self._decays(name, p), scales.get(p, 1.0)), []).append(p)
        groups: list[dict[str, Any]] = []
        for (decays, scale), parameters in sorted(members.items(), key=lambda item: item[0], reverse=True):
            decay = self.weight_decay if decays else 0.0
            groups.append({"params": parameters, "weight_decay": decay, "decays": decays, "lr_scale": scale})
        return groups

    def _decays(self, name: str, p: nn.Parameter) -> bool:
        if self.no_decay == "none":
            return True
        excluded = p.ndim <= 1 or name.endswith(".bias") or (self.no_decay == "tokens" and _is_token(name))
        return not excluded

    def learning_rate(self, at: Progress) -> float:
        """The rate of a step, before layers scale it."""
        share = at.step / at.steps
        if self.schedule == "cosine":
            return warmup_cosine(self.peak, self.min_learning_rate, share, self.warmup, self.first)
        if self.schedule == "steps":
            return multistep(self.peak, share, self.warmup, self.milestones, self.gamma, self.first)
        warmup = self.warmup_steps(at.steps)
        return linspace_cosine(self.peak, self.min_learning_rate, at.step, at.steps, warmup, self.first)

    def before_step(self, optimizer: torch.optim.Optimizer, at: Progress) -> None:
        rate = self.learning_rate(at)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)  # older checkpoints tell none
        if self.weight_decay_end is not None:
            decay = cosine(self.weight_decay, self.weight_decay_end, at.step / at.steps)
            for group in optimizer.param_groups:
                if group["decays"]:
                    group["weight_decay"] = decay

    def warmup_steps(self, steps: int) -> int:
        return round(self.warmup * steps)

    def clip_gradients(self, parameters: list[nn.Parameter], norm: Tensor) -> None:
        if self.clip is None:
            return
        if self.clip_per == "all":
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        else:
            clip_each([p.grad for p in parameters if p.grad is not None], self.clip)


def clip_each(gradients: list[Tensor], clip: float) -> None:
    """Scale in place every tensor of a norm n above `clip` by clip / (n + 1e-6), without waiting for the device.

    The rule of DINO (arXiv:2104.14294).
    """
    if not gradients:
        return
    scales = torch._foreach_norm(gradients)
    torch._foreach_add_(scales, 1e-6)
    torch._foreach_reciprocal_(scales)
    torch._foreach_mul_(scales, clip)
    torch._foreach_clamp_max_(scales, 1.0)
    torch._foreach_mul_(gradients, scales)


def layer_scales(method: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """decay ** (L - i) for the parameters of the encoder's layer i of L: embedding 0, blocks from 1, final norm L.

    Layers are those of timm, for transformers as for CNNs, but for the final norm, which timm counts to the last
    block where there is a class token; it is L here as in He et al. 2022 (arXiv:2111.06377). What is not named, the
    heads and the objective, learns at the full rate. ValueError: the encoder does not tell its layers.
    """
    from timm.models import group_parameters

    network: Any = getattr(getattr(getattr(method, "student", None), "encoder", None), "network", None)
    if not hasattr(network, "group_matcher"):
        raise ValueError("layer_decay needs an encoder that is a timm network inside, such as vit: write null")
    named = [*network.named_parameters(), ("head.weight", None)]  # a head follows all layers
    listed: Any = SimpleNamespace(named_parameters=lambda: named)
    layers = group_parameters(listed, network.group_matcher(coarse=False), reverse=True)
    last = layers["head.weight"]
    if last < 1:
        raise ValueError("layer_decay has no effect: the encoder tells no layers; write null")
    return {p: 1.0 if name.startswith("norm.") else decay ** (last - layers[name]) for name, p in named[:-1]}


def _is_token(name: str) -> bool:
    return name.rpartition(".")[2] in ("cls_token", "mask_token", "pos_embed")


@hookimpl
def ussl_optimizers() -> dict[str, type[Optimizer]]:
    """Offer AdamW."""
    return {"adamw": AdamW}
