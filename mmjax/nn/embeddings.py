"""A table of vectors by token id."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.nn.blocks import placed
from mmjax.ops import sharding


class Embed(nn.Module):
    """B batch, T tokens, V vocabulary, D width."""

    vocab_size: int  # V
    width: int  # D
    dtype: Any = jnp.float32  # of the result; the table is float32, and so is the sum of a token's gradients
    embedding_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:  # [B T] int in [0, V) -> [B T D]; NaN for other ids
        table = self.param("embedding", self.embedding_init, (self.vocab_size, self.width))
        # Gathers D of the table, as fsdp does with any parameter. Left alone, GSPMD looks up each shard of D for the
        # global batch and then moves activations.
        table = sharding.constrain(table, sharding.TENSOR, None)
        return placed(jnp.take(table, input_ids, axis=0).astype(self.dtype))
