"""One training step of every method: views, masks, targets, outputs, losses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ussl.parts import Augmentation, Batch, Draws, Mask, Masking, Objective, Part, Student, Target, View
from ussl.signs import signs


class Method(nn.Module):
    """A method is a choice of parts; forward is what all of them do in a step."""

    def __init__(
        self,
        augmentation: Augmentation,
        student: Student,
        masking: Masking | None,
        target: Target | None,
        objective: Objective,
    ) -> None:
        super().__init__()
        if masking is None and student.encoder.accepts == {"token"}:
            raise ValueError(
                "encoder.mask_token has no effect without masking: write masking: {name: block, how: token}"
            )
        if getattr(student.head, "patches", False) and not objective.reads_patches:
            raise ValueError("head.patches has no effect: this objective reads the features of images only; remove it")
        if masking is not None and not student.encoder.accepts:
            raise ValueError("this encoder cannot mask patches: remove masking from the recipe")
        self.augmentation = augmentation
        self.student = student
        self.masking = masking
        self.target = target
        self.objective = objective

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """{"loss": ..., scalars to log}, 0-dim fp32."""
        # mixed precision would round the pixels
        with torch.no_grad(), torch.autocast(batch.pixels.device.type, enabled=False):
            views = self.augmentation(batch, draws)
            masks = [self.hide(view, draws.view(i)) for i, view in enumerate(views)]
        targets = [None] * len(views) if self.target is None else self.target(views)
        encoded, outputs = self.student.through(views, masks)
        return signs(encoded, targets) | self.objective(outputs, targets, masks)

    def hide(self, view: View, draws: Draws) -> Mask | None:
        """The mask of a view; None = it stays whole."""
        if self.masking is None:
            return None
        rows, columns = view.image.shape[-2:]
        return self.masking(view, self.student.encoder.grid(rows, columns), draws)

    def parts(self) -> Iterator[Part]:
        """Every part, for the calls around a step."""
        return (module for module in self.modules() if isinstance(module, Part))


class Ema:
    """An exponential moving average of a student's parameters, decay min(decay, (1 + step) / (10 + step)).

    Buffers (batch-norm statistics, fixed positions) are copied.
    """

    def __init__(self, student: Student, decay: float) -> None:
        self.decay = decay
        self.average = {name: x.detach().clone() for name, x in student.state_dict().items()}

    @torch.no_grad()
    def update(self, student: Student, step: int) -> None:
        """Move towards the student after its `step`-th update, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        averages = [self.average[name] for name in trained]
        torch._foreach_lerp_(averages, [p.detach() for p in trained.values()], weight)
        for name, x in student.state_dict().items():
            if name not in trained:
                self.average[name].copy_(x)
