"""What a moving average of the student says: the target of MoCo-v3, DINO and their kin."""

from __future__ import annotations

from typing import Literal

import torch

from ussl.hookspecs import hookimpl
from ussl.momentum import MomentumTeacher
from ussl.parts import Student, Target, Tokens, View


class EmaTarget(MomentumTeacher):
    """What an exponential moving average of the student, head included, says of the global views (MoCo-v3, DINO).

    Chen et al. 2021, arXiv:2104.02057; Caron et al. 2021, arXiv:2104.14294. Local views have no target.

    Args:
        momentum: of the average, in the first step; the teacher becomes momentum x teacher + (1 - momentum) x student.
        final_momentum: at the end of the training, reached on half a cosine.
        update: `after` the optimizer's step (DINO) or `before` the forward pass (MoCo-v3).
    """

    def __init__(
        self,
        student: Student,
        *,
        momentum: float = 0.996,
        final_momentum: float = 1.0,
        update: Literal["after", "before"] = "after",
    ) -> None:
        super().__init__(student, momentum=momentum, final_momentum=final_momentum, update=update)

    @torch.no_grad()
    def forward(self, views: list[View]) -> list[Tokens | None]:
        """The teacher's tokens of each global view, K = 1; None for each local one."""
        wanted = [i for i, view in enumerate(views) if view.role == "global"]
        if not wanted:
            raise ValueError("the ema target needs a global view; this augmentation makes local ones only")
        said: list[Tokens | None] = [None] * len(views)
        for i, tokens in zip(wanted, self.ask([views[i] for i in wanted]), strict=True):
            said[i] = tokens
        return said


@hookimpl
def ussl_targets() -> dict[str, type[Target]]:
    """Offer the moving average."""
    return {"ema": EmaTarget}
