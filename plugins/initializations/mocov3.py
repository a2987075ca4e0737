"""Checkpoints that hold a base encoder and a momentum encoder, as MoCo-v3 writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ussl import weights
from ussl.hookspecs import hookimpl
from ussl.parts import Initialization

_MARKS = ("patch_embed.proj.weight", "layer1.0.conv1.weight")  # of a vision transformer, of a ResNet
_PREFIXES = ("module.base_encoder.", "base_encoder.")
_PROJECTOR = ("head.", "fc.")  # stands where the classifier was


class MocoV3Format(Initialization):
    """MoCo-v3's checkpoint, of a vision transformer or a ResNet: the base encoder, without its projector.

    Chen et al. 2021, arXiv:2104.02057. The vision transformer called small has 12 heads there, not 6: write
    `encoder.heads: 12`, since no tensor tells.
    """

    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        state = _base(checkpoint)
        return any(mark in state for mark in _MARKS)

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        return {k: v for k, v in _base(checkpoint).items() if not k.startswith(_PROJECTOR)}

    def licence(self, checkpoint: Mapping[str, Any]) -> str | None:
        return "CC-BY-NC 4.0"

    def statistics(self, checkpoint: Mapping[str, Any]) -> weights.Statistics | None:
        return weights.IMAGENET


def _base(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the base encoder with its projector."""
    held = checkpoint.get("state_dict")
    state = held if isinstance(held, Mapping) else checkpoint
    for prefix in _PREFIXES:
        if found := {k.removeprefix(prefix): v for k, v in state.items() if str(k).startswith(prefix)}:
            return {k: v for k, v in found.items() if isinstance(v, Tensor)}
    return {}


@hookimpl
def ussl_initializations() -> dict[str, type[Initialization]]:
    """Offer the checkpoint format."""
    return {"mocov3": MocoV3Format}
