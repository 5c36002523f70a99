"""The two residual blocks. They take how to make their parts, so that a system with another attention, MLP or norm
(rotary, gated, RMSNorm) hands in its own and needs no block of its own:

    PreNormBlock(partial(Attention, num_heads=8), partial(MLP, hidden=2048), LayerNorm)
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from mmjax.ops import sharding


def placed(x: jax.Array) -> jax.Array:  # [B T D]
    """Keeps the residual stream split by batch and length; without it GSPMD may split D over fsdp, as the kernels."""
    return sharding.constrain(x, sharding.BATCH, sharding.SEQUENCE, None)


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the stack needs one more norm after its last block."""

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any = None) -> jax.Array:  # [B T D] -> [B T D]
        x = placed(x + self.attention(name="attention")(self.norm(name="norm1")(x), mask))
        return placed(x + self.mlp(name="mlp")(self.norm(name="norm2")(x)))


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): Vaswani et al. 2017, section 3.1; BERT."""

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any = None) -> jax.Array:  # [B T D] -> [B T D]
        x = self.norm(name="norm1")(placed(x + self.attention(name="attention")(x, mask)))
        return self.norm(name="norm2")(placed(x + self.mlp(name="mlp")(x)))
