"""Contrast with a teacher: what is predicted of one view is to find what a slow copy says of the other."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ussl.distributed import gather, rank
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Objective, Student, Target, Tokens
from ussl.precision import precise
from ussl_plugins.heads.mlp import perceptron
from ussl_plugins.objectives.simclr import check_temperature, features, images, two


class MoCoV3(Objective):
    """Contrast with a moving average of the student: a view predicts the other among all images (MoCo-v3).

    Chen et al. 2021, arXiv:2104.02057, algorithm 1. With queries q, the predictions from the student's features, and
    keys k, the teacher's features of the images of all devices, the loss is ctr(q1, k2) + ctr(q2, k1), where
    ctr(q, k) = 2 temperature * mean over images of -log softmax(cosine / temperature) at the image's own key.

    Made for head `mlp` and target `ema`; with `joined: false` the batch norms see one view at a time, as in the
    authors' code, and as the predictor's always do. Several micro-batches are not one batch: each is contrasted within
    itself.

    Args:
        temperature: divides the cosines (0.2 for vision transformers, 1 for ResNets).
        hidden: width of the predictor's hidden layer.
        last: the batch norm at the predictor's end: `plain` = without scale and shift (vision transformers), `none` =
            no batch norm (ResNets).
    """

    reads_patches = False

    def __init__(
        self,
        student: Student,
        target: Target | None,
        *,
        temperature: float = 0.2,
        hidden: int = 4096,
        last: Literal["plain", "none"] = "plain",
    ) -> None:
        super().__init__()
        if target is None:
            raise ValueError("mocov3 needs a teacher; write target: ema")
        if last not in ("plain", "none"):
            raise ValueError(f"last is {last!r}; write plain or none")
        check_temperature(temperature)
        self.temperature = temperature
        self.predictor = perceptron([student.width, hidden, target.width], last)

    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss", "contrast_accuracy", "alignment"} of two views.

        contrast_accuracy is the share of queries whose nearest key is that of their image; alignment the mean squared
        distance between the two on the unit sphere.
        """
        seen = [features(view, "mocov3", "student") for view in two(outputs, "mocov3")]
        keys = [features(view, "mocov3", "target") for view in taught(targets)]
        queries = [self.predictor(view) for view in seen]
        self.chance = 4 * self.temperature * math.log(images(queries[0], "mocov3"))  # a number of shapes, no state
        with torch.autocast(queries[0].device.type, enabled=False):
            queries, keys = ([F.normalize(precise(x), dim=-1) for x in views] for views in (queries, keys))
            pairs = [self._contrast(q, k.detach()) for q, k in zip(queries, reversed(keys), strict=True)]
        losses, accuracies, distances = (torch.stack(values) for values in zip(*pairs, strict=True))
        return {"loss": losses.sum(), "contrast_accuracy": accuracies.mean(), "alignment": distances.mean()}

    def _contrast(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ctr, the accuracy and the distance to the own key, 0-dim, of rows (B, D) on the unit sphere."""
        similar = queries @ gather(keys).T / self.temperature  # (B, N)
        own = torch.arange(len(keys), device=keys.device) + rank() * len(keys)
        loss = 2 * self.temperature * F.cross_entropy(similar, own)
        accuracy = (similar.argmax(1) == own).float().mean()
        return loss, accuracy, (queries - keys).detach().square().sum(-1).mean()


def taught(targets: list[Tokens | None]) -> list[Tokens]:
    """The targets, of which there must be two."""
    found = [target for target in two(targets, "mocov3") if target is not None]
    if len(found) != 2:
        raise ValueError("mocov3 needs a target for both views; write augmentation: mocov3, which makes global views")
    return found


@hookimpl
def ussl_objectives() -> dict[str, type[Objective]]:
    """Offer the contrast with a teacher."""
    return {"mocov3": MoCoV3}
