"""Random numbers that depend on what they are for, never on when or where they are drawn."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WRAP = 2**64


def _signed(x: int) -> int:
    """The int64 with the bits of x."""
    return (x + _WRAP // 2) % _WRAP - _WRAP // 2


def _right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 with wrap-around (Steele et al. 2014, doi 10.1145/2660193.2660195)."""
    x = (x ^ _right(x, 30)) * _signed(_FIRST)
    x = (x ^ _right(x, 27)) * _signed(_SECOND)
    return x ^ _right(x, 31)


def _mix(x: int) -> int:
    """The same on a Python integer: a key made on the host costs the device no wait."""
    x %= _WRAP
    x = (x ^ x >> 30) * _FIRST % _WRAP
    x = (x ^ x >> 27) * _SECOND % _WRAP
    return x ^ x >> 31


class Draws:
    """A counter hash of (seed, epoch, index, turn, stream): equal for any batch, rank, worker or resume."""

    def __init__(self, seed: int, epoch: int, step: int, index: Tensor, turn: Tensor, name: str = "") -> None:
        self.seed, self.epoch, self.step, self.index, self.turn, self.name = seed, epoch, step, index, turn, name

    def view(self, i: int) -> Draws:
        """Streams of view i's own."""
        return Draws(self.seed, self.epoch, self.step, self.index, self.turn, f"{self.name}{i}/")

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1) from (seed, epoch, index, turn, stream), on the batch's device."""
        key = mix(self.index * _signed(_GOLDEN) + self._key(stream, self.epoch))
        key = mix(key + self.turn * _signed(_GOLDEN))
        return _floats(key, shape)

    def shared(self, stream: str, *shape: int) -> Tensor:
        """(*shape) float32 in [0, 1) from (seed, step, stream): the same for every image and rank of a step."""
        key = self._key("shared/" + stream, self.step)
        return _floats(torch.full((1,), key, dtype=torch.int64, device=self.index.device), shape)[0]

    def _key(self, stream: str, counter: int) -> int:
        key = self.seed
        for word in (counter, zlib.crc32((self.name + stream).encode())):
            key = _mix(key * _GOLDEN + word + 1)
        return _signed(key)


def _floats(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) floats of 24 random bits from keys (B,)."""
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=key.device)
    bits = _right(mix(key[:, None] + counter * _signed(_GOLDEN)), 40)
    return (bits.to(torch.float32) * 2.0**-24).reshape(len(key), *shape)
