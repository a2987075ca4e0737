"""Projections of the image feature, the head of contrastive learning.

Not lightly's heads: their batch norm sees one device's images, and their last one always adds a constant.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import nn

from ussl.distributed import BatchNorm
from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Head, Tokens

Last = Literal["scale", "plain", "none"]


class Mlp(Head):
    """Linear layers with batch norm over the images of all devices, for SimCLR and MoCo-v3.

    Chen et al. 2020, arXiv:2006.10029; Chen et al. 2021, arXiv:2104.02057. Between linear layers without bias stand
    batch norm and ReLU; weights have the numbers of MoCo-v3's code (`mlp.0.weight`, `mlp.1.weight`, ...). Only the
    image feature goes through. What shares a pass shares statistics: with `joined: false` every view has its own.

    Weights begin as in the authors' code: with `last: scale` normal with deviation 0.01, else as torch's own layers.

    Args:
        layers: linear layers, 2 or more (SimCLR 2, SimCLRv2 and MoCo-v3's vision transformer 3).
        hidden: width of the layers between; null = the encoder's.
        out: width of what comes out.
        last: the batch norm after the last layer: `scale` = with a learned scale but no shift (SimCLR), `plain` =
            with neither (MoCo-v3), `none` = no batch norm.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        layers: int = 2,
        hidden: int | None = None,
        out: int = 128,
        last: Last = "scale",
    ) -> None:
        super().__init__()
        hidden = encoder.width if hidden is None else hidden
        if layers < 2:
            raise ValueError(f"layers is {layers}; write 2 or more, since one layer would have no hidden width")
        self.width = out
        self.mlp = perceptron([encoder.width, *[hidden] * (layers - 1), out], last)
        if last == "scale":
            self.mlp.apply(_initialise)

    def forward(self, tokens: Tokens) -> Tokens:
        """The projected image feature (B, K, out), and no patches."""
        if tokens.pooled is None:
            raise ValueError("the mlp head needs an image feature; this encoder gives tokens of patches only")
        rows = tokens.pooled.flatten(0, 1)  # (B K, D): batch norm's channels come second
        return Tokens(self.mlp(rows).unflatten(0, tokens.pooled.shape[:2]), None, None, tokens.grid)


def perceptron(widths: list[int], last: Last) -> nn.Sequential:
    """Linear layers (..., widths[0]) -> (..., widths[-1]) without bias, batch norm and ReLU between them.

    Args:
        widths: of what goes in, of every layer between, of what comes out.
        last: the batch norm at the end, see Mlp.
    """
    if last not in ("scale", "plain", "none"):
        raise ValueError(f"last is {last!r}; write scale, plain or none")
    if min(widths) < 1:
        raise ValueError(f"the widths of the linear layers are {widths}; write widths of at least 1")
    modules: list[nn.Module] = []
    for into, out in pairwise(widths):
        modules += [nn.Linear(into, out, bias=False), BatchNorm(out), nn.ReLU()]
    return nn.Sequential(*modules[:-2], *_last_norm(widths[-1], last))


def _last_norm(width: int, last: Last) -> list[nn.Module]:
    if last == "none":
        return []
    norm = BatchNorm(width, affine=last == "scale")
    norm.bias = None
    return [norm]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)


@hookimpl
def ussl_heads() -> dict[str, type[Head]]:
    """Offer projections."""
    return {"mlp": Mlp}
