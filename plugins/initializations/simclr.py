"""SimCLRv2's ResNets, converted from TensorFlow to PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ussl import weights
from ussl.hookspecs import hookimpl
from ussl.parts import Initialization

_MARK = "net.1.blocks.0.net.0.weight"  # the first convolution of the first block
_STEM_MARK = "net.0.0.weight"
_STEM = {"net.0.0": "conv1", "net.0.1.0": "bn1"}
_BLOCK = re.compile(r"net\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\.(?P<place>.+)")
_PLACES = {  # in a block; batch norms lie in a pair with their activation
    **{f"net.{2 * i}": f"conv{i + 1}" for i in range(3)},
    **{f"net.{2 * i + 1}.0": f"bn{i + 1}" for i in range(3)},
    "projection.shortcut": "downsample.0",
    "projection.bn.0": "downsample.1",
}


class SimclrV2Format(Initialization):
    """SimCLRv2's ResNet converted to PyTorch (r50, r101, r152; 1x, sk0), under the names of timm's; heads left out.

    Chen et al. 2020, arXiv:2006.10029. Wider networks and selective kernels have no counterpart in timm, and are
    refused. The tensors are unchanged, and so is what they compute, but for one thing that conversion to PyTorch
    brings: TensorFlow's max pooling pads right and below only, so that its grid lies one pixel further.
    """

    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        return _STEM_MARK in _network(checkpoint)

    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        found = _network(checkpoint)
        if any("mixing_conv" in name for name in found):
            raise ValueError("this SimCLRv2 network has selective kernels, timm's ResNets do not: use an sk0 network")
        if (times := found[_STEM_MARK].shape[0] // 64) > 1:
            raise ValueError(f"this SimCLRv2 network is {times} times as wide as timm's ResNets: use a 1x network")
        renamed = {_renamed(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
        return {name: tensor for name, tensor in renamed.items() if not name.startswith("fc.")}

    def licence(self, checkpoint: Mapping[str, Any]) -> str | None:
        return "Apache-2.0"

    def statistics(self, checkpoint: Mapping[str, Any]) -> weights.Statistics | None:
        """None is subtracted: SimCLR trains on images in [0, 1]."""
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def _network(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    wrappers = {*weights.WRAPPERS, "resnet"}
    return weights.unwrapped(checkpoint, _MARK, ("resnet", *weights.CONTAINERS), wrappers)


def _renamed(name: str) -> str:
    """timm's name of a tensor; what has none keeps its own, and is reported as unexpected."""
    module, _, tensor = name.rpartition(".")
    if module in _STEM:
        return f"{_STEM[module]}.{tensor}"
    if (found := _BLOCK.fullmatch(module)) and found["place"] in _PLACES:
        return f"layer{found['stage']}.{found['block']}.{_PLACES[found['place']]}.{tensor}"
    return name


@hookimpl
def ussl_initializations() -> dict[str, type[Initialization]]:
    """Offer the checkpoint format."""
    return {"simclrv2": SimclrV2Format}
