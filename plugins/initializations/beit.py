"""Checkpoints of vision transformers with relative positions, as BEiT, SimMIM and USFM name their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ussl import weights
from ussl.hookspecs import hookimpl
from ussl.parts import Initialization

_MARK = "blocks.0.attn.q_bias"
_TABLE = "relative_position_bias_table"
_SHARED = f"rel_pos_bias.{_TABLE}"
_DROPPED = ("head.", "lm_head.", "mask_token", "decoder.")  # what pre-training adds to an encoder
_BEIT_CLASSES = (1000, 21841)  # of ImageNet, which only BEiT's own files are fine-tuned for


class BeitFormat(Initialization):
    """BEiT, SimMIM or USFM under the names of timm's BEiT; a shared table of positions is copied into every block.

    Bao et al. 2022, arXiv:2106.08254; Xie et al. 2022, arXiv:2111.09886; Jiao et al. 2024, Med Image Anal 96:103202.
    Only BEiT's own heads tell its files from the others': the rest may be of any of the three.
    """

    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        return any(name.endswith(_TABLE) for name in weights.unwrapped(checkpoint, _MARK))

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        found = {k: v for k, v in weights.unwrapped(checkpoint, _MARK).items() if isinstance(v, Tensor)}
        kept = {k: v for k, v in found.items() if not k.startswith(_DROPPED) and "relative_position_index" not in k}
        return _by_block(kept)

    def licence(self, checkpoint: Mapping[str, Any]) -> str | None:
        return "MIT" if _by_beit(checkpoint) else "USFM: CC-BY-NC 4.0, BEiT and SimMIM: MIT"

    def statistics(self, checkpoint: Mapping[str, Any]) -> weights.Statistics | None:
        """BEiT's are one half; SimMIM's are ImageNet's, as are those that USFM fine-tunes with."""
        return ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) if _by_beit(checkpoint) else weights.IMAGENET


def _by_beit(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a file has one of the heads of BEiT's releases."""
    state = weights.unwrapped(checkpoint, _MARK)
    head = state.get("head.weight")
    return "lm_head.weight" in state or (isinstance(head, Tensor) and len(head) in _BEIT_CLASSES)


def _by_block(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a table of relative positions in every block: its own, the shared one, or their sum where it has both."""
    if _SHARED not in state:
        return state
    shared = state.pop(_SHARED)
    for name in [f"{name.removesuffix('q_bias')}{_TABLE}" for name in state if name.endswith(".attn.q_bias")]:
        state[name] = state[name] + shared if name in state else shared.clone()
    return state


@hookimpl
def ussl_initializations() -> dict[str, type[Initialization]]:
    """Offer the checkpoint format."""
    return {"beit": BeitFormat}
