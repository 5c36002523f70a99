"""The two residual blocks. They take how to make their parts, so that a system with another attention, MLP or norm
(rotary, gated, RMSNorm) hands in its own and needs no block of its own:

    PreNormBlock(partial(Attention, num_heads=8), partial(MLP, hidden=2048), LayerNorm)

A block hands to its attention what it is called with besides x: mask, rotation ... With a `cache` it returns a pair.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from mmjax.nn.cache import Layer
from mmjax.ops import sharding


def placed(x: jax.Array) -> jax.Array:  # [B T D]
    """Keeps the residual stream split by batch and length; without it GSPMD may split D over fsdp, as the kernels."""
    return sharding.constrain(x, sharding.BATCH, sharding.SEQUENCE, None)


def attend(attention: nn.Module, x: jax.Array, args: tuple, cache: Layer | None) -> tuple[jax.Array, Any]:
    """What the attention gives, and what the layers remember after it (None without a cache)."""
    return (attention(x, *args), None) if cache is None else attention(x, *args, cache=cache)


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the stack needs one more norm after its last block."""

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *args: Any, cache: Layer | None = None) -> jax.Array | tuple[jax.Array, Any]:
        y, renewed = attend(self.attention(name="attention"), self.norm(name="norm1")(x), args, cache)
        x = placed(x + y)
        x = placed(x + self.mlp(name="mlp")(self.norm(name="norm2")(x)))
        return x if cache is None else (x, renewed)  # [B T D]


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): Vaswani et al. 2017, section 3.1; BERT."""

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *args: Any, cache: Layer | None = None) -> jax.Array | tuple[jax.Array, Any]:
        y, renewed = attend(self.attention(name="attention"), x, args, cache)
        x = self.norm(name="norm1")(placed(x + y))
        x = self.norm(name="norm2")(placed(x + self.mlp(name="mlp")(x)))
        return x if cache is None else (x, renewed)  # [B T D]
