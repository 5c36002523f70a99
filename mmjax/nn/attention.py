"""Multi-head attention: four 2-D projections around `ops.attention`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmjax.nn.linear import Linear, lecun_normal
from mmjax.ops import attention


class Attention(nn.Module):
    """Vaswani et al. 2017, section 3.2.2. B batch, T length, S length of what is looked at, D width."""

    num_heads: int
    dtype: Any = jnp.float32
    kernel_init: Callable = lecun_normal  # of query, key and value
    out_init: Callable = lecun_normal

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any = None, context: jax.Array | None = None) -> jax.Array:
        """[B T D] -> [B T D]. Looks at `context` [B S C], or at x itself; `mask` as in ops.attention."""
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got width={width}, num_heads={self.num_heads}")

        def heads(x: jax.Array, name: str) -> jax.Array:  # [B T D] -> [B T H D/H]
            x = Linear(width, dtype=self.dtype, kernel_init=self.kernel_init, name=name)(x)
            return rearrange(x, "b t (h d) -> b t h d", h=self.num_heads)

        context = x if context is None else context
        y = attention.attention(heads(x, "query"), heads(context, "key"), heads(context, "value"), mask=mask)
        y = rearrange(y, "b t h d -> b t (h d)")
        return Linear(width, dtype=self.dtype, kernel_init=self.out_init, name="out")(y)
