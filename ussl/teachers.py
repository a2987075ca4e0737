"""Frozen networks as targets: whose tokens, of which layer, normalised how, on the student's grid."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ussl.parts import Encoder, Mask, Part, Progress, Student, Target, Tokens, View
from ussl.precision import precise

Layer = Literal["last"] | int | list[int]
Point = Literal["post_norm", "pre_norm", "projected"]
Norm = Literal["none", "layernorm", "l2", "whiten"]


class TeacherNetwork(nn.Module):
    """A network from normalised RGB (B, 3, h, w) to (cls (B, C) or None, patches (B, N, C), grid)."""

    width: int  # C
    patch: int  # pixels from one token to the next
    size: tuple[int, int] | None  # the only picture size it takes; None = any multiple of patch


class TokenNetwork(TeacherNetwork):
    """A timm vision transformer: the tokens of one block, or the average of several.

    Args:
        trunk: a timm model with `forward_intermediates` that can return prefix tokens.
        layer: `last`, the number of a block (0 is the first, -1 the last), or a list of numbers to average.
        point: tokens after the final norm (`post_norm`, applied to any block's tokens), before it (`pre_norm`), or
            after the norm and `projection` (`projected`, of the last block only).
        projection: the map from tokens to the space of the image feature, where the network has one.
    """

    def __init__(self, trunk: Any, layer: Layer, point: Point, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = _blocks(layer, len(trunk.blocks))
        if point not in ("post_norm", "pre_norm", "projected"):
            raise ValueError(f"point is {point!r}; write post_norm, pre_norm or projected")
        if point == "projected" and projection is None:
            raise ValueError("point is projected, but this teacher has no projection; write post_norm or pre_norm")
        if point == "projected" and self.layers != [len(trunk.blocks) - 1]:
            raise ValueError("point projected is of the last layer; leave layer out, or write point: post_norm")
        if point == "pre_norm" and isinstance(trunk.norm, nn.Identity):
            raise ValueError("point pre_norm has no effect: this teacher has no final norm; write post_norm")
        self.trunk = trunk
        self.point = point
        self.projection = projection if point == "projected" else None
        self.width = trunk.num_features if self.projection is None else _out_features(projection)
        self.patch = trunk.patch_embed.patch_size[0]
        self.size = only_size(trunk)

    def forward(self, image: Tensor) -> tuple[Tensor | None, Tensor, tuple[int, int]]:
        """Cls (B, C) or None, patches (B, N, C), grid."""
        found = self.trunk.forward_intermediates(
            image,
            indices=self.layers,
            norm=self.point != "pre_norm",
            return_prefix_tokens=True,
            output_fmt="NLC",
            stop_early=True,
            intermediates_only=True,
        )
        prefixed = self.trunk.num_prefix_tokens > 0
        patches = torch.stack([x[0] if prefixed else x for x in found]).mean(0)
        has_cls = prefixed and getattr(self.trunk, "cls_token", None) is not None
        cls = torch.stack([x[1][:, 0] for x in found]).mean(0) if has_cls else None
        if self.projection is not None:
            patches, cls = self.projection(patches), None if cls is None else self.projection(cls)
        return cls, patches, (image.shape[-2] // self.patch, image.shape[-1] // self.patch)


class MapNetwork(TeacherNetwork):
    """A timm network with feature maps: the deepest map of one stride.

    Args:
        trunk: a timm model with `forward_intermediates` and `feature_info`.
        stride: pixels from one place of the map to the next; ValueError lists those there are.
    """

    def __init__(self, trunk: Any, stride: int) -> None:
        super().__init__()
        strides = [info["reduction"] for info in trunk.feature_info]
        if stride not in strides:
            raise ValueError(f"this teacher has no map of stride {stride}; its strides are {sorted(set(strides))}")
        self.stage = len(strides) - 1 - strides[::-1].index(stride)
        self.trunk: Any = trunk.to(memory_format=torch.channels_last)  # faster on CPU: benchmarks/teacher.py
        self.width = trunk.feature_info[self.stage]["num_chs"]
        self.patch = stride
        self.size = only_size(trunk)

    def forward(self, image: Tensor) -> tuple[None, Tensor, tuple[int, int]]:
        """None, places of the map (B, N, C), grid."""
        (found,) = self.trunk.forward_intermediates(
            image.contiguous(memory_format=torch.channels_last),
            indices=[self.stage],
            output_fmt="NCHW",
            stop_early=True,
            intermediates_only=True,
        )
        return None, found.flatten(2).transpose(1, 2), (found.shape[-2], found.shape[-1])


class FrozenTeacher(Target):
    """Base of targets that are a frozen network's tokens: not trained, not saved, always in evaluation mode.

    By default the picture is scaled so that the network's tokens lie on the student's grid (positions are interpolated
    by the network). With `input_size`, or a network of one size only, the tokens are resized bilinearly instead.

    Args:
        student: whose grid the tokens are to have.
        network: the teacher, see TeacherNetwork.
        mean, std: of the network's input, per channel.
        lineage: name, source, sha256 and licence of its weights.
        norm: of each token over its channels: `layernorm` without affine, `l2`, or `none`; `whiten`: of each channel
            over all patches seen in training so far (see Whitening). The cls token is not whitened.
        input_size: pixels of the shorter side of the picture the network is given, a multiple of its patch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        student: Student,
        network: TeacherNetwork,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        lineage: dict[str, Any],
        norm: Norm,
        input_size: int | None,
    ) -> None:
        super().__init__()
        if norm not in ("none", "layernorm", "l2", "whiten"):
            raise ValueError(f"norm is {norm!r}; write none, layernorm, l2 or whiten")
        _check_size(input_size, network)
        self._frozen = [network.eval().requires_grad_(False)]  # in a list, so as not to become a submodule
        self._student = [student.encoder]  # for its grid
        self._lineage = lineage
        self.width = network.width
        self.norm = norm
        self.input_size = input_size
        self.whitening = Whitening(network.width) if norm == "whiten" else None
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def network(self) -> TeacherNetwork:
        """The frozen network, on this part's device."""
        return self._frozen[0]

    def lineage(self) -> list[dict[str, Any]]:
        """The teacher's weights."""
        return [dict(self._lineage)]

    def as_encoder(self) -> Encoder:
        """The teacher on the student's grid, its feature the mean of its tokens."""
        return TeacherEncoder(self, self._student[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTeacher:
        super()._apply(fn, recurse)
        self.network._apply(fn)  # the list hides it from nn.Module, which moves submodules only
        return self

    @torch.no_grad()
    def forward(self, views: list[View]) -> list[Tokens | None]:
        """Tokens (B, 1, N, C) of every view's clean picture on the student's grid, and the cls token; fp32."""
        return [self._tokens(view) for view in views]

    def _tokens(self, view: View) -> Tokens:
        grid = self._student[0].grid(view.image.shape[-2], view.image.shape[-1])
        image = resize(view.clean, self._picture_size(view.clean, grid))
        cls, patches, own = self.network((image.expand(-1, 3, -1, -1) - self.mean) / self.std)
        patches = _move(precise(patches), own, grid)
        pooled = None if cls is None else self._normalise(precise(cls)[:, None])
        patches = self._normalise(patches) if self.whitening is None else self.whitening(patches)
        return Tokens(pooled, patches[:, None], None, grid)

    def _picture_size(self, image: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
        network = self.network
        if network.size is not None:
            return network.size
        if self.input_size is None:
            return grid[0] * network.patch, grid[1] * network.patch
        scale = self.input_size / min(image.shape[-2:]) / network.patch
        rows, columns = (round(side * scale) * network.patch for side in image.shape[-2:])
        return rows, columns

    def _normalise(self, tokens: Tensor) -> Tensor:
        if self.norm == "layernorm":
            return F.layer_norm(tokens, tokens.shape[-1:])
        return F.normalize(tokens, dim=-1) if self.norm == "l2" else tokens


class TeacherEncoder(Encoder):
    """A frozen teacher, to be measured as an encoder is: tokens on the student's grid, their mean as the feature."""

    accepts = frozenset()

    def __init__(self, target: FrozenTeacher, student: Encoder) -> None:
        super().__init__()
        self.target = target
        self._student = [student]
        self.width, self.patch, self.mean, self.std = target.width, student.patch, student.mean, student.std
        self.image_size = getattr(student, "image_size", None)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The student's grid."""
        return self._student[0].grid(height, width)

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Tokens of whole images; a teacher takes no mask."""
        if mask is not None:
            raise ValueError("a teacher takes no mask")
        (tokens,) = self.target([View(image, image)])
        assert tokens is not None
        assert tokens.patches is not None
        return Tokens(tokens.patches.mean(2), tokens.patches, None, tokens.grid)


class Whitening(Part):
    """Normalises channels by their mean and std over every token seen in training; identity before the first update.

    Statistics of a step are gathered over its micro-batches and ranks and join the running ones, weighted by their
    count, after the step: a refused step leaves no trace, and how a batch is split makes no difference.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(width, dtype=torch.float64))
        self._gathered: Tensor | None = None  # (1 + 2 C,) count, sums, sums of squares of the step under way

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., C) whitened by the statistics of all steps before this one."""
        if self.training:
            x = tokens.detach().flatten(0, -2).double()
            sums = torch.cat([x.new_full((1,), len(x)), x.sum(0), x.square().sum(0)])
            self._gathered = sums if self._gathered is None else self._gathered + sums
        return (tokens - self.mean.to(tokens.dtype)) * self.variance.clamp(min=1e-6).rsqrt().to(tokens.dtype)

    def before_step(self, at: Progress) -> None:
        """Forget what a refused step gathered."""
        self._gathered = None

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Merge the step's statistics into the running ones (Chan et al. 1979)."""
        if self._gathered is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._gathered)
        count = self._gathered[0]
        mean, square = (self._gathered[1:] / count).chunk(2)
        share = count / (self.count + count)
        away = mean - self.mean
        spread = (square - mean.square()).clamp(min=0)
        self.variance.lerp_(spread, share).add_(away.square() * share * (1 - share))
        self.mean.add_(away * share)
        self.count.add_(count)
        self._gathered = None


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, C, h, w) in [0, 1] at another size by antialiased bicubic; as they are when the size is theirs."""
    image = precise(image)
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def build(model: str, **options: Any) -> Any:
    """A timm network of random weights, always the same ones, leaving torch's random state alone.

    ValueError for an unknown name, TypeError for an option that the network does not take.
    """
    import timm

    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), 3)
        raise ValueError(f"timm has no model {model!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        try:
            return timm.create_model(model, pretrained=False, **options)
        except RuntimeError as error:
            raise ValueError(f"timm cannot make {model!r}: {error}") from error


def folded(network: nn.Module) -> nn.Module:
    """A frozen network with every batch norm folded into the convolution that stands before it: the same function.

    Right for networks whose modules stand in the order in which they run, as EfficientNet's do.
    """
    from timm.layers import BatchNormAct2d
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    children = list(network.named_children())
    for (name, convolution), (after, norm) in pairwise(children):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
            setattr(network, name, fuse_conv_bn_eval(convolution, norm))
            setattr(network, after, norm.act)
    for _, child in children:
        folded(child)
    return network


def only_size(network: Any) -> tuple[int, int] | None:
    """The only picture size that a timm network takes; None = any."""
    if getattr(network, "dynamic_img_size", False) or not network.pretrained_cfg["fixed_input_size"]:
        return None
    rows, columns = network.pretrained_cfg["input_size"][-2:]
    return rows, columns


def load(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Give a network exactly these tensors; ValueError when any is missing, unexpected or of another shape."""
    own = network.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    for keys, problem in ((missing, "lacks"), (unexpected, "has unexpected"), (other, "has another shape of")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(f"{what} {problem} {', '.join(keys[:3])}{more}; it must hold the weights of this network")
    network.load_state_dict(dict(state), strict=False)


def _blocks(layer: Layer, depth: int) -> list[int]:
    """The numbers of the blocks that `layer` means."""
    asked = [depth - 1] if layer == "last" else [layer] if isinstance(layer, int) else layer
    if not isinstance(asked, list) or not all(isinstance(i, int) and -depth <= i < depth for i in asked):
        raise ValueError(f"layer is {layer!r}; write last, or numbers of blocks from {-depth} to {depth - 1}")
    chosen = sorted({i % depth for i in asked})
    if not chosen or len(chosen) != len(asked):
        raise ValueError(f"layer is {layer!r}; a list names at least one block, and each block once")
    return chosen


def _out_features(projection: Any) -> int:
    return projection.out_features


def _check_size(size: int | None, network: TeacherNetwork) -> None:
    if size is None:
        return
    if network.size is not None:
        raise ValueError(f"input_size has no effect: this teacher takes {network.size[0]} x {network.size[1]} only")
    if size < network.patch or size % network.patch:
        near = max(round(size / network.patch), 1) * network.patch
        raise ValueError(
            f"input_size is {size}; write a multiple of the teacher's patch {network.patch}, such as {near}"
        )


def _move(tokens: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Tokens (B, N, C) of one grid on another, bilinearly."""
    if own == grid:
        return tokens
    field = tokens.transpose(1, 2).unflatten(2, own)
    return F.interpolate(field, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
