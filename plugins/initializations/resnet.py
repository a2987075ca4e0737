"""Checkpoints of ResNets that name their tensors as torchvision and timm do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ussl import weights
from ussl.hookspecs import hookimpl
from ussl.parts import Initialization

_MARKS = ("layer1.0.conv1.weight", "conv1.weight", "bn1.weight")
_WRAPPERS = {*weights.WRAPPERS, "resnet"}


class ResNetFormat(Initialization):
    """ResNet under the names of torchvision and timm, wrapped or not; classifier and projector are left out."""

    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        state = weights.unwrapped(checkpoint, _MARKS[0], wrappers=_WRAPPERS)
        return all(mark in state for mark in _MARKS)

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        found = weights.unwrapped(checkpoint, _MARKS[0], wrappers=_WRAPPERS)
        return {k: v for k, v in found.items() if isinstance(v, Tensor) and not k.startswith("fc.")}


@hookimpl
def ussl_initializations() -> dict[str, type[Initialization]]:
    """Offer the checkpoint format."""
    return {"resnet": ResNetFormat}
