"""Norms over the last axis. Statistics are float32 and two-pass: E[x^2] - E[x]^2 loses the digits that eps keeps."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class LayerNorm(nn.Module):
    """Ba et al. 2016, arXiv:1607.06450, eq. 4."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32  # of the result

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... D]
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4. As in LLaMA, `dtype` is reached before the scale multiplies."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32  # of the result

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... D]
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return x.astype(self.dtype) * scale.astype(self.dtype)
