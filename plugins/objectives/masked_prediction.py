"""Predicting what is hidden: a decoder over the seen tokens and mask tokens, as in masked autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Objective, Student, Target, Tokens
from ussl.positions import FixedPositions, at
from ussl.precision import precise
from ussl.signs import deviation


class MaskedPrediction(Objective):
    """A transformer decoder predicts the target of hidden patches from the tokens of seen ones (MAE, URFM).

    He et al. 2022, arXiv:2111.06377, with the released code's names of weights. Mask tokens stand only where something
    is asked, so that predicting a part of what is hidden saves work; when all of it is asked this is MAE exactly
    (attention does not mind the order of tokens). A mask asks for one set of patches (P = 1).

    Args:
        width: of the decoder's tokens.
        depth: number of the decoder's transformer blocks.
        heads: attention heads of each.
        loss: of a token: `mse` or `smooth_l1`, averaged over its channels, or `cosine`, 1 - cos(prediction, target).
        beta: error at which smooth_l1 turns from square to absolute; 1 unless given.
        on: `masked` = the patches that the masking asks for; `all` = the seen ones too.
    """

    additive = True
    can_recompute = True

    def __init__(
        self,
        student: Student,
        target: Target | None,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        loss: Literal["mse", "smooth_l1", "cosine"] = "mse",
        beta: float | None = None,
        on: Literal["masked", "all"] = "masked",
    ) -> None:
        super().__init__()
        if target is None:
            raise ValueError("masked_prediction needs a target, such as target: pixels")
        _check_options(width, depth, heads, loss, beta, on)
        from timm.models.vision_transformer import Block

        norm = partial(nn.LayerNorm, eps=1e-6)
        self.loss = loss
        self.beta = 1.0 if beta is None else beta
        self.on = on
        self.decoder_embed = nn.Linear(student.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.decoder_norm = norm(width)
        self.decoder_pred = nn.Linear(width, target.width)
        self._positions = FixedPositions(width)
        self.apply(_initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss", "chance", "target_std", "prediction_std"}, means over the views that have a target.

        chance is the loss of predicting the same everywhere, the mean of the targets of this device. The deviations
        are over its tokens, averaged over channels: at 0 nothing is left to tell patches apart by.
        """
        views = zip(outputs, targets, masks, strict=True)
        results = [self._view(output, target, mask) for output, target, mask in views if target is not None]
        if not results:
            raise ValueError("masked_prediction needs a target for at least one view")
        names = ("loss", "chance", "target_std", "prediction_std")
        return {
            name: torch.stack(values).mean() for name, values in zip(names, zip(*results, strict=True), strict=True)
        }

    def _view(self, seen: Tokens, target: Tokens, mask: Mask | None) -> tuple[Tensor, ...]:
        _check_view(seen, target, mask, self.on)
        predicted, where = self.decode(seen, mask)
        predicted = precise(predicted)
        wanted = at(precise(target.patches), where)  # (B, K, A, C)
        return self._distance(predicted, wanted).mean(), self._chance(wanted), deviation(wanted), deviation(predicted)

    def _chance(self, wanted: Tensor) -> Tensor:
        """The loss of one prediction for all: the mean target, of directions where these alone count."""
        alike = F.normalize(wanted, dim=-1) if self.loss == "cosine" else wanted
        return self._distance(alike.mean((0, 1, 2)).expand_as(wanted), wanted).mean()

    def _distance(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """(B, K, A) loss of each token; every row has as many, so their mean is MAE's sum(L mask) / sum(mask)."""
        if self.loss == "cosine":
            return 1 - F.cosine_similarity(predicted, wanted, dim=-1)
        if self.loss == "smooth_l1":
            return F.smooth_l1_loss(predicted, wanted, reduction="none", beta=self.beta).mean(-1)
        return (predicted - wanted).square().mean(-1)

    def decode(self, seen: Tokens, mask: Mask) -> tuple[Tensor, Tensor]:
        """Predictions (B, K, A, C) and the grid positions (B, K, A) they are for."""
        patches = mask.hidden.shape[-1]
        if self.on == "all" or mask.asked == patches:
            x, where = self._sequence(seen, mask.hidden, patches - mask.seen)
            count = patches
        else:
            x, where = self._sequence(seen, mask.predict[:, :, 0], mask.asked)
            count = mask.asked
        if seen.pooled is not None:
            x = torch.cat([self.decoder_embed(seen.pooled)[:, :, None], x], dim=2)  # cls: its position is zeros
        x = self._transform(x.flatten(0, 1), count).unflatten(0, where.shape[:2])
        return self.decoder_pred(self.decoder_norm(x)), where[..., -count:]

    def _sequence(self, seen: Tokens, asked: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Embedded tokens (B, K, L, W) and where they stand (B, K, L): the `count` true patches of `asked` come last.

        They are mask tokens where the encoder dropped patches; else the encoder has a token for every patch.
        """
        position = self._positions(seen.grid, self.mask_token)
        order = asked.byte().argsort(dim=-1, stable=True)  # a stable sort, since nonzero would wait for the device
        if seen.where is None:
            # every rank's gradients are summed, so a parameter without use must have one too
            return self.decoder_embed(at(seen.patches, order)) + position[order] + 0 * self.mask_token, order
        where = torch.cat([seen.where, order[..., -count:]], dim=2)
        told = self.mask_token.expand(*where.shape[:2], count, -1)
        embedded = self.decoder_embed(seen.patches)
        return torch.cat([embedded, told.to(embedded.dtype)], dim=2) + position[where], where

    def _transform(self, x: Tensor, count: int) -> Tensor:
        """The decoder's blocks on tokens (B, L, W); of the last block, the last `count` tokens."""
        *first, last = self.decoder_blocks
        for block in first:
            x = self._run(block, x)
        return self._run(partial(_last_tokens, last, count), x)

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(function, x, use_reentrant=False)
        return function(x)


def _last_tokens(block: Any, count: int, x: Tensor) -> Tensor:
    """timm's Block for the last `count` tokens only: queries and MLP of these, keys and values of all. Exact."""
    attention, width = block.attn, x.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    y, x = block.norm1(x), x[:, -count:]
    q = F.linear(y[:, -count:], weight[:width], bias[:width])
    k, v = F.linear(y, weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    x = x + attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _check_options(width: int, depth: int, heads: int, loss: str, beta: float | None, on: str) -> None:
    if loss not in ("mse", "smooth_l1", "cosine"):
        raise ValueError(f"loss is {loss!r}; write mse, smooth_l1 or cosine")
    if on not in ("masked", "all"):
        raise ValueError(f"on is {on!r}; write masked or all")
    if depth < 1 or heads < 1:
        raise ValueError(f"a decoder of depth {depth} with {heads} heads; write at least 1 of each")
    if width % heads:
        raise ValueError(f"width {width} does not divide into {heads} heads; write a multiple, such as {heads * 32}")
    if width % 4:
        raise ValueError(f"width is {width}; sin-cos positions need one divisible by 4, such as {heads * 32}")
    if beta is not None and loss != "smooth_l1":
        raise ValueError(f"beta has no effect on loss {loss}; leave beta out or write loss: smooth_l1")
    if beta is not None and beta <= 0:
        raise ValueError(f"beta is {beta}; write a number above 0")


def _check_view(seen: Tokens, target: Tokens, mask: Mask | None, on: str) -> None:
    if mask is None:
        raise ValueError(
            "masked_prediction needs a mask for every view with a target, and local views have none; write masking: "
            "random, and an augmentation with global views only, such as crop"
        )
    if mask.predict.shape[2] != 1:
        raise ValueError(
            f"masked_prediction predicts one set of patches a mask; this masking asks {mask.predict.shape[2]}"
        )
    if seen.patches is None or target.patches is None:
        whose = "encoder (with its head)" if seen.patches is None else "target"
        raise ValueError(f"masked_prediction needs tokens of patches; this {whose} has none")
    if target.grid != seen.grid:
        raise ValueError(f"the target's grid {target.grid} is not the student's {seen.grid}")
    if on == "all":
        _check_all(mask)


def _check_all(mask: Mask) -> None:
    """ValueError unless the masking asks for what is hidden, which `on: all` adds the seen patches to."""
    patches = mask.hidden.shape[-1]
    if mask.asked == patches:
        raise ValueError(
            "on: all has no effect: the masking asks for every patch already; remove it, or write on: masked"
        )
    if mask.asked != patches - mask.seen:
        raise ValueError(
            "on: all predicts every patch, but the masking decodes a part; leave the masking's decode out, or on: all"
        )


@hookimpl
def ussl_objectives() -> dict[str, type[Objective]]:
    """Offer masked prediction."""
    return {"masked_prediction": MaskedPrediction}
