"""A teacher that follows the student: a copy of it whose weights are a moving average of the student's."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from ussl.parts import Progress, Student, Target, Tokens, View
from ussl.schedules import cosine

__all__ = ["MomentumTeacher"]


class MomentumTeacher(Target):
    """Base of targets that ask an exponential moving average of the student, its head included.

    teacher <- m teacher + (1 - m) student, parameters only, m on half a cosine from `momentum` to `final_momentum`
    over the training. Batch-norm statistics are the teacher's own, by its passes in training mode; drop path and
    dropout are off in it.

    Args:
        student: whose weights are followed; copied as it is now, with the weights it was initialised with.
        momentum: m of the first step.
        final_momentum: m at the end of the training; equal to `momentum` for a constant one.
        update: when the teacher moves: `after` the optimizer's step, by that step's m (DINO, arXiv:2104.14294), or
            `before` the forward pass, by the m of the step that begins (MoCo-v3, arXiv:2104.02057).
    """

    def __init__(
        self,
        student: Student,
        *,
        momentum: float,
        final_momentum: float,
        update: Literal["after", "before"],
    ) -> None:
        super().__init__()
        if update not in ("after", "before"):
            raise ValueError(f"update is {update!r}; write after or before")
        if not 0 <= momentum <= final_momentum <= 1:
            raise ValueError(
                f"momentum goes from {momentum} to final_momentum {final_momentum}: write 0 <= momentum <= "
                f"final_momentum <= 1, such as 0.996 and 1"
            )
        self.momentum, self.final_momentum, self.update = momentum, final_momentum, update
        self._student = [student]  # in a list, so as not to become a submodule
        self.teacher: Student = copy.deepcopy(student).requires_grad_(False)
        for module in self.teacher.modules():
            _let_all_pass(module)
        self.width = student.width

    def ask(self, views: list[View]) -> list[Tokens]:
        """The teacher's tokens of whole, undegraded views."""
        return self.teacher([View(view.clean, view.clean, view.role) for view in views], [None] * len(views))

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Follow the student. Moving before the next forward pass is moving now, by the next step's m."""
        step = at.step + (self.update == "before")
        momentum = cosine(self.momentum, self.final_momentum, step / at.steps)
        pairs = zip(self.teacher.parameters(), self._student[0].parameters(), strict=True)
        moving = [(own.data, other.data) for own, other in pairs if other.requires_grad]
        torch._foreach_lerp_([own for own, _ in moving], [other for _, other in moving], 1 - momentum)


def _let_all_pass(module: nn.Module) -> None:
    """Turn drop path and dropout off."""
    from timm.layers import DropPath

    if isinstance(module, DropPath):
        module.drop_prob = 0.0
    if isinstance(module, nn.modules.dropout._DropoutNd):
        module.p = 0.0
