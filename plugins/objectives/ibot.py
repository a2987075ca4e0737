"""Self-distillation of images and, where the student's view is masked, of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Objective, Progress, Student, Target, Tokens
from ussl.positions import at
from ussl_plugins.objectives.dino import Centre, Dino, Temperature, cross_entropy, entropy_of, teacher_shares


class Ibot(Dino):
    """DINO, and of each hidden patch what the teacher says who sees it (iBOT; the patch loss of DINOv2).

    Zhou et al. 2022, arXiv:2111.07832: the class token's loss is DINO's over different views; the patches' is between
    the teacher's and the student's tokens of one view, whose hidden patches the student's encoder replaced by a mask
    token: the mean over the patches asked for, then over images. Patches have their own centre and temperature.

    Needs head `prototypes` with `patches: true`, target `ema` and a masking with `how: token`.

    Args:
        teacher_patch_temperature: the teacher's, for patches; null = as for the class token, all through.
        teacher_patch_temperature_start: for patches in the first epoch, when it is to change; it does so over the
            epochs of `teacher_temperature_warmup_epochs`.
        patch_centre_momentum: how much of the patches' centre stays at every step.
        class_weight: of the class token's loss (the paper's lambda1).
        patch_weight: of the patches' loss (lambda2).
    """

    reads_patches = True

    def __init__(
        self,
        student: Student,
        target: Target | None,
        *,
        teacher_patch_temperature: float | None = None,
        teacher_patch_temperature_start: float | None = None,
        patch_centre_momentum: float = 0.9,
        class_weight: float = 1.0,
        patch_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(student, target, **options)
        if class_weight < 0 or patch_weight <= 0:
            raise ValueError(
                f"class_weight is {class_weight}, patch_weight {patch_weight}; write 1 and 1, or objective: dino "
                f"where patches are to have no part"
            )
        self.patch_temperature = self._patch_temperature(teacher_patch_temperature, teacher_patch_temperature_start)
        self.patch_centre = Centre(student.width, patch_centre_momentum)
        self.class_weight, self.patch_weight = class_weight, patch_weight
        assert self.chance is not None
        self.chance *= class_weight + patch_weight

    def _patch_temperature(self, final: float | None, start: float | None) -> Temperature:
        image = self.temperature
        if final is None and start is None:
            return Temperature(image.final, image.start, image.epochs)
        if final is None:
            raise ValueError("teacher_patch_temperature_start needs an end: write teacher_patch_temperature")
        if start is not None and not image.epochs:
            raise ValueError(
                "teacher_patch_temperature_start has no effect without teacher_temperature_warmup_epochs: write both"
            )
        return Temperature(final, start, image.epochs)

    def before_step(self, at: Progress) -> None:
        """Take the epoch's temperatures, and forget what a refused step saw."""
        super().before_step(at)
        self.patch_temperature.move(at)
        self.patch_centre.forget()

    def after_step(self, at: Progress) -> None:
        """Move both centres."""
        super().after_step(at)
        self.patch_centre.move()

    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss", "class_loss", "patch_loss", "teacher_entropy", "patch_entropy", "divergence"}, in nats.

        loss = class_weight class_loss + patch_weight patch_loss = teacher_entropy + divergence, the entropy weighted
        as the loss is; "patch_entropy" is the teacher's over patches alone.
        """
        image = super().forward(outputs, targets, masks)
        views = zip(outputs, targets, masks, strict=True)
        pairs = [self._view(output, target, mask) for output, target, mask in views if target is not None]
        patch_loss, patch_entropy = (torch.stack(values).mean() for values in zip(*pairs, strict=True))
        loss = self.class_weight * image["loss"] + self.patch_weight * patch_loss
        entropy = self.class_weight * image["teacher_entropy"] + self.patch_weight * patch_entropy
        return {
            "loss": loss,
            "class_loss": image["loss"].detach(),
            "patch_loss": patch_loss.detach(),
            "teacher_entropy": entropy,
            "patch_entropy": patch_entropy,
            "divergence": loss.detach() - entropy,
        }

    def _view(self, output: Tokens, target: Tokens, mask: Mask | None) -> tuple[Tensor, Tensor]:
        """Loss and teacher's entropy of the patches asked for; every image has as many, so one mean is the paper's."""
        said, scores = _patches(output, target, mask)
        assert mask is not None
        self.patch_centre.remember(scores)  # of all patches
        where = mask.predict[:, :, 0].byte().argsort(dim=-1, stable=True)[..., -mask.asked :]  # (B, K, A)
        shares = teacher_shares(at(scores, where), self.patch_centre, self.patch_temperature)
        return cross_entropy(shares, self.student_shares(at(said, where))), entropy_of(shares)


def _patches(output: Tokens, target: Tokens, mask: Mask | None) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's tokens of all patches; ValueError where the parts of the method do not fit."""
    if mask is None:
        raise ValueError("ibot needs a mask for every global view; write masking: {name: block, how: token}")
    if output.patches is None or target.patches is None:
        raise ValueError("ibot needs scores of patches; write head: {name: prototypes, patches: true}")
    if output.where is not None or output.grid != target.grid:
        raise ValueError("ibot needs the student's token of every patch; write masking: {name: block, how: token}")
    if mask.predict.shape[2] != 1:
        raise ValueError(f"ibot predicts one set of patches a mask; this masking asks for {mask.predict.shape[2]}")
    return output.patches, target.patches


@hookimpl
def ussl_objectives() -> dict[str, type[Objective]]:
    """Offer self-distillation with masked patches."""
    return {"ibot": Ibot}
