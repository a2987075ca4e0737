"""Scores against prototypes, the head of self-distillation.

Not lightly's DINOProjectionHead: its last layer is frozen by a call of the training loop, with the epoch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Head, Progress, Tokens


class Prototypes(Head):
    """A small network, then cosines with many learned prototypes, for DINO and iBOT.

    Caron et al. 2021, arXiv:2104.14294, appendix C: linear layers with GELU between them down to a bottleneck, l2
    normalisation, and a weight-normalised linear layer without bias. Names of weights are the released code's, save
    that torch now calls a weight norm's g and v `parametrizations.weight.original0` and `original1`.

    Args:
        prototypes: how many; the width of the tokens that come out.
        hidden: width of the hidden layers.
        bottleneck: width of what is normalised and compared with the prototypes.
        layers: linear layers down to the bottleneck.
        norm_last_layer: every prototype keeps the length 1, which steadies training; else the lengths are learned.
        freeze_epochs: epochs at the beginning in which the prototypes do not move.
        patches: the tokens of patches go through the same head (iBOT, Zhou et al. 2022, arXiv:2111.07832).
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm_last_layer: bool = True,
        freeze_epochs: float = 1.0,
        patches: bool = False,
    ) -> None:
        super().__init__()
        _check(prototypes, hidden, bottleneck, layers, freeze_epochs)
        self.width = prototypes
        self.freeze_epochs = freeze_epochs
        self.patches = patches
        widths = [encoder.width, *[hidden] * (layers - 1), bottleneck]
        steps = [m for into, out in pairwise(widths) for m in (nn.Linear(into, out), nn.GELU())]
        self.mlp = nn.Sequential(*steps[:-1])
        self.mlp.apply(_initialise)
        self.last_layer = weight_norm(nn.Linear(bottleneck, prototypes, bias=False))  # v as torch draws it
        lengths = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(lengths).requires_grad_(not norm_last_layer)

    def forward(self, tokens: Tokens) -> Tokens:
        """Scores of the image feature, (B, K, prototypes), and with `patches` of every patch token too."""
        if tokens.pooled is None:
            raise ValueError("the prototypes head needs an image feature; this encoder gives tokens of patches only")
        pooled = self._scores(tokens.pooled)
        if not self.patches:
            return Tokens(pooled, None, None, tokens.grid)
        if tokens.patches is None:
            raise ValueError("this encoder gives no tokens of patches; leave the head's patches out")
        return Tokens(pooled, self._scores(tokens.patches), tokens.where, tokens.grid)

    def _scores(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))

    def before_step(self, at: Progress) -> None:
        """ValueError where the prototypes would never move."""
        if self.freeze_epochs >= at.epochs:
            raise ValueError(
                f"the prototypes would stay frozen in all {at.epochs:g} epochs: write a head.freeze_epochs below "
                f"{self.freeze_epochs:g}, such as {at.epochs / 100:g}"
            )

    def after_backward(self, at: Progress) -> None:
        """Drop the prototypes' gradients in the first epochs."""
        if at.epoch + 1e-9 < self.freeze_epochs:  # step / steps * epochs may fall just short of a whole epoch
            for parameter in self.last_layer.parameters():
                parameter.grad = None


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _check(prototypes: int, hidden: int, bottleneck: int, layers: int, freeze_epochs: float) -> None:
    if prototypes < 2:
        raise ValueError(f"prototypes is {prototypes}; images are told apart by at least 2, such as 65536")
    if hidden < 1 or bottleneck < 1:
        raise ValueError(f"hidden is {hidden}, bottleneck {bottleneck}; write widths of at least 1")
    if layers < 2:
        raise ValueError(f"layers is {layers}; write 2 or more, since one layer would have no hidden width")
    if freeze_epochs < 0:
        raise ValueError(f"freeze_epochs is {freeze_epochs}; write 0 to train the prototypes from the beginning")


@hookimpl
def ussl_heads() -> dict[str, type[Head]]:
    """Offer prototypes."""
    return {"prototypes": Prototypes}
