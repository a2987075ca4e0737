"""Random numbers that depend on what they are for, never on when or where they are drawn."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 with wrap-around (Steele et al. 2014, doi 10.1145/2660193.2660195)."""
    x = (x ^ _right(x, 30)) * _FIRST
    x = (x ^ _right(x, 27)) * _SECOND
    return x ^ _right(x, 31)


class Draws:
    """A counter hash of (seed, epoch, index, turn, stream): equal for any batch, rank, worker or resume."""

    def __init__(self, seed: int, epoch: int, step: int, index: Tensor, turn: Tensor, name: str = "") -> None:
        self.seed, self.epoch, self.step, self.index, self.turn, self.name = seed, epoch, step, index, turn, name

    def view(self, i: int) -> Draws:
        """Streams of view i's own."""
        return Draws(self.seed, self.epoch, self.step, self.index, self.turn, f"{self.name}{i}/")

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1) from (seed, epoch, index, turn, stream), on the batch's device."""
        key = self._key(stream, self.epoch, self.index.device)
        key = mix(key + self.index * _GOLDEN)
        key = mix(key + self.turn * _GOLDEN)
        return _floats(key, shape)

    def shared(self, stream: str, *shape: int) -> Tensor:
        """(*shape) float32 in [0, 1) from (seed, step, stream): the same for every image and rank of a step."""
        key = self._key("shared/" + stream, self.step, self.index.device)
        return _floats(key[None], shape)[0]

    def _key(self, stream: str, counter: int, device: torch.device) -> Tensor:
        key = torch.tensor(self.seed, dtype=torch.int64, device=device)
        for word in (counter, zlib.crc32((self.name + stream).encode())):
            key = mix(key * _GOLDEN + word + 1)
        return key


def _floats(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) floats of 24 random bits from keys (B,)."""
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=key.device)
    bits = _right(mix(key[:, None] + counter * _GOLDEN), 40)
    return (bits.to(torch.float32) * 2.0**-24).reshape(len(key), *shape)
