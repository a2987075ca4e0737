"""What encoders around a timm network share: the weights they start from, normalisation, masks, and their export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ussl import weights
from ussl.parts import Encoder, Initialization, Mask
from ussl.positions import patch_grid

Triple = tuple[float, float, float]
SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


class NetworkEncoder(Encoder):
    """An encoder around a timm network, which starts from the weights `init` and normalises as these were trained.

    A subclass says what it is `called`, makes its `network`, and tells which weights it refuses or refits.

    Args:
        init: weights to start from: a timm name, a file, an encoder or a run folder; None = random.
        init_matched: least share of the network's tensors that `init` must hold.
        mean: of the images in [0, 1] by channel; None = as `init` was trained, else ImageNet's.
        std: as `mean`.
    """

    called: ClassVar[str]
    network: Any
    image_size: int
    _mean: Tensor
    _std: Tensor

    def __init__(
        self, *, init: str | Path | None, init_matched: float, mean: Triple | None, std: Triple | None
    ) -> None:
        super().__init__()
        if not 0 < init_matched <= 1:
            raise ValueError(f"{self.called}: init_matched must be in (0, 1], not {init_matched}")
        known = weights.normalisation(init) if mean is None or std is None else weights.IMAGENET
        self.mean, self.std = tuple(mean or known[0]), tuple(std or known[1])
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            numbers = f"{self.mean} and {self.std}"
            raise ValueError(f"{self.called}: mean and std are three numbers each, std above 0; not {numbers}")
        self.init, self.init_matched = init, init_matched
        self.register_buffer("_mean", torch.tensor(self.mean)[:, None, None], persistent=False)  # (3, 1, 1)
        self.register_buffer("_std", torch.tensor(self.std)[:, None, None], persistent=False)
        self._lineage: list[dict[str, Any]] = []

    def views(self, image: Tensor, mask: Mask | None) -> Tensor:
        """(B, 1 or K, C, h, w) what is to be encoded. ValueError = a mask not accepted, or neither grey nor RGB."""
        if mask is not None and mask.how not in self.accepts:
            taken = sorted(self.accepts)
            raise ValueError(f"{self.called} cannot encode a mask that says {mask.how!r}: it takes {taken}")
        if image.shape[1] not in (1, 3):
            raise ValueError(f"{self.called} takes grey or RGB images (B, 1 or 3, h, w), not {tuple(image.shape)}")
        return image[:, None] if mask is None or mask.image is None else mask.image

    def normalised(self, images: Tensor) -> Tensor:
        """(..., 3, h, w) for the network, of images (..., C, h, w) in [0, 1]; grey becomes three channels."""
        return (images - self._mean) / self._std

    def initialize(self, formats: Mapping[str, type[Initialization]] | None = None) -> list[str]:
        """Load the weights that `init` names, as far as they fit; lines that tell what did not."""
        if self.init is None:
            return []
        state = self.fitted(self.pretrained(str(self.init), formats))
        report = weights.match(self.network, state, self.init_matched, str(self.init))
        self._lineage = weights.lineage(self.init, formats)
        return report.lines()

    def pretrained(self, init: str, formats: Mapping[str, type[Initialization]] | None) -> dict[str, Tensor]:
        """The tensors that `init` names."""
        if weights.timm_config(init) is None:
            return weights.recognise(weights.read(init), init, formats)[1]
        network, _ = weights.timm_model(init, "encoder.init")
        self.refuse(network, init)
        return network.state_dict()

    def refuse(self, network: Any, name: str) -> None:
        """ValueError where timm's pretrained network `name` is of another kind than this encoder's."""

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights from elsewhere as this network takes them, such as positions of its grid. ValueError = it cannot."""
        return state

    def lineage(self) -> list[dict[str, Any]]:
        """The weights that `init` names and what those were trained from."""
        if self.init is not None and not self._lineage:  # asked also after a resume, which does not initialize
            self._lineage = weights.lineage(self.init)
        return self._lineage

    def preparation(self) -> dict[str, Any]:
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


class TransformerEncoder(NetworkEncoder):
    """A NetworkEncoder of square patches and transformer blocks.

    Args:
        size: width, depth and heads, by name.
        patch: side of a patch in pixels.
        image_size: side in pixels of the images whose grid the positions are made for.
        width: channels of a token, in place of the size's.
        depth: number of blocks, in place of the size's.
        heads: attention heads, in place of the size's.
        pooling: token or average.
        drop_path: stochastic depth of the last block.
        mask_token: whether a learned token stands where patches are hidden; masks must then say "token".
        start: the options of NetworkEncoder.
    """

    mask_token: nn.Parameter | None

    def __init__(
        self,
        *,
        size: str,
        patch: int,
        image_size: int,
        width: int | None,
        depth: int | None,
        heads: int | None,
        pooling: str,
        drop_path: float,
        mask_token: bool,
        **start: Any,
    ) -> None:
        super().__init__(**start)
        if size not in SIZES or pooling not in ("token", "average"):
            choice = f"size is {' or '.join(SIZES)}, pooling token or average"
            raise ValueError(f"{self.called}: {choice}; not {size}, {pooling}")
        shape = zip((width, depth, heads), SIZES[size], strict=True)
        self.width, self.depth, self.heads = (usual if given is None else given for given, usual in shape)
        self.size, self.patch, self.image_size, self.pooling = size, patch, image_size, pooling
        self.drop_path = drop_path
        self._check_shape()
        self.register_parameter("mask_token", None)
        if mask_token:
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, self.width), std=0.02))
            self.accepts = frozenset({"token"})  # alone, since with other masks the token would learn nothing

    def _check_shape(self) -> None:
        for name in ("patch", "image_size", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.called}: {name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            problem = f"width {self.width} does not divide into {self.heads} heads"
            raise ValueError(f"{self.called}: {problem}: change width or heads")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"{self.called}: drop_path must be in [0, 1), not {self.drop_path}")
        self.grid(self.image_size, self.image_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches; ValueError when they do not fill an image of that size."""
        return patch_grid(height, width, self.patch)

    def concealed(self, embedded: Tensor, mask: Mask | None) -> Tensor:
        """(B, K, N, D) the mask token where patches are hidden, elsewhere their embeddings (B, 1 or K, N, D)."""
        if self.mask_token is None:
            return embedded
        token = self.mask_token.to(embedded.dtype)
        if mask is None:  # every rank's gradients are summed, so a parameter without use must have one too
            return embedded + 0 * token
        return torch.where(mask.hidden[..., None], token, embedded)

    def again(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """The result of a block, which is computed again in the backward pass where `recompute` asks for it."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def refuse_layers(self, state: Mapping[str, Tensor], *others: str) -> None:
        """ValueError where `state` is of a network that computes something else: it has more in a block, or `others`.

        others: how the names of tensors begin that are in no block, and that only other networks have.
        """
        ours = self.network.state_dict().keys()
        inside = (*(f"blocks.{i}." for i in range(self.depth)), *others)
        if foreign := [name for name in state if name not in ours and name.startswith(inside)]:
            raise ValueError(
                f"{self.init} has layers that {self.called} lacks ({foreign[0]}, ...): use weights of a plain "
                f"{type(self.network).__name__}"
            )
