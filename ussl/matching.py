"""Pretrained tensors into a network: what fits by name and shape is copied, the rest is reported or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_NETWORKS = (  # what a network is, a tensor that tells, and the encoder to write; the first that fits
    ("a ResNet", "layer1.0.conv1.weight", "{name: timm, model: resnet50}"),
    ("a BEiT", "blocks.0.attn.q_bias", "{name: beit}"),
    ("a ViT", "blocks.0.attn.qkv.weight", "{name: vit}"),
)


@dataclass
class Report:
    """What of a file fitted a network."""

    what: str  # the file
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the network, not in the file
    reshaped: list[str] = field(default_factory=list)  # in both, of another shape, so not loaded
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the network

    @property
    def fraction(self) -> float:
        """Share of the network's tensors that were loaded."""
        return len(self.matched) / max(len(self.matched) + len(self.missing) + len(self.reshaped), 1)

    def lines(self) -> list[str]:
        """The report in a few lines to print."""
        count = len(self.matched) + len(self.missing) + len(self.reshaped)
        return [f"weights {self.what}: {len(self.matched)} of {count} tensors loaded", *self.rest()]

    def rest(self) -> list[str]:
        """What did not fit, and what that means where it is a known trap."""
        kinds = {
            "missing": self.missing,
            "of another shape, not loaded": self.reshaped,
            "unexpected, not used": self.unexpected,
        }
        told = [f"{kind}: {few(names)}" for kind, names in kinds.items() if names]
        if "norm.weight" in self.missing and "fc_norm.weight" in self.unexpected:
            told.append("norm begins anew: the file normalises the average of the tokens (fc_norm), not every token")
        if "fc_norm.weight" in self.missing and "norm.weight" in self.unexpected:
            told.append("fc_norm begins anew: the file normalises every token (norm), not the average of the tokens")
        return told


def match(module: nn.Module, state: Mapping[str, Tensor], minimum: float, what: str) -> Report:
    """Copy the tensors of `state` that fit by name and shape into `module`, which changes only if enough do.

    ValueError when less than the fraction `minimum` of the module's tensors fit.
    """
    report, own = Report(what), module.state_dict()
    for name, tensor in own.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} in the file, {tuple(tensor.shape)} here"
            report.reshaped.append(f"{name} ({shapes})")
        else:
            report.matched.append(name)
    report.unexpected = [name for name in state if name not in own]
    if report.fraction < minimum:
        problem = f"only {len(report.matched)} of {len(own)} tensors match, below init_matched {minimum}"
        told = [f"{what} does not fit this network: {problem}", *_other(state, own), *report.rest()]
        raise ValueError("; ".join(told))
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(state[name])
    return report


def _other(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """That a file holds another kind of network, and the encoder to write for it; nothing where it does not."""
    (held, encoder), (here, _) = _kind(state), _kind(own)
    return [f"it holds {held}, this is {here}: write encoder: {encoder}"] if held and here and held != here else []


def _kind(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """What kind of network has such tensors, and the encoder to write for it; empty = unknown."""
    name, encoder = next(((name, encoder) for name, mark, encoder in _NETWORKS if mark in state), ("", ""))
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer3.")})
    depth = {(2, False): 18, (6, False): 34, (23, True): 101, (36, True): 152}
    deep = depth.get((blocks, "layer1.0.conv3.weight" in state), 50)
    return name, encoder.replace("resnet50", f"resnet{deep}")


def few(names: Iterable[str], most: int = 4) -> str:
    """The first of many names, for a line to print."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
