"""A dense layer on the last axis, with one 2-D kernel (in, out)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.ops import sharding

lecun_normal = nn.initializers.lecun_normal()
torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # of torch.nn.Linear and Conv2d


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[... in], [in out] -> [... out]."""
    # On CPU the gradient of a batched product is 3 x slower than that of the same product on a 2-D view.
    # Where the length is split over the mesh, the 2-D view would gather it first.
    if x.ndim == 2 or sharding.shards(sharding.SEQUENCE) > 1:
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nn.Module):
    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32  # of the product; parameters are float32
    kernel_init: Callable = lecun_normal
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... in] -> [... features]
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        x = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            x = x + self.param("bias", self.bias_init, (self.features,)).astype(self.dtype)
        return x
