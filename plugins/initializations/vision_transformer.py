"""Checkpoints of vision transformers that name their tensors as timm and MAE do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ussl import weights
from ussl.hookspecs import hookimpl
from ussl.parts import Initialization

_MARKS = ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight")
_DROPPED = ("decoder_", "head.", "mask_token")  # what pre-training adds to an encoder


class VisionTransformerFormat(Initialization):
    """Vision transformer under timm's names (timm, DeiT, MAE, URFM), wrapped or not; decoder and head are left out.

    He et al. 2022, arXiv:2111.06377: with the decoder or without it, pre-trained or fine-tuned. URFM's files hold
    their architecture's name beside two copies of the network, of which the averaged one is taken.
    """

    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        state = weights.unwrapped(checkpoint, _MARKS[0])
        relative = any(name.endswith("relative_position_bias_table") for name in state)  # a BEiT
        return all(mark in state for mark in _MARKS) and not relative

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        found = weights.unwrapped(checkpoint, _MARKS[0])
        return {k: v for k, v in found.items() if isinstance(v, Tensor) and not k.startswith(_DROPPED)}

    def licence(self, checkpoint: Mapping[str, Any]) -> str | None:
        """URFM's and MAE's where the file tells that it is one; an encoder alone does not."""
        if isinstance(checkpoint.get("model"), str) and "ema_state_dict" in checkpoint:
            return "Apache-2.0 (stated by third parties, unverified)"
        decoder = "decoder_embed.weight" in weights.unwrapped(checkpoint, _MARKS[0])
        trained_by_mae = hasattr(checkpoint.get("args"), "norm_pix_loss")
        return "CC-BY-NC 4.0" if decoder or trained_by_mae else None


@hookimpl
def ussl_initializations() -> dict[str, type[Initialization]]:
    """Offer the checkpoint format."""
    return {"vision_transformer": VisionTransformerFormat}
