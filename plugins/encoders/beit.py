"""The BEiT-style vision transformer: positions are biases of attention, relative to one another."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Mask, Tokens
from ussl.starting import TransformerEncoder, Triple

_TABLE = "relative_position_bias_table"
_SHARED = f"rel_pos_bias.{_TABLE}"


class BeitEncoder(TransformerEncoder):
    """Vision transformer with relative positions, a bias on queries and values, and layer scale (BEiT, SimMIM, USFM).

    Bao et al. 2022, arXiv:2106.08254; Xie et al. 2022, arXiv:2111.09886; Jiao et al. 2024, Med Image Anal 96:103202.
    It encodes every patch. Layer norm has eps 1e-6; initial weights are BEiT's.
    """

    called = "beit"
    accepts = frozenset({"fill"})
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
        layer_scale: float = 0.1,
        shared_positions: bool = False,
        mask_token: bool = False,
        init: str | Path | None = None,
        init_matched: float = 0.9,
        mean: Triple | None = None,
        std: Triple | None = None,
    ) -> None:
        """Build the network with random weights.

        Args:
            size: width, depth and heads of the transformer.
            patch: side of a patch in pixels.
            image_size: side in pixels of the images whose grid the positions are made for; other sizes work.
            width: channels of a token, in place of the size's.
            depth: number of blocks, in place of the size's.
            heads: attention heads, in place of the size's.
            pooling: `token`: every token is normalised, and the class token is the image feature (pre-training);
                `average`: no token is, and the normalised average of the patches' tokens is (fine-tuned weights).
            drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
            layer_scale: factor of each channel that a block adds, to begin with.
            shared_positions: one table of relative positions for all blocks (SimMIM's pre-training), or one for each.
            mask_token: a learned token stands where patches are hidden, for masks that say so (how: token).
            init: weights to start from: a timm name (beit_base_patch16_224), a file, an encoder or a run folder.
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
        if not layer_scale > 0:
            raise ValueError(f"beit: layer_scale must be above 0, such as 0.1, not {layer_scale}")
        self.layer_scale, self.shared_positions = layer_scale, shared_positions
        self.network = self._network()
        self._places: dict[Any, tuple[Tensor, Tensor | None]] = {}  # by grid and device: fixed, so not saved

    def _arguments(self) -> dict[str, Any]:
        """What timm needs to build this network for images of its usual size."""
        return {
            "patch_size": self.patch,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "init_values": self.layer_scale,
            "use_abs_pos_emb": False,
            "use_rel_pos_bias": not self.shared_positions,
            "use_shared_rel_pos_bias": self.shared_positions,
            "global_pool": "token" if self.pooling == "token" else "avg",
        }

    def _network(self) -> Any:
        from timm.models.beit import Beit

        return Beit(**self._arguments(), img_size=self.image_size, num_classes=0, drop_path_rate=self.drop_path)

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Tokens of all patches; image (B, C, h, w) in [0, 1], C 1 or 3. ValueError = a mask not accepted."""
        views, grid = self.views(image, mask), self.grid(*image.shape[-2:])  # (B, 1 or K, C, h, w)
        projection = self.network.patch_embed.proj
        pixels = self.normalised(views).flatten(0, 1)
        embedded = projection(pixels).flatten(2).transpose(1, 2).unflatten(0, views.shape[:2])
        x = self.concealed(embedded, mask)  # (B, K, N, D)
        x = torch.cat([self.network.cls_token.expand(*x.shape[:2], -1, -1), x], 2)
        tokens = self._transform(x.flatten(0, 1), grid).unflatten(0, x.shape[:2])
        cls, patches = tokens[:, :, 0], tokens[:, :, 1:]
        if self.pooling == "token":
            return Tokens(cls, patches, None, grid)
        pooled = self.network.fc_norm(patches.mean(2))
        # every rank's gradients are summed: fc_norm must have one also where only patches are looked at
        return Tokens(pooled, patches + 0 * pooled[:, :, None], None, grid)

    def _transform(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + N, D) through all blocks."""
        shared = self._bias(self.network.rel_pos_bias, grid) if self.shared_positions else None
        for block in self.network.blocks:
            x = self.again(_block, block, x, self._bias(block.attn, grid) if shared is None else shared)
        return self.network.norm(x)

    def _bias(self, holder: Any, grid: tuple[int, int]) -> Tensor:
        """(1, heads, 1 + N, 1 + N) what the table of a module adds to attention."""
        table = holder.relative_position_bias_table
        index, resize = self._place(grid, table.device)
        if resize is not None:
            with torch.autocast(table.device.type, enabled=False):
                table = resize.to(table.dtype) @ table
        return table[index].permute(2, 0, 1)[None]

    def _place(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The row of a table for each pair of tokens (1 + N, 1 + N), and the matrix that resizes tables to `grid`."""
        from timm.models.beit import gen_relative_position_index

        if (grid, device) not in self._places:
            native = self.network.patch_embed.grid_size
            resize = None if grid == native else _resized(torch.eye(_rows(native)), grid).to(device)
            self._places[grid, device] = gen_relative_position_index(grid).to(device), resize
        return self._places[grid, device]

    def refuse(self, network: Any, name: str) -> None:
        if type(network) is not type(self.network):
            raise ValueError(f"encoder.init: {name} is a {type(network).__name__}: use weights of a BEiT")

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        blocks = [f"blocks.{i}.attn.{_TABLE}" for i in range(self.depth)]
        if self.shared_positions and _SHARED not in state:
            state = _joined(state, blocks, str(self.init))
        elif not self.shared_positions and _SHARED in state:
            shared = state[_SHARED]
            state = {k: v for k, v in state.items() if k != _SHARED} | dict.fromkeys(blocks, shared)
        self.refuse_layers(state, "pos_embed", "rel_pos_bias.")
        grid = self.network.patch_embed.grid_size
        return {name: _resized(v, grid) if name.endswith(_TABLE) else v for name, v in state.items()}

    def to_timm(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model = self._arguments()
        config = {
            "architecture": "beit_base_patch16_224",
            "num_classes": 0,
            "num_features": self.width,
            "global_pool": model["global_pool"],
            "model_args": model,  # the image size is in pretrained_cfg
            "pretrained_cfg": self.preparation(),
        }
        return dict(self.network.state_dict()), config


def _block(block: Any, x: Tensor, bias: Tensor) -> Tensor:
    """timm's Block on (B, L, D) with a bias (1, heads, L, L) of attention from outside."""
    x = x + block.drop_path1(block.gamma_1 * _attend(block.attn, block.norm1(x), bias))
    return x + block.drop_path2(block.gamma_2 * block.mlp(block.norm2(x)))


def _attend(attention: Any, x: Tensor, bias: Tensor) -> Tensor:
    added = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    qkv = F.linear(x, attention.qkv.weight, added).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads) each
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    return attention.proj(x.transpose(1, 2).flatten(2))


def _rows(grid: tuple[int, int]) -> int:
    """Of a table of relative positions: one for each offset, and three for the class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def _resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table (T, heads) of a square grid for another one, as timm does it."""
    from timm.layers import resize_rel_pos_bias_table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own, on its way through torch
        return resize_rel_pos_bias_table(table, grid, (_rows(grid), table.shape[1]))


def _joined(state: dict[str, Tensor], names: list[str], what: str) -> dict[str, Tensor]:
    """A state with one shared table in place of equal ones in the blocks. ValueError = they differ."""
    tables = [state[name] for name in names if name in state]
    if any(not torch.equal(table, tables[0]) for table in tables):
        raise ValueError(f"{what} has other relative positions in every block: write shared_positions: false")
    rest = {name: tensor for name, tensor in state.items() if not name.endswith(f".attn.{_TABLE}")}
    return rest | {_SHARED: tables[0]} if tables else rest


@hookimpl
def ussl_encoders() -> dict[str, type[Encoder]]:
    """Offer the BEiT-style vision transformer."""
    return {"beit": BeitEncoder}
