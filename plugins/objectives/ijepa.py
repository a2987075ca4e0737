"""I-JEPA: from one part of a picture, predict what a moving average of the encoder says of other parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ussl.draws import Draws
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Masking, Objective, Student, Target, Tokens, View
from ussl.positions import FixedPositions, at
from ussl.precision import precise
from ussl.signs import deviation
from ussl_plugins.maskings.random import lowest

CANDIDATES = 8  # arrangements an image: the first that leaves enough of the context is taken
LEFT = 0.75  # share of the context expected to be left that is seen: on 14 x 14, 2 % of arrangements leave less


class IjepaMasking(Masking):
    """Blocks to predict, and the rest of one large block to predict them from (I-JEPA's multi-block masking).

    Assran et al. 2023, arXiv:2301.08243, appendix A.1. As in the released code the sizes of blocks are one draw a step
    for all images, their places are each image's own, and the context is cut to as many patches in every image. There
    it is cut to the poorest image of a batch, in reading order; here to a number that depends on the sizes only, so
    that an image's mask is its own, and at random, so that the lower rows are seen as often as the upper.

    Args:
        targets: number P of blocks to predict; they may overlap.
        target_scale: smallest and largest share of the patches in a block.
        target_aspect: smallest and largest height / width of a block.
        context_scale: smallest and largest share of the patches in the square that the context is cut from.
    """

    def __init__(
        self,
        *,
        targets: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
    ) -> None:
        super().__init__()
        if targets < 1:
            raise ValueError(f"targets is {targets}; write the number of blocks to predict, such as 4")
        _check_range("target_scale", target_scale, 1.0)
        _check_range("target_aspect", target_aspect, math.inf)
        _check_range("context_scale", context_scale, 1.0)
        self.targets = targets
        self.target_scale, self.target_aspect, self.context_scale = target_scale, target_aspect, context_scale

    def forward(self, view: View, grid: tuple[int, int], draws: Draws) -> Mask | None:
        """A Mask (B, 1, N) with P predict sets for a global view, None for a local one, which stays whole.

        ValueError when the blocks may leave nothing of the context on this grid.
        """
        if view.role == "local":
            return None
        target, context = self._sizes(grid, draws)
        seen = self._count_seen(grid, target, context)
        place = draws.uniform("target", 2, CANDIDATES, self.targets)
        place[:, :, -1] = place[:, :, -1, :1]  # all blocks at one place always leave enough
        blocks = _rectangles(place, target, grid)  # (B, M, P, N)
        left = _rectangles(draws.uniform("context", 2, CANDIDATES), context, grid) & ~blocks.any(2)  # (B, M, N)
        first = (left.sum(-1) >= seen).byte().argmax(-1)
        image = torch.arange(len(first), device=first.device)
        noise = draws.uniform("seen", grid[0] * grid[1]).masked_fill(~left[image, first], 2.0)  # noise is below 1
        hidden = ~lowest(noise, seen)
        return Mask(hidden[:, None], blocks[image, first][:, None], seen, target[0] * target[1])

    def _sizes(self, grid: tuple[int, int], draws: Draws) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of a block to predict and of the context, the same for all images of a step."""
        one = torch.zeros(1, dtype=torch.int64)  # drawn on the host, since reading from a device would wait for it
        shared = Draws(draws.seed, draws.epoch, draws.step, one, one, draws.name).shared("size", 3).tolist()
        ranges = (self.target_scale, self.target_aspect, self.context_scale)
        scale, aspect, context = (low + u * (high - low) for u, (low, high) in zip(shared, ranges, strict=True))
        return _sides(grid, scale, aspect), _sides(grid, context, 1.0)

    def _count_seen(self, grid: tuple[int, int], target: tuple[int, int], context: tuple[int, int]) -> int:
        """Patches of the context that are seen, whatever the places of the blocks."""
        block, around = target[0] * target[1], context[0] * context[1]
        expected = around * (1 - block / (grid[0] * grid[1])) ** self.targets
        seen = min(int(LEFT * expected), around - block)
        if seen < 1:
            raise ValueError(
                f"{self.targets} blocks of {target[0]} x {target[1]} patches may cover the context of {context[0]} x "
                f"{context[1]}: write a smaller target_scale, fewer targets or a larger context_scale"
            )
        return seen


def _sides(grid: tuple[int, int], scale: float, aspect: float) -> tuple[int, int]:
    """Rows and columns of a block with a share of the grid's patches."""
    patches = int(grid[0] * grid[1] * scale)
    rows, columns = round(math.sqrt(patches * aspect)), round(math.sqrt(patches / aspect))
    return min(max(rows, 1), grid[0]), min(max(columns, 1), grid[1])


def _rectangles(place: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(B, ..., N) bool: the patches of blocks whose upper left corners are numbers (B, 2, ...) in [0, 1)."""
    inside = []
    for u, length, side in zip(place.unbind(1), size, grid, strict=True):
        first = (u * (side - length + 1)).floor()[..., None]
        at = torch.arange(side, device=u.device)
        inside.append((at >= first) & (at < first + length))
    return (inside[0][..., :, None] & inside[1][..., None, :]).flatten(-2)


def _check_range(name: str, values: tuple[float, float], most: float) -> None:
    low, high = values
    if not 0 < low <= high <= most:
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name} is {low} to {high}; write the smaller number first, both above 0{limit}")


class Ijepa(Objective):
    """A narrow transformer predicts a moving average's tokens of each target block from the context (I-JEPA).

    Assran et al. 2023, arXiv:2301.08243, with the released code's names of weights, initial values and loss: smooth-L1
    (beta 1) to the teacher's tokens after layer normalisation without affine. Blocks are predicted one by one: a mask
    token of one block sees the context and the other mask tokens of this block.

    Needs target `ema` and a masking that drops patches, such as `ijepa`. Where the encoder has a class token it stays,
    beside the patches; the authors' has none.

    Args:
        width: of the predictor's tokens.
        depth: number of the predictor's transformer blocks; 6 for ViT-B, 12 for ViT-L and ViT-H.
        heads: attention heads of each, as many as the encoder's in the paper.
    """

    additive = True
    can_recompute = True

    def __init__(
        self, student: Student, target: Target | None, *, width: int = 384, depth: int = 6, heads: int = 12
    ) -> None:
        super().__init__()
        if target is None:
            raise ValueError("ijepa needs a teacher; write target: ema")
        if depth < 1 or heads < 1:
            raise ValueError(f"a predictor of depth {depth} with {heads} heads; write at least 1 of each")
        if width % heads or width % 4:
            raise ValueError(f"width is {width}; write a multiple of 4 and of the {heads} heads, as {heads * 32}")
        from timm.models.vision_transformer import Block

        norm = partial(nn.LayerNorm, eps=1e-6)
        self.predictor_embed = nn.Linear(student.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.predictor_blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.predictor_norm = norm(width)
        self.predictor_proj = nn.Linear(width, target.width)
        self._positions = FixedPositions(width)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for number, block in enumerate(self.predictor_blocks, start=1):
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.div_(math.sqrt(2 * number))

    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss", "chance", "target_std", "prediction_std"}.

        chance is the loss of one prediction for all, the mean of this device's targets; the deviations, over tokens,
        are 0 when all patches look alike.
        """
        views = zip(outputs, targets, masks, strict=True)
        results = [self._view(output, target, mask) for output, target, mask in views if target is not None]
        if not results:
            raise ValueError("ijepa needs a target for at least one view; write target: ema")
        names = ("loss", "chance", "target_std", "prediction_std")
        return {
            name: torch.stack(values).mean() for name, values in zip(names, zip(*results, strict=True), strict=True)
        }

    def _view(self, context: Tokens, target: Tokens, mask: Mask | None) -> tuple[Tensor, ...]:
        _check_view(context, target, mask)
        assert mask is not None
        assert target.patches is not None
        # a stable sort, since nonzero would wait for the device
        where = mask.predict.byte().argsort(dim=-1, stable=True)[..., -mask.asked :]  # (B, K, P, A)
        predicted = precise(self.predict(context, where))
        said = F.layer_norm(precise(target.patches), target.patches.shape[-1:])[:, :, None]  # (B, 1, 1, N, C)
        wanted = at(said, where)
        constant = wanted.flatten(0, -2).mean(0).expand_as(wanted)
        chance = F.smooth_l1_loss(constant, wanted)
        return F.smooth_l1_loss(predicted, wanted), chance, deviation(wanted), deviation(predicted)

    def predict(self, context: Tokens, where: Tensor) -> Tensor:
        """Tokens (B, K, P, A, C) at grid positions (B, K, P, A), each of the P sets by itself."""
        assert context.patches is not None
        position = self._positions(context.grid, self.mask_token)
        seen = (self.predictor_embed(context.patches) + position[context.where])[:, :, None]  # (B, K, 1, S, W)
        asked = self.mask_token + position[where]
        x = torch.cat([seen.expand(-1, -1, where.shape[2], -1, -1), asked], dim=3).flatten(0, 2)  # (B K P, S + A, W)
        for block in self.predictor_blocks:
            x = self._run(block, x)
        x = x[:, -where.shape[-1] :].unflatten(0, where.shape[:3])
        return self.predictor_proj(self.predictor_norm(x))

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(function, x, use_reentrant=False)
        return function(x)


def _check_view(context: Tokens, target: Tokens, mask: Mask | None) -> None:
    if mask is None:
        raise ValueError("ijepa needs a mask for every view with a target; write masking: ijepa")
    if context.patches is None or target.patches is None:
        whose = "encoder (with its head)" if context.patches is None else "target"
        raise ValueError(f"ijepa needs tokens of patches; this {whose} has none")
    if context.where is None:
        raise ValueError("ijepa predicts from the seen patches alone; write masking: ijepa, or another with how: drop")
    if target.grid != context.grid:
        raise ValueError(f"the target's grid {target.grid} is not the student's {context.grid}")


@hookimpl
def ussl_maskings() -> dict[str, type[Masking]]:
    """Offer multi-block masking."""
    return {"ijepa": IjepaMasking}


@hookimpl
def ussl_objectives() -> dict[str, type[Objective]]:
    """Offer I-JEPA."""
    return {"ijepa": Ijepa}
