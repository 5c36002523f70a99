"""The two feed-forward layers, and CLIP's activation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.nn.linear import Linear, lecun_normal


def gelu(x: jax.Array) -> jax.Array:
    """Hendrycks and Gimpel 2016, arXiv:1606.08415: x P(N(0, 1) <= x), exact (jax.nn.gelu defaults to the tanh form)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The same paper's tanh form, up to 5e-4 from gelu: Google's BERT, GPT-2 (there: gelu_new)."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The same paper's sigmoid form: x sigmoid(1.702 x); up to 0.02 from gelu."""
    return x * jax.nn.sigmoid(1.702 * x)


class MLP(nn.Module):
    """down(activation(up(x))): Vaswani et al. 2017, eq. 2, with any activation."""

    hidden: int
    activation: Callable = gelu
    dtype: Any = jnp.float32
    up_init: Callable = lecun_normal
    down_init: Callable = lecun_normal
    up_bias_init: Callable = nn.initializers.zeros
    down_bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... D]
        up = Linear(self.hidden, True, self.dtype, self.up_init, self.up_bias_init, name="up")
        down = Linear(x.shape[-1], True, self.dtype, self.down_init, self.down_bias_init, name="down")
        return down(self.activation(up(x)))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)): Shazeer 2020, arXiv:2002.05202, eq. 6, there without biases."""

    hidden: int
    activation: Callable = jax.nn.silu
    dtype: Any = jnp.float32
    kernel_init: Callable = lecun_normal
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... D]
        def linear(features: int, name: str) -> Linear:
            return Linear(features, self.use_bias, self.dtype, self.kernel_init, name=name)

        hidden = self.activation(linear(self.hidden, "gate")(x)) * linear(self.hidden, "up")(x)
        return linear(x.shape[-1], "down")(hidden)
