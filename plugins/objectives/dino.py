"""Self-distillation: the student says of one view what a moving average of it says of another.

Not lightly's DINOLoss: that moves its centre in forward, so that a refused step or a micro-batch would count.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ussl.distributed import mean
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Objective, Progress, Student, Target, Tokens
from ussl.precision import precise


class Dino(Objective):
    """Self-distillation without labels: match a centred, sharpened teacher's answer to another view (DINO).

    Caron et al. 2021, arXiv:2104.14294. With teacher scores t of the views that have a target (the global ones) and
    student scores s of all views, the loss is the mean over pairs of different views of
    -sum softmax((t - c) / T) log_softmax(s / student_temperature). The centre c is a moving average of t over the
    images of all devices; it and the teacher's temperature T keep the answer from becoming one-hot or uniform.

    Args:
        student_temperature: divides the student's scores.
        teacher_temperature: T, divides the teacher's centred scores; lower is sharper.
        teacher_temperature_start: T in the first epoch, when it is to change; a low one steadies the beginning.
        teacher_temperature_warmup_epochs: the number of epochs in which T goes in equal steps, one an epoch, from
            `teacher_temperature_start` to `teacher_temperature`.
        centre_momentum: how much of the centre stays at every step.
    """

    additive = True  # the centre stands still within a step
    reads_patches = False

    def __init__(
        self,
        student: Student,
        target: Target | None,
        *,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        teacher_temperature_start: float | None = None,
        teacher_temperature_warmup_epochs: int = 0,
        centre_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        width = _width(student, target)
        epochs = teacher_temperature_warmup_epochs
        if (teacher_temperature_start is None) != (epochs == 0):
            raise ValueError(
                "teacher_temperature_start and teacher_temperature_warmup_epochs have an effect together only: "
                "write both, such as 0.04 and 30, or neither"
            )
        if student_temperature <= 0:
            raise ValueError(f"student_temperature is {student_temperature}; write a number above 0, such as 0.1")
        self.student_temperature = student_temperature
        self.temperature = Temperature(teacher_temperature, teacher_temperature_start, epochs)
        self.centre = Centre(width, centre_momentum)
        self.chance = math.log(width)  # of uniform answers

    def before_step(self, at: Progress) -> None:
        """Take the epoch's temperature, and forget what a refused step saw."""
        self.temperature.move(at)
        self.centre.forget()

    def after_step(self, at: Progress) -> None:
        """Move the centre."""
        self.centre.move()

    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss", "teacher_entropy", "divergence"}: the loss is the sum of the other two, in nats."""
        shares = [None if target is None else self._teach(target) for target in targets]
        taught = [q for q in shares if q is not None]
        losses: list[Tensor] = []
        for view, output in enumerate(outputs):
            log_p = self.student_shares(_pooled(output, "student"))
            losses += [cross_entropy(q, log_p) for i, q in enumerate(shares) if q is not None and i != view]
        if not losses:
            raise ValueError(
                "dino compares different views; write an augmentation that makes at least 2, such as dino"
            )
        loss, entropy = torch.stack(losses).mean(), torch.stack([entropy_of(q) for q in taught]).mean()
        return {"loss": loss, "teacher_entropy": entropy, "divergence": loss.detach() - entropy}

    def _teach(self, target: Tokens) -> Tensor:
        """(B, 1, D) shares of the prototypes, by the teacher."""
        scores = _pooled(target, "target")
        self.centre.remember(scores)
        return teacher_shares(scores, self.centre, self.temperature)

    def student_shares(self, scores: Tensor) -> Tensor:
        """Logarithms of the shares of the prototypes (..., D), by the student."""
        return F.log_softmax(precise(scores) / self.student_temperature, dim=-1)


class Temperature:
    """The teacher's temperature, constant within an epoch."""

    def __init__(self, final: float, start: float | None, epochs: int) -> None:
        for verb, value in (("is", final), ("starts at", final if start is None else start)):
            if not 0 < value < math.inf:
                raise ValueError(f"the teacher's temperature {verb} {value}; write a number above 0, such as 0.04")
        if epochs < 0:
            raise ValueError(f"the teacher's temperature warms up for {epochs} epochs; write 0 or more")
        self.final, self.epochs = final, epochs
        self.start = final if start is None else start
        self.value = self.start

    def move(self, at: Progress) -> None:
        """Take the value of this epoch: the `epochs` first ones divide the way evenly, both ends included."""
        if self.epochs > at.epochs:
            raise ValueError(
                f"the teacher's temperature would warm up for {self.epochs} epochs, and there are {at.epochs:g}: "
                f"write fewer objective.teacher_temperature_warmup_epochs"
            )
        epoch = math.floor(at.epoch + 1e-9)  # step / steps * epochs may fall just short of a whole epoch
        share = epoch / max(self.epochs - 1, 1)
        self.value = self.final if epoch >= self.epochs else self.start + (self.final - self.start) * share


class Centre(nn.Module):
    """A moving average of the teacher's scores, over rows, micro-batches and ranks; it moves once a step."""

    value: Tensor  # (D,)

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"the momentum of a centre is {momentum}; write a number from 0 to below 1, such as 0.9")
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(width))
        self._sum: Tensor | None = None  # of the rows of the step under way
        self._count = 0

    def remember(self, scores: Tensor) -> None:
        """Note rows (..., D) for the next move."""
        rows = precise(scores.detach()).flatten(0, -2)
        self._sum = rows.sum(0) if self._sum is None else self._sum + rows.sum(0)
        self._count += len(rows)

    def forget(self) -> None:
        """Drop what was noted."""
        self._sum, self._count = None, 0

    @torch.no_grad()
    def move(self) -> None:
        """c <- momentum c + (1 - momentum) mean of the rows noted; every rank has noted as many."""
        if self._sum is not None:
            self.value.lerp_(mean(self._sum / self._count).to(self.value.dtype), 1 - self.momentum)
        self.forget()


@torch.no_grad()
def teacher_shares(scores: Tensor, centre: Centre, temperature: Temperature) -> Tensor:
    """Shares of the prototypes (..., D), centred and sharpened, without gradient."""
    return F.softmax((precise(scores) - precise(centre.value)) / temperature.value, dim=-1)


def cross_entropy(shares: Tensor, log_shares: Tensor) -> Tensor:
    """-sum q log p over prototypes, mean over everything else; 0-dim."""
    return -(shares * log_shares).sum(-1).mean()


def entropy_of(shares: Tensor) -> Tensor:
    """-sum q log q over prototypes, mean over everything else; 0-dim."""
    return torch.special.entr(shares).sum(-1).mean()


def _pooled(tokens: Tokens, whose: str) -> Tensor:
    if tokens.pooled is None:
        raise ValueError(
            f"self-distillation compares image features, but this {whose} has none; write head: prototypes"
        )
    return tokens.pooled


def _width(student: Student, target: Target | None) -> int:
    if target is None:
        raise ValueError("self-distillation needs a teacher; write target: ema")
    if target.width != student.width:
        raise ValueError(
            f"the target's width {target.width} is not the student's {student.width}: write target: ema, whose head "
            f"is the student's"
        )
    return target.width


@hookimpl
def ussl_objectives() -> dict[str, type[Objective]]:
    """Offer self-distillation."""
    return {"dino": Dino}
