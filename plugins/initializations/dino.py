"""Checkpoints that hold a student and a teacher, as DINO writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ussl import weights
from ussl.hookspecs import hookimpl
from ussl.parts import Initialization

_NETWORKS = ("teacher", "student")  # in order of preference: the teacher is what DINO evaluates
_MARKS = ("patch_embed.proj.weight", "layer1.0.conv1.weight")  # of a vision transformer, of a ResNet
_HEAD = ("head.", "mlp.", "last_layer.", "projection_head.", "prototypes.", "fc.")  # today's names and the first
_DROPPED = (*_HEAD, "mask_token", "masked_embed")


class DinoFormat(Initialization):
    """DINO's full checkpoint, of a vision transformer or a ResNet: the teacher's encoder, without its head.

    Caron et al. 2021, arXiv:2104.14294. A file with the encoder alone looks as timm's do, and is read as those.
    """

    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        return bool(_encoder(checkpoint))

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        found = _encoder(checkpoint)
        return {k: v for k, v in found.items() if isinstance(v, Tensor) and not k.startswith(_DROPPED)}

    def licence(self, checkpoint: Mapping[str, Any]) -> str | None:
        return "Apache-2.0"

    def statistics(self, checkpoint: Mapping[str, Any]) -> weights.Statistics | None:
        return weights.IMAGENET


def _encoder(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The first encoder found, with a head beside it where the file has no name for the encoder alone."""
    for held in (checkpoint.get(name) for name in _NETWORKS):
        for mark in _MARKS:
            if isinstance(held, Mapping) and (found := weights.unwrapped(held, mark, containers=())):
                return found
    return {}


@hookimpl
def ussl_initializations() -> dict[str, type[Initialization]]:
    """Offer the checkpoint format."""
    return {"dino": DinoFormat}
