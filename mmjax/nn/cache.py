"""What a model remembers of the tokens before, so that the next one costs one token and not all of them.

A cache is a pytree that goes in and comes out of a model's `extend`. Inside, it is the carry of the loop over layers:
as inputs and outputs of that loop it would be copied whole for each token.

    cache = model.init_cache(batch_size, length)
    out, cache = model.apply(variables, prompt, cache, attention_mask, method="extend")  # [B T]
    out, cache = model.apply(variables, token, cache, method="extend")                   # [B 1], again and again

L layers, B batch, T new tokens, S slots, K key heads, D width of a head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mmjax.ops import masks

NOTHING = -1  # the position of a slot that holds no token, or one of padding


class Layer(NamedTuple):
    """One layer's place in what all layers of a stack remember; a layer returns the whole, with its part renewed."""

    whole: Any
    index: jax.Array  # [] int, of the layer

    def read(self) -> Any:
        """This layer's part of a tree of arrays [L ...]: a recurrent state."""
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, self.index, keepdims=False), self.whole)

    def write(self, part: Any) -> Any:
        """The whole, with this layer's part replaced."""
        put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), self.index, 0)  # noqa: E731
        return jax.tree.map(put, self.whole, part)


@struct.dataclass
class KVCache:
    """Keys and values, as attention reads them (rotated). Rows share their slots: what is padding in a row, on either
    side, takes a slot that nobody looks at. More tokens than slots overwrite the last ones; callers count."""

    key: jax.Array  # [L B S K D]
    value: jax.Array  # [L B S K D]
    positions: jax.Array  # [B S] int32 of the token in each slot, or NOTHING
    used: jax.Array  # [] int32 slots that are taken, from the left
    # Known when the program is built: new tokens then look at each other only, under a static mask, whose hidden tiles
    # a fast attention skips.
    fresh: bool = struct.field(pytree_node=False, default=True)

    @classmethod
    def empty(
        cls, depth: int, batch_size: int, length: int, heads: int, width: int, dtype: Any = jnp.float32
    ) -> "KVCache":
        """`length` slots for the keys of `heads` heads of this width, in each of `depth` layers."""
        shape = (depth, batch_size, length, heads, width)
        nowhere = jnp.full((batch_size, length), NOTHING, jnp.int32)
        # Two buffers, even where the values are equal: the cache is donated, and a buffer can be so once.
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), nowhere, jnp.zeros((), jnp.int32))

    def open(
        self, shape: tuple[int, int], valid: jax.Array | None = None, window: int | None = None
    ) -> tuple[jax.Array, masks.Mask | jax.Array, "KVCache"]:
        """Takes T slots for new tokens of this shape (B, T): their positions [B T] int32, continuing each row (NOTHING
        at padding), the mask of the slots that each looks at, and the cache for the layers.

        valid: [B T] bool, True where a token counts. window: as in masks.SlidingWindow.
        """
        length, slots = shape[1], self.positions.shape[1]
        if length > slots:
            raise ValueError(f"the cache has {slots} slots, got {length} tokens; make a longer one with init_cache")
        counted = jnp.ones(shape, bool) if valid is None else valid
        last = self.positions.max(axis=1, keepdims=True)  # NOTHING, one before the first, where there is none
        positions = jnp.where(counted, last + jnp.cumsum(counted, axis=1), NOTHING).astype(jnp.int32)
        keys = jax.lax.dynamic_update_slice(self.positions, positions, (0, self.used))
        cache = self.replace(positions=keys, used=self.used + length)
        if self.fresh:
            return positions, masks.causal(valid, window=window), cache
        queries, keys = positions[:, None, :, None], keys[:, None, None, :]  # [B 1 T 1], [B 1 1 S]
        allowed = (keys != NOTHING) & (keys <= queries)
        return positions, allowed if window is None else allowed & (queries - keys < window), cache

    def append(self, layer: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, "KVCache"]:
        """Writes a layer's new keys and values [B T K D] into the slots that `open` took; returns what to look at."""
        start = (layer, 0, self.used - key.shape[1], 0, 0)
        put = lambda x, new: jax.lax.dynamic_update_slice(x, new[None].astype(x.dtype), start)  # noqa: E731
        cache = self.replace(key=put(self.key, key), value=put(self.value, value))
        return (key, value, cache) if self.fresh else (*cache.read(layer), cache)

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A layer's keys and values, both [B S K D]."""
        return Layer((self.key, self.value), layer).read()

    def close(self) -> "KVCache":
        """After the last layer: from now on, new tokens look at the slots."""
        return self.replace(fresh=False)

    def rows(self, order: jax.Array) -> "KVCache":
        """The cache of these rows [B'], as a beam search goes on with some of its beams."""
        return self.replace(key=self.key[:, order], value=self.value[:, order], positions=self.positions[order])
