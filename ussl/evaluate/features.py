"""The frozen features of pictures, and raw pixels as the baseline that every encoder has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ussl.data.preprocess import prepared
from ussl.parts import Encoder, Mask, Tokens

_SIDE = 16  # of the raw-pixel baseline


class RawPixels(Encoder):
    """No network at all: the feature of an image is its grey levels, averaged down to 16 x 16. The baseline."""

    width, patch = _SIDE * _SIDE, 1
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    accepts: frozenset[str] = frozenset()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """16 x 16, whatever the image's size."""
        return _SIDE, _SIDE

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Pooled (B, 1, 256): means over a 16 x 16 grid, row by row; image (B, C, h, w), colour averaged to grey."""
        if mask is not None:
            raise ValueError("raw pixels take no mask")
        grey = image.mean(1, keepdim=True)
        return Tokens(adaptive_avg_pool2d(grey, _SIDE).flatten(2), None, None, (_SIDE, _SIDE))


def features(
    encoder: Encoder, pictures: Iterable[np.ndarray], device: torch.device, size: int, batch_size: int = 32
) -> np.ndarray:
    """The encoder's feature of each whole picture: its pooled token, or the mean of its patches where it pools none.

    The encoder works in evaluation mode, without gradient. Its modules' modes and torch's random states are
    afterwards what they were.

    Args:
        encoder: on `device`; pictures undergo its `preprocess` first.
        pictures: uint8 (H, W) grey or (H, W, 3) RGB, of any sizes; read once, `batch_size` at a time.
        device: where the encoder is.
        size: side of the square each picture is resized to, antialiased bicubic, aspect not kept.
        batch_size: pictures that pass together.

    Returns:
        (n, D) float32.

    Raises:
        ValueError: no pictures, or something that is not a picture.
    """
    return features_of(
        (squared(picture, size, encoder.preprocess) for picture in pictures), encoder, device, batch_size
    )


def features_of(images: Iterable[Tensor], encoder: Encoder, device: torch.device, batch_size: int = 32) -> np.ndarray:
    """As `features`, of images (C, h, w) in [0, 1] of one size that have undergone the encoder's `preprocess`."""
    batches = iter(images)
    found = []
    with _frozen(encoder, device):
        while batch := list(islice(batches, batch_size)):
            found.append(_feature(encoder(_stacked(batch).to(device))).float().cpu())
    if not found:
        raise ValueError("no pictures to take features of")
    return torch.cat(found).numpy()


@contextmanager
def _frozen(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradient; every module's mode and the random states come back."""
    training = [(module, module.training) for module in encoder.modules()]
    cuda = [device] if device.type == "cuda" else []
    encoder.eval()
    try:
        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            yield
    finally:
        for module, mode in training:
            module.training = mode


def _feature(tokens: Tokens) -> Tensor:
    """(B, D) of tokens without a mask."""
    if tokens.pooled is not None:
        return tokens.pooled[:, 0]
    if tokens.patches is None:
        raise ValueError("the encoder gives neither a pooled feature nor patches: there is nothing to measure")
    return tokens.patches[:, 0].mean(1)


def _stacked(images: list[Tensor]) -> Tensor:
    """(B, C, h, w), grey where all are grey."""
    channels = max(len(image) for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def squared(picture: np.ndarray, size: int, preprocess: Mapping[str, float] | None = None) -> Tensor:
    """(C, size, size) float32 in [0, 1]: the whole of a uint8 picture (H, W) or (H, W, 3), antialiased bicubic.

    preprocess: of the encoder it is for; the picture undergoes that before it is resized.
    """
    picture = np.asarray(picture)
    colour = picture.ndim == 3 and picture.shape[2] == 3
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or colour) or 0 in picture.shape:
        raise ValueError(f"a picture is uint8 (H, W) or (H, W, 3), not {picture.dtype} {picture.shape}")
    channels = picture.transpose(2, 0, 1) if colour else picture[None]
    pixels = torch.from_numpy(np.array(channels, order="C"))  # a copy: torch takes no read-only or flipped arrays
    return prepared(pixels, size, preprocess or {})


def finite(x: np.ndarray) -> np.ndarray:
    """Features (n, D) as float64. ValueError: some are not finite."""
    x = np.asarray(x, dtype=np.float64)
    if bad := int((~np.isfinite(x)).any(1).sum()):
        raise ValueError(f"the features of {bad} of {len(x)} images are not finite: the encoder has diverged")
    return x


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of (n, D) at length 1; a row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1, length)
