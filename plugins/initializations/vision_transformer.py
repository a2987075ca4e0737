"""Checkpoints of vision transformers that name their tensors as timm and MAE do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ussl.hookspecs import hookimpl
from ussl.parts import Initialization

_CONTAINERS = ("ema_state_dict", "state_dict", "model")  # in order of preference: averaged weights are better
_MARKS = ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight")
_WRAPPERS = {"module", "encoder"}  # names that training code puts before an encoder's
_DROPPED = ("decoder_", "head.")  # and mask_token: what pre-training adds to an encoder


class VisionTransformerFormat(Initialization):
    """Vision transformer under timm's names (timm, DeiT, MAE, URFM), wrapped or not; decoder and head are left out."""

    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        state = _unwrapped(checkpoint)
        return all(mark in state for mark in _MARKS)

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = {k: v for k, v in _unwrapped(checkpoint).items() if isinstance(v, Tensor)}
        return {k: v for k, v in tensors.items() if k != "mask_token" and not k.startswith(_DROPPED)}


def _unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's entries of a checkpoint, without the names of what held it; empty where there is no encoder."""
    held = (checkpoint[name] for name in _CONTAINERS if isinstance(checkpoint.get(name), Mapping))
    state = next(held, checkpoint)
    for name in state:
        prefix = str(name).removesuffix(_MARKS[0])
        if prefix != name and set(prefix.split(".")[:-1]) <= _WRAPPERS:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {}


@hookimpl
def ussl_initializations() -> dict[str, type[Initialization]]:
    """Offer the checkpoint format."""
    return {"vision_transformer": VisionTransformerFormat}
