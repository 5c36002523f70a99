"""Multi-head attention: four 2-D projections around `ops.attention`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmjax.nn.cache import Layer
from mmjax.nn.linear import Linear, lecun_normal
from mmjax.ops import attention


class Attention(nn.Module):
    """Vaswani et al. 2017, section 3.2.2. B batch, T length, S length of what is looked at, W width, D that of a head.

    Fewer key heads than query heads are shared by neighbours: Ainslie et al. 2023, arXiv:2305.13245.
    """

    num_heads: int  # H
    dtype: Any = jnp.float32
    kernel_init: Callable = lecun_normal  # of query, key and value
    out_init: Callable = lecun_normal
    num_kv_heads: int | None = None  # K, of keys and values; None: as many as of queries
    head_dim: int | None = None  # D; None: W / H
    use_bias: bool = True  # of query, key and value
    out_bias: bool | None = None  # None: as use_bias

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: Any = None,
        rotate: Callable[[jax.Array], jax.Array] | None = None,
        context: jax.Array | tuple[jax.Array, jax.Array] | None = None,
        cache: Layer | None = None,
    ) -> jax.Array | tuple[jax.Array, Any]:
        """[B T W] -> [B T W]; with a cache also what `cache.whole` has become.

        mask: as in ops.attention. rotate: what puts positions into queries and keys [B T H D] (ops/rope.py). context:
        what to look at instead of x, [B S C], or its keys and values [B S K D], projected before. cache: the keys and
        values of x join those of earlier tokens, and the mask is the one that `KVCache.open` gave.
        """
        width = x.shape[-1]
        if self.head_dim is None and width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got width={width}, num_heads={self.num_heads}")
        head_dim = self.head_dim or width // self.num_heads

        def heads(x: jax.Array, name: str, count: int) -> jax.Array:  # [B T C] -> [B T count D]
            x = Linear(count * head_dim, self.use_bias, self.dtype, self.kernel_init, name=name)(x)
            return rearrange(x, "b t (h d) -> b t h d", h=count)

        query = heads(x, "query", self.num_heads)
        if isinstance(context, tuple):
            key, value = context
        else:
            context, count = x if context is None else context, self.num_kv_heads or self.num_heads
            key, value = heads(context, "key", count), heads(context, "value", count)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        if cache is not None:
            key, value, renewed = cache.whole.append(cache.index, key, value)
        y = rearrange(attention.attention(query, key, value, mask=mask), "b t h d -> b t (h d)")
        out_bias = self.use_bias if self.out_bias is None else self.out_bias
        y = Linear(width, out_bias, self.dtype, self.out_init, name="out")(y)
        return y if cache is None else (y, renewed)
