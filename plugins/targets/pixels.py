"""The picture itself as the target: what a masked autoencoder predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from ussl.hookspecs import hookimpl
from ussl.parts import Student, Target, Tokens, View


class PixelTarget(Target):
    """The pixels of each patch, normalised within the patch unless `norm: false` (MAE).

    He et al. 2022, arXiv:2111.06377. The picture is normalised by the student's mean and std first, grey expanded to
    as many channels as these have. A patch is a vector ordered row, column, channel.

    Args:
        norm: subtract each patch's mean and divide by sqrt(unbiased variance + 1e-6).
    """

    def __init__(self, student: Student, *, norm: bool = True) -> None:
        super().__init__()
        encoder = student.encoder
        self.patch = encoder.patch
        self.width = encoder.patch**2 * len(encoder.mean)
        self.norm = norm
        self.register_buffer("mean", torch.tensor(encoder.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, views: list[View]) -> list[Tokens | None]:
        """Tokens (B, 1, N, patch * patch * channels) of every view, in fp32."""
        return [self._tokens(view.clean) for view in views]

    def _tokens(self, image: Tensor) -> Tokens:
        if image.shape[1] not in (1, len(self.mean)):
            raise ValueError(f"views have {image.shape[1]} channels, the encoder's mean has {len(self.mean)}")
        grid = (image.shape[-2] // self.patch, image.shape[-1] // self.patch)
        if (grid[0] * self.patch, grid[1] * self.patch) != tuple(image.shape[-2:]):
            raise ValueError(f"a view of {image.shape[-2]} x {image.shape[-1]} has no whole patches of {self.patch}")
        image = (image - self.mean) / self.std  # (B, C, h, w)
        image = image.unflatten(-1, (grid[1], self.patch)).unflatten(-3, (grid[0], self.patch))
        vector = image.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, N, patch * patch * C)
        if self.norm:
            variance, mean = torch.var_mean(vector, dim=-1, keepdim=True)  # unbiased
            vector = (vector - mean) / (variance + 1e-6).sqrt()
        return Tokens(None, vector[:, None], None, grid)


@hookimpl
def ussl_targets() -> dict[str, type[Target]]:
    """Offer pixels as the target."""
    return {"pixels": PixelTarget}
