"""Rotary positions: a query and a key are turned by their positions, so their product depends on the distance alone.

Source: Su et al. 2021, arXiv:2104.09864, section 3.2. Pair i of a head's D numbers turns by the angle position * f_i,
f_i = theta^(-2i/D). Which numbers make a pair is a convention of the checkpoint:

    halves     (i, i + D/2)     Hugging Face's LLaMA; ours
    neighbours (2i, 2i + 1)     the paper, Meta's LLaMA, GGUF

Both are one function, up to an order of the columns of the query and key kernels (`to_halves`, `to_neighbours`).
B batch, T length, H heads, D width of a head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct


@dataclasses.dataclass(frozen=True)
class Linear:
    """Positions are divided by `factor`: Chen et al. 2023, arXiv:2306.15595, section 2.3."""

    factor: float

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Slow frequencies are divided by `factor`, fast ones kept, those between mixed: Llama 3.1's model.py."""

    factor: float = 8.0
    low: float = 1.0  # turns within `length` up to which a frequency is slow
    high: float = 4.0  # turns from which it is fast
    length: int = 8192  # of the first training

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.length * frequencies / (2 * np.pi)
        fast = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return fast * frequencies + (1 - fast) * frequencies / self.factor


Scaling = Linear | Llama3 | None


@struct.dataclass
class Rotation:
    """Turns queries or keys [B T H D] by the positions that it was made for, pairing halves."""

    cos: jax.Array  # [B T 1 D/2] float32
    sin: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        # The tables are rounded to the type of x, as the originals do; the angles before them never are.
        cos, sin = self.cos.astype(x.dtype), self.sin.astype(x.dtype)
        first, second = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@struct.dataclass
class NeighbourRotation(Rotation):
    """The same, pairing neighbours."""

    def __call__(self, x: jax.Array) -> jax.Array:
        cos, sin = self.cos.astype(x.dtype), self.sin.astype(x.dtype)
        first, second = x[..., ::2], x[..., 1::2]
        return rearrange([first * cos - second * sin, second * cos + first * sin], "two b t h d -> b t h (d two)")


def frequencies(width: int, theta: float = 10_000.0, scaling: Scaling = None) -> np.ndarray:
    """[D/2] float32, in radians per position."""
    plain = 1 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width)
    return np.asarray(plain if scaling is None else scaling(plain), np.float32)


def rotation(
    positions: jax.Array, width: int, theta: float = 10_000.0, scaling: Scaling = None, kind: type = Rotation
) -> Any:
    """What turns the heads of width D of tokens at `positions` [B T] int (or [1 T], where all rows agree)."""
    # In float32, whatever the model's type: bfloat16 tells positions apart only up to 256.
    angles = positions[..., None, None].astype(jnp.float32) * frequencies(width, theta, scaling)
    return kind(jnp.cos(angles), jnp.sin(angles))


def to_halves(kernel: np.ndarray, width: int) -> np.ndarray:
    """Columns [..., H D] (of a query or key kernel, or a bias) that pair neighbours, in the order that pairs halves."""
    return rearrange(kernel, "... (h d two) -> ... (h two d)", d=width // 2, two=2)


def to_neighbours(kernel: np.ndarray, width: int) -> np.ndarray:
    """The inverse of `to_halves`."""
    return rearrange(kernel, "... (h two d) -> ... (h d two)", d=width // 2, two=2)
