"""Contrast of two views of every image: among all views of a batch, each is to find its twin.

Not lightly's NTXentLoss: mixed precision would round its similarities, and its boolean indexing waits for the device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ussl.distributed import gather, rank, world
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Objective, Student, Target, Tokens
from ussl.precision import precise


class SimCLR(Objective):
    """Contrast of two views: alike for one image, unlike those of all others, on all devices (SimCLR, NT-Xent).

    Chen et al. 2020, arXiv:2002.05709, eq. 1. Of N images in all, a view's feature z is compared with the 2 N - 1
    other views': -log softmax(cosine / temperature) at the other view of its image, mean over the 2 N views. The
    authors' code adds up two means over N, twice this, which matters to an optimizer that minds the scale of a loss.

    Several micro-batches are not one batch: each is contrasted within itself.

    Args:
        temperature: divides the cosines; lower looks at the nearest other images.
    """

    reads_patches = False

    def __init__(self, student: Student, target: Target | None, *, temperature: float = 0.1) -> None:
        super().__init__()
        if target is not None:
            raise ValueError(
                "simclr compares the student's views with each other, so a target has no effect: leave it out"
            )
        check_temperature(temperature)
        self.temperature = temperature

    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss", "contrast_accuracy", "alignment"} of two views.

        contrast_accuracy is the share of views whose nearest other view is that of their image; alignment the mean
        squared distance between the two on the unit sphere (Wang & Isola 2020, arXiv:2005.10242).
        """
        first, second = (features(view, "simclr", "student") for view in two(outputs, "simclr"))
        self.chance = math.log(2 * images(first, "simclr") - 1)  # of features all alike; a number of shapes, no state
        with torch.autocast(first.device.type, enabled=False):
            first, second = (F.normalize(precise(x), dim=-1, eps=1e-6) for x in (first, second))
            loss, accuracy = nt_xent(first, second, self.temperature)
            alignment = (first - second).detach().square().sum(-1).mean()
        return {"loss": loss, "contrast_accuracy": accuracy, "alignment": alignment}


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Loss and accuracy, 0-dim, of two views (B, D) on the unit sphere among the views of all ranks."""
    own = torch.cat([first, second])  # (2 B, D)
    row = torch.arange(len(own), device=own.device)
    place = row + rank() * len(own)  # of these rows among those of all ranks
    similar = own @ gather(own).T / temperature  # (2 B, 2 N)
    similar[row, place] = -torch.inf  # none is its own twin
    twin = place.roll(len(first))
    return F.cross_entropy(similar, twin), (similar.argmax(1) == twin).float().mean()


def two(views: list[Tokens], name: str) -> list[Tokens]:
    """The views, of which there must be two."""
    if len(views) != 2:
        raise ValueError(
            f"{name} compares two views of an image, this augmentation makes {len(views)}; write augmentation: {name}"
        )
    return views


def features(tokens: Tokens, name: str, whose: str) -> Tensor:
    """The image features (B, D) of a view of the "student" or the "target"."""
    if tokens.pooled is None:
        advice = "head: mlp" if whose == "student" else "target: ema"
        raise ValueError(f"{name} compares image features, but this {whose} has none; write {advice}")
    if tokens.pooled.shape[1] != 1:
        raise ValueError(
            f"{name} compares one feature a view, this masking makes {tokens.pooled.shape[1]}; leave masking out"
        )
    return tokens.pooled[:, 0]


def images(x: Tensor, name: str) -> int:
    """Images of a pass on all ranks, from the rows (B, D) of this one."""
    count = len(x) * world()
    if count < 2:
        raise ValueError(
            f"{name} tells the images of a pass apart and was given a single one; write a larger train.batch_size or "
            f"train.micro_batch"
        )
    return count


def check_temperature(temperature: float) -> None:
    """ValueError unless it can divide."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; write a number above 0, such as 0.1")


@hookimpl
def ussl_objectives() -> dict[str, type[Objective]]:
    """Offer the contrast of two views."""
    return {"simclr": SimCLR}
