"""Tables of vectors by token id and by class, and the positions that go with tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.nn.blocks import placed
from mmjax.nn.linear import matmul
from mmjax.ops import sharding


class Embed(nn.Module):
    """B batch, T tokens, V vocabulary, D width."""

    vocab_size: int  # V
    width: int  # D
    dtype: Any = jnp.float32  # of the result; the table is float32, and so is the sum of a token's gradients
    embedding_init: Callable = nn.initializers.normal(0.02)

    def setup(self):
        self.embedding = self.param("embedding", self.embedding_init, (self.vocab_size, self.width))

    def __call__(self, input_ids: jax.Array) -> jax.Array:  # [B T] int in [0, V) -> [B T D]; NaN for other ids
        # Gathers D of the table, as fsdp does with any parameter. Left alone, GSPMD looks up each shard of D for the
        # global batch and then moves activations.
        table = sharding.constrain(self.embedding, sharding.TENSOR, None)
        # Ids below 0 would count from the end; an IGNORED label that strays in here shall not pass for a word.
        input_ids = jnp.where(input_ids < 0, self.vocab_size, input_ids)
        return placed(jnp.take(table, input_ids, axis=0).astype(self.dtype))

    def logits(self, x: jax.Array) -> jax.Array:  # [... D] -> [... V]
        """The table as the head of a language model: Press and Wolf 2017, arXiv:1608.05859."""
        return matmul(x.astype(self.dtype), self.embedding.astype(self.dtype).T)


class Labels(nn.Module):
    """What classes something belongs to, or to none, as one vector. B batch, D width.

    counts: how many classes each kind of label has, such as (95, 7) for a subject and an artist. The rows of a kind
    stand behind those of the kind before it, and behind them one that stands for none, which is also what guidance
    without a classifier needs (Ho and Salimans 2022, arXiv:2207.12598).
    """

    counts: tuple[int, ...]
    width: int  # D
    dtype: Any = jnp.float32
    embedding_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, labels: jax.Array, dropped: jax.Array | None = None) -> jax.Array:
        """labels int [B], or [B kinds], -1 for none; dropped bool [B], rows that belong to none -> [B D], the sum over
        the kinds. NaN for other labels."""
        labels = labels if labels.ndim == 2 else labels[:, None]
        if labels.shape[1] != len(self.counts):
            raise ValueError(f"labels must be [B {len(self.counts)}] for counts {self.counts}, got {labels.shape}")
        counts = np.asarray(self.counts)
        rows = counts + 1
        if dropped is not None:
            labels = jnp.where(dropped[:, None], -1, labels)
        known = labels < counts
        labels = jnp.where(labels < 0, counts, labels) + (np.cumsum(rows) - rows)
        table = self.param("embedding", self.embedding_init, (int(rows.sum()), self.width))
        return jnp.take(table, jnp.where(known, labels, rows.sum()), axis=0).sum(1).astype(self.dtype)


def positions_of(
    shape: tuple[int, int], attention_mask: jax.Array | None = None, segments: jax.Array | None = None
) -> jax.Array:
    """int32 [B T], or [1 T] where all rows agree: tokens counted from 0, in each row and again in each segment.

    attention_mask: [B T] bool, False at padding, which is not counted. segments: [B T] int, neighbours of one number
    are a sequence of their own.
    """
    if attention_mask is None and segments is None:
        return jnp.arange(shape[1], dtype=jnp.int32)[None]
    counted = jnp.ones(shape, jnp.int32) if attention_mask is None else attention_mask.astype(jnp.int32)
    positions = jnp.cumsum(counted, axis=1) - counted  # tokens before this one
    if segments is not None:
        starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
        positions -= jax.lax.cummax(jnp.where(starts, positions, 0), axis=1)
    return positions
