"""Splash attention from jax (Pallas, TPU), behind mmjax's masks and any length.

The kernel wants lengths that are multiples of its tiles and at least one key for every query, and knows two kinds of
masks: a static one, known when the program is built, whose empty tiles it skips, and segment ids. Here lengths are
padded, static masks are evaluated tile by tile (never as [T S]), and Padding joins Segments as one pair of ids.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from mmjax.ops import masks

LANES = 128  # tiles are multiples of this
TILE = 1024  # largest tile: the library's default of 128 is too small to fill the matrix unit
HIDDEN = np.iinfo(np.int32).min  # the segment of keys that nobody sees


@dataclasses.dataclass(frozen=True)  # compared and hashed by value: the library caches what it makes of a mask
class Tiled(splash_attention_mask.Mask):
    """A static mask that answers for one tile at a time, on padded lengths."""

    mask: masks.Mask
    lengths: tuple[int, int]  # T, S
    shape: tuple[int, int] = (0, 0)  # the same, padded

    def __getitem__(self, tile: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (np.arange(size)[part] for size, part in zip(self.shape, tile, strict=True))
        # Queries before the first key see that key, since a row without tiles divides by zero; the caller zeroes them.
        queries = np.maximum(rows + self.lengths[1] - self.lengths[0], 0)
        allowed = self.mask.allowed(queries[:, None], columns[None])
        return np.broadcast_to(allowed, (rows.size, columns.size)) & (columns < self.lengths[1])


def split(mask: masks.Mask, key: jax.Array) -> tuple[masks.Mask, jax.Array | None, jax.Array | None]:
    """The static part of `mask`, and the rest as segment ids of the queries [B T|1] and of the keys [B S]."""
    static, queries, keys = masks.Full(), None, None
    for part in masks.parts(mask):
        if part.static:
            static = static & part
        elif isinstance(part, masks.Segments):
            queries, keys = part.queries, part.keys if keys is None else jnp.where(keys == HIDDEN, HIDDEN, part.keys)
        else:  # Padding
            keys = jnp.where(part.valid, 0 if keys is None else keys, HIDDEN)
    if keys is not None and queries is None:
        queries = jnp.zeros((key.shape[0], 1), jnp.int32)
    return static, queries, keys


def tile(length: int) -> tuple[int, int]:
    """The tile's size and the padded length: as few equal tiles of at most TILE as cover `length`."""
    count = math.ceil(length / TILE)
    size = math.ceil(length / count / LANES) * LANES
    return size, size * count


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    queries: jax.Array | None,
    keys: jax.Array | None,
    *,
    static: masks.Mask,
    scale: float,
    interpret: bool,
) -> jax.Array:
    """query [b T h D], key and value [b S k D], segment ids [b T|1] and [b S] or None -> [b T h D]; one device."""
    (length, heads), key_length = query.shape[1:3], key.shape[1]
    (tile_q, padded_q), (tile_kv, padded_kv) = tile(length), tile(key_length)
    mask = Tiled(static, (length, key_length), (padded_q, padded_kv))
    kernel = splash_attention_kernel.make_splash_mha(
        mask=splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=tile_q, block_kv=tile_kv, block_kv_compute=tile_kv,
            block_q_dkv=tile_q, block_kv_dkv=tile_kv, block_kv_dkv_compute=tile_kv,
            block_q_dq=tile_q, block_kv_dq=tile_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )  # fmt: skip

    def padded(x, to):  # [b L h D] -> [b h to D]
        return jnp.pad(x, ((0, 0), (0, to - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    ids = None
    if keys is not None:
        queries = jnp.broadcast_to(queries, (query.shape[0], length))
        queries = jnp.pad(queries, ((0, 0), (0, padded_q - length)))
        keys = jnp.pad(keys, ((0, 0), (0, padded_kv - key_length)))  # `static` hides the padding
        ids = splash_attention_kernel.SegmentIds(queries.astype(jnp.int32), keys.astype(jnp.int32))
    scaled = (query.astype(jnp.float32) * scale).astype(query.dtype)
    out = jax.vmap(kernel)(padded(scaled, padded_q), padded(key, padded_kv), padded(value, padded_kv), ids)
    return out[:, :, :length].swapaxes(1, 2)
