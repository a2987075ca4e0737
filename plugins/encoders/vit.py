"""The vision transformer: encodes only the patches that are seen, and is timm's network inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ussl import weights
from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Initialization, Mask, Tokens
from ussl.positions import patch_grid, sincos

_SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


class VisionTransformer(Encoder):
    """Vision transformer, tiny to huge, with fixed sin-cos positions; encodes only the patches that are seen.

    Dosovitskiy et al. 2021, arXiv:2010.11929, as He et al. 2022, arXiv:2111.06377, pre-train it: layer norm with
    eps 1e-6, exact GELU, a bias on queries, keys and values, Xavier-uniform weights.
    """

    accepts = frozenset({"drop", "fill"})
    can_recompute = True
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        *,
        size: Literal["tiny", "small", "base", "large", "huge"] = "base",
        patch: int = 16,
        image_size: int = 224,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        pooling: Literal["token", "average"] = "token",
        drop_path: float = 0.0,
        init: str | Path | None = None,
        init_matched: float = 0.9,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        """Build the network with random weights.

        Args:
            size: width, depth and heads of the transformer.
            patch: side of a patch in pixels; 8, 14 and 16 are usual.
            image_size: side in pixels of the images whose grid the positions are made for; other sizes work.
            width: channels of a token, in place of the size's.
            depth: number of blocks, in place of the size's.
            heads: attention heads, in place of the size's.
            pooling: what the image feature is: the class token, or the average of the patches' tokens.
            drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
            init: weights to start from: a timm name (vit_base_patch16_224.mae), a file, an encoder or a run folder.
            init_matched: least share of this network's tensors that `init` must hold.
            mean: of the images in [0, 1] by channel; what `init` was trained with, else ImageNet's, by default.
            std: as `mean`.
        """
        super().__init__()
        if size not in _SIZES or pooling not in ("token", "average"):
            raise ValueError(f"vit: size is {' or '.join(_SIZES)}, pooling token or average; not {size}, {pooling}")
        shape = zip((width, depth, heads), _SIZES[size], strict=True)
        self.width, self.depth, self.heads = (usual if given is None else given for given, usual in shape)
        self.size, self.patch, self.image_size, self.pooling = size, patch, image_size, pooling
        self.drop_path, self.init, self.init_matched = drop_path, init, init_matched
        known = weights.normalisation(init) if mean is None or std is None else weights.IMAGENET
        self.mean, self.std = tuple(mean or known[0]), tuple(std or known[1])
        self._check()
        self.register_buffer("_mean", torch.tensor(self.mean)[:, None], persistent=False)  # (3, 1)
        self.register_buffer("_std", torch.tensor(self.std)[:, None], persistent=False)
        self.network = self._network()
        self._lineage: list[dict[str, Any]] = []

    def _check(self) -> None:
        for name in ("patch", "image_size", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"vit: {name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"vit: width {self.width} does not divide into {self.heads} heads: change width or heads")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"vit: drop_path must be in [0, 1), not {self.drop_path}")
        if not 0 < self.init_matched <= 1:
            raise ValueError(f"vit: init_matched must be in (0, 1], not {self.init_matched}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"vit: mean and std are three numbers each, std above 0; not {self.mean} and {self.std}")
        self.grid(self.image_size, self.image_size)

    def _arguments(self) -> dict[str, Any]:
        """What timm needs to build this network."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "global_pool": "token" if self.pooling == "token" else "avg",
            "fc_norm": False,  # the final norm comes before the average, so that tokens have it too
        }

    def _network(self) -> Any:
        from timm.models.vision_transformer import VisionTransformer as Network

        network = Network(**self._arguments(), num_classes=0, drop_path_rate=self.drop_path, weight_init="skip")
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(network.patch_embed.proj.weight.view(self.width, -1))
        nn.init.zeros_(network.patch_embed.proj.bias)
        nn.init.normal_(network.cls_token, std=0.02)
        network.pos_embed.requires_grad_(False).copy_(sincos(self.width, *network.patch_embed.grid_size))
        return network

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return patch_grid(height, width, self.patch)

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Tokens of the patches seen; image (B, C, h, w) in [0, 1], C 1 or 3. ValueError = a mask not accepted."""
        if mask is not None and mask.how not in self.accepts:
            raise ValueError(f"vit cannot encode a mask that says {mask.how!r}: it takes {sorted(self.accepts)}")
        if image.shape[1] not in (1, 3):
            raise ValueError(f"vit takes grey or RGB images (B, 1 or 3, h, w), not {tuple(image.shape)}")
        grid = self.grid(*image.shape[-2:])
        views = image[:, None] if mask is None or mask.image is None else mask.image  # (B, 1 or K, C, h, w)
        where = _seen(mask) if mask is not None and mask.how == "drop" else None
        x = self._embed(self._patchify(views, grid), where, grid)  # (B, K, 1 + S, D)
        tokens = self._transform(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        patches = tokens[:, :, 1:]
        pooled = tokens[:, :, 0] if self.pooling == "token" else patches.mean(2)
        return Tokens(pooled, patches, where, grid)

    def _patchify(self, views: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels by patch and channel: (B, K, N, C, p * p)."""
        (rows, columns), p = grid, self.patch
        cells = views.unflatten(-1, (columns, p)).unflatten(-3, (rows, p))  # (B, K, C, rows, p, columns, p)
        return cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(5).flatten(2, 3)

    def _embed(self, patches: Tensor, where: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """(B, K, 1 + S, D) embeddings and positions of cls and of the patches at `where`, all by default.

        Patches are gathered before they are embedded: what is hidden costs nothing.
        """
        first, rest = self._positions(grid).split([1, patches.shape[2]])
        if where is not None:
            patches, rest = _gather(patches, where), rest[where]
        pixels = ((patches - self._mean) / self._std).flatten(-2)  # grey becomes three channels here
        projection = self.network.patch_embed.proj
        x = F.linear(pixels, projection.weight.flatten(1), projection.bias) + rest
        cls = (self.network.cls_token + first).expand(*x.shape[:2], -1, -1)
        return torch.cat([cls, x], 2)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1 + N, D), interpolated as timm does it where the grid is not the native one."""
        native = self.network.patch_embed.grid_size
        if grid == native:
            return self.network.pos_embed[0]
        from timm.layers import resample_abs_pos_embed

        return resample_abs_pos_embed(self.network.pos_embed, new_size=list(grid), old_size=list(native))[0]

    def _transform(self, x: Tensor) -> Tensor:
        again = self.recompute and self.training and torch.is_grad_enabled()
        for block in self.network.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return self.network.norm(x)

    def initialize(self, formats: Mapping[str, type[Initialization]] | None = None) -> list[str]:
        if self.init is None:
            return []
        state = self._pretrained(str(self.init), formats)
        self._refuse_other_layers(state)
        if "pos_embed" in state:
            state["pos_embed"] = _native(state["pos_embed"], self.network.patch_embed.grid_size)
        return weights.match(self.network, state, self.init_matched, str(self.init)).lines()

    def _pretrained(self, init: str, formats: Mapping[str, type[Initialization]] | None) -> dict[str, Tensor]:
        """The tensors that `init` names."""
        if weights.timm_config(init) is None:
            return weights.recognise(weights.read(init), init, formats)[1]
        network, _ = weights.timm_model(init, "encoder.init")
        _refuse_other_network(network, init)
        return network.state_dict()

    def _refuse_other_layers(self, state: dict[str, Tensor]) -> None:
        """ValueError where the weights belong to a network that computes something else with them."""
        ours = self.network.state_dict().keys()
        inside = (*(f"blocks.{i}." for i in range(self.depth)), "norm_pre.", "reg_token", "dist_token")
        if foreign := [name for name in state if name not in ours and name.startswith(inside)]:
            raise ValueError(f"{self.init} has layers that vit lacks ({foreign[0]}, ...): use weights of a plain ViT")

    def lineage(self) -> list[dict[str, Any]]:
        if self.init is not None and not self._lineage:  # asked also after a resume, which does not initialize
            self._lineage = [weights.origin(self.init)]
        return self._lineage

    def to_timm(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import timm

        names = (f"vit_{self.size}_patch{patch}_224" for patch in (self.patch, 16, 14))
        model = self._arguments()
        config = {
            "architecture": next(name for name in names if timm.is_model(name)),
            "num_classes": 0,
            "num_features": self.width,
            "global_pool": model["global_pool"],
            "model_args": model,
            "pretrained_cfg": self._pretrained_config(),
        }
        return dict(self.network.state_dict()), config

    def _pretrained_config(self) -> dict[str, Any]:
        """How timm is to prepare images for this network: the whole picture, squeezed into a square."""
        return {
            "input_size": [3, self.image_size, self.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(self.mean),
            "std": list(self.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }


def _seen(mask: Mask) -> Tensor:
    """(B, K, S) grid positions of the patches that are not hidden, in ascending order."""
    return mask.hidden.byte().argsort(dim=-1, stable=True)[..., : mask.seen]


def _gather(patches: Tensor, where: Tensor) -> Tensor:
    """Of patches (B, 1 or K, N, ...) those at `where`: (B, K, S, ...), copied row by row."""
    images, masks, _ = where.shape
    image = torch.arange(images, device=where.device)[:, None, None]
    mask = torch.arange(masks, device=where.device)[:, None]
    return patches.expand(-1, masks, *patches.shape[2:])[image, mask, where]


def _native(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (1, N, D) or (1, 1 + N, D) of a square grid as (1, 1 + N, D) of `grid`; others as they are."""
    from timm.layers import resample_abs_pos_embed

    count = positions.shape[1]
    if round(count**0.5) ** 2 == count:  # none for cls, to which nothing is then added
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    side = round((positions.shape[1] - 1) ** 0.5)
    if side**2 != positions.shape[1] - 1:
        return positions
    return resample_abs_pos_embed(positions, new_size=list(grid), old_size=[side, side])


def _refuse_other_network(network: nn.Module, name: str) -> None:
    from timm.models.vision_transformer import VisionTransformer as Network

    if type(network) is not Network:
        raise ValueError(f"encoder.init: {name} is a {type(network).__name__}: use weights of a plain ViT")
    activation = network.blocks[0].mlp.act
    if not isinstance(activation, nn.GELU):
        raise ValueError(f"encoder.init: {name} uses {type(activation).__name__}, vit uses GELU: use a plain ViT")


@hookimpl
def ussl_encoders() -> dict[str, type[Encoder]]:
    """Offer the vision transformer."""
    return {"vit": VisionTransformer}
