"""The vision transformer: encodes only the patches that are seen, and is timm's network inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Mask, Tokens
from ussl.positions import for_grid, resized_by_dino, resized_by_timm, sincos
from ussl.starting import TransformerEncoder, Triple


class VisionTransformer(TransformerEncoder):
    """Vision transformer, tiny to huge, as MAE, MoCo-v3 or DINO start it; encodes only the patches that are seen.

    Dosovitskiy et al. 2021, arXiv:2010.11929: layer norm with eps 1e-6, exact GELU, a bias on queries, keys and
    values. Initial weights and positions are those of He et al. 2022, arXiv:2111.06377 (`mae`), Chen et al. 2021,
    arXiv:2104.02057 (`mocov3`), or Caron et al. 2021, arXiv:2104.14294 (`dino`), as released.
    """

    called = "vit"
    accepts = frozenset({"drop", "fill"})
    can_recompute = True

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
        scheme: Literal["mae", "mocov3", "dino"] = "mae",
        freeze_patches: bool = False,
        mask_token: bool = False,
        init: str | Path | None = None,
        init_matched: float = 0.9,
        mean: Triple | None = None,
        std: Triple | None = None,
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
            scheme: whose initial weights and positions: fixed sin-cos positions (mae, mocov3) or trained ones (dino).
            freeze_patches: leave the projection of patches as it begins (MoCo-v3).
            mask_token: a learned token stands where patches are hidden, for masks that say so (how: token).
            init: weights to start from: a timm name (vit_base_patch16_224.mae), a file, an encoder or a run folder.
            init_matched: least share of this network's tensors that `init` must hold.
            mean: of the images in [0, 1] by channel; what `init` was trained with, else ImageNet's, by default.
            std: as `mean`.
        """
        super().__init__(
            size=size,
            patch=patch,
            image_size=image_size,
            width=width,
            depth=depth,
            heads=heads,
            pooling=pooling,
            drop_path=drop_path,
            mask_token=mask_token,
            init=init,
            init_matched=init_matched,
            mean=mean,
            std=std,
        )
        if scheme not in _SCHEMES:
            raise ValueError(f"vit: scheme is {' or '.join(_SCHEMES)}, not {scheme}")
        self.scheme, self.freeze_patches = scheme, freeze_patches
        self.network = self._network()
        if freeze_patches:
            self.network.patch_embed.proj.requires_grad_(False)

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
                nn.init.zeros_(module.bias)
        _SCHEMES[self.scheme](network)
        return network

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Tokens of the patches seen; image (B, C, h, w) in [0, 1], C 1 or 3. ValueError = a mask not accepted."""
        views, grid = self.views(image, mask), self.grid(*image.shape[-2:])  # (B, 1 or K, C, h, w)
        where = _seen(mask) if mask is not None and mask.how == "drop" else None
        x = self._embed(self._patchify(views, grid), where, grid, mask)  # (B, K, 1 + S, D)
        tokens = self._transform(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        patches = tokens[:, :, 1:]
        pooled = tokens[:, :, 0] if self.pooling == "token" else patches.mean(2)
        return Tokens(pooled, patches, where, grid)

    def _patchify(self, views: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels by patch and channel: (B, K, N, C, p * p)."""
        (rows, columns), p = grid, self.patch
        cells = views.unflatten(-1, (columns, p)).unflatten(-3, (rows, p))  # (B, K, C, rows, p, columns, p)
        return cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(5).flatten(2, 3)

    def _embed(self, patches: Tensor, where: Tensor | None, grid: tuple[int, int], mask: Mask | None) -> Tensor:
        """(B, K, 1 + S, D) embeddings and positions of cls and of the patches at `where`, all by default.

        Patches are gathered before they are embedded: what is hidden costs nothing.
        """
        first, rest = self._positions(grid).split([1, patches.shape[2]])
        if where is not None:
            patches, rest = _gather(patches, where), rest[where]
        pixels = ((patches - self._mean.flatten(1)) / self._std.flatten(1)).flatten(-2)  # grey becomes three channels
        projection = self.network.patch_embed.proj
        embedded = F.linear(pixels, projection.weight.flatten(1), projection.bias)
        x = self.concealed(embedded, mask) + rest
        cls = (self.network.cls_token + first).expand(*x.shape[:2], -1, -1)
        return torch.cat([cls, x], 2)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1 + N, D), interpolated where the grid is not the native one."""
        positions = self.network.pos_embed
        return (positions if grid == self.network.patch_embed.grid_size else self._resized(positions, grid))[0]

    def _resized(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        return (resized_by_dino if self.scheme == "dino" else resized_by_timm)(positions, grid)

    def _transform(self, x: Tensor) -> Tensor:
        for block in self.network.blocks:
            x = self.again(block, x)
        return self.network.norm(x)

    def refuse(self, network: Any, name: str) -> None:
        if type(network) is not type(self.network):
            raise ValueError(f"encoder.init: {name} is a {type(network).__name__}: use weights of a plain ViT")
        activation = network.blocks[0].mlp.act
        if not isinstance(activation, nn.GELU):
            raise ValueError(f"encoder.init: {name} uses {type(activation).__name__}, vit uses GELU: use a plain ViT")

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        self.refuse_layers(state, "norm_pre.", "reg_token", "dist_token")
        if "pos_embed" in state:
            state["pos_embed"] = for_grid(state["pos_embed"], self.network.patch_embed.grid_size, self._resized)
        return state

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
            "pretrained_cfg": self.preparation(),
        }
        return dict(self.network.state_dict()), config


def _seen(mask: Mask) -> Tensor:
    """(B, K, S) grid positions of the patches that are not hidden, in ascending order."""
    return mask.hidden.byte().argsort(dim=-1, stable=True)[..., : mask.seen]


def _gather(patches: Tensor, where: Tensor) -> Tensor:
    """Of patches (B, 1 or K, N, ...) those at `where`: (B, K, S, ...), copied row by row."""
    images, masks, _ = where.shape
    image = torch.arange(images, device=where.device)[:, None, None]
    mask = torch.arange(masks, device=where.device)[:, None]
    return patches.expand(-1, masks, *patches.shape[2:])[image, mask, where]


def _xavier(network: Any, parts: int, cls: float, first: Literal["column", "row"]) -> None:
    """Xavier-uniform matrices and sin-cos positions; queries, keys and values are a matrix each if `parts` is 3."""
    projection = network.patch_embed.proj
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            for weight in module.weight.detach().chunk(parts if name.endswith("qkv") else 1):
                nn.init.xavier_uniform_(weight)
    nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
    nn.init.zeros_(projection.bias)
    nn.init.normal_(network.cls_token, std=cls)
    positions = sincos(network.embed_dim, *network.patch_embed.grid_size, first=first)
    network.pos_embed.requires_grad_(False).copy_(positions)


def _truncated_normal(network: Any) -> None:
    """Trained positions; the projection of patches stays as torch makes it."""
    matrices = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
    for weight in (network.cls_token, network.pos_embed, *matrices):
        nn.init.trunc_normal_(weight, std=0.02)


_SCHEMES: dict[str, Callable[[Any], None]] = {
    "mae": partial(_xavier, parts=1, cls=0.02, first="column"),
    "mocov3": partial(_xavier, parts=3, cls=1e-6, first="row"),
    "dino": _truncated_normal,
}


@hookimpl
def ussl_encoders() -> dict[str, type[Encoder]]:
    """Offer the vision transformer."""
    return {"vit": VisionTransformer}
