"""ViT: an image is a sequence of patches.

Source: Dosovitskiy et al. 2021, arXiv:2010.11929, eqs. 1-4; initial values from google-research/big_vision.
The optional convolutional stem is Xiao et al. 2021, arXiv:2106.14881.

    images [B H W 3] -stem-> [B h w C] -patches-> [B N D] + class token + positions -> blocks -> norm -> [B N+1 D]

B batch, H W pixels, N patches in rows from the top left, D width, L layers.
Images are float and already normalised, channels last.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.linear import lecun_normal, matmul
from mmjax.nn.mlp import MLP, gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import Compute, Stack

xavier_uniform = nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes; the defaults are ViT-B/16, table 1."""

    image_size: int = 224  # pixels along a side
    patch_size: int = 16  # pixels along a side, strides of the stem included
    width: int = 768  # D
    depth: int = 12  # L
    num_heads: int = 12
    hidden: int = 3072  # of the MLP
    activation: Callable = gelu
    epsilon: float = 1e-6  # of the norms
    stem: tuple[int, ...] = ()  # channels of the stride-2 convolutions before the patches

    def __post_init__(self):
        if self.image_size % self.patch_size or self.patch_size % 2 ** len(self.stem):
            raise ValueError(
                f"image_size must be a multiple of patch_size, and patch_size of 2 for each of the {len(self.stem)} "
                f"stem layers, got image_size={self.image_size}, patch_size={self.patch_size}"
            )

    @property
    def num_patches(self) -> int:  # N
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def tiny(cls) -> "ViTConfig":
        return cls(image_size=32, patch_size=8, width=16, depth=2, num_heads=2, hidden=32)


@struct.dataclass
class ViTOutput:
    last_hidden_state: jax.Array  # [B N+1 D], the class token first
    pooler_output: jax.Array  # [B D] the normed class token
    hidden_states: jax.Array | None  # [L B N+1 D] after each block, where asked for with collect=True


class Stem(nn.Module):
    """Stride-2 3x3 convolutions, each with a norm (over channels, where the paper's is over the batch) and a ReLU."""

    channels: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [B H W C] -> [B H/2^n W/2^n channels[-1]]
        x = images
        for i, channels in enumerate(self.channels):
            x = nn.Conv(channels, (3, 3), (2, 2), use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(LayerNorm(dtype=self.dtype, name=f"norm{i}")(x))
        return x


class PatchEmbed(nn.Module):
    """Eq. 1's E: a convolution whose stride is its kernel, done as the matrix product that it is."""

    width: int
    size: int  # of the patch, in pixels of its input
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = lecun_normal
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B H W C] -> [B N width]
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.width))
        x = rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=self.size, q=self.size)
        x = matmul(x.astype(self.dtype), rearrange(kernel, "p q c d -> (p q c) d").astype(self.dtype))
        if self.use_bias:
            x = x + self.param("bias", self.bias_init, (self.width,)).astype(self.dtype)
        return x


def check_images(config: ViTConfig, images: jax.Array) -> None:
    side = config.image_size
    if images.shape[1:] != (side, side, 3):
        raise ValueError(f"images must be [B {side} {side} 3], got {list(images.shape)}")


def with_class_token(class_embed: jax.Array, patches: jax.Array) -> jax.Array:  # [D], [B N D] -> [B N+1 D]
    token = jnp.broadcast_to(class_embed.astype(patches.dtype), (patches.shape[0], 1, patches.shape[-1]))
    return jnp.concatenate([token, patches], axis=1)


class ViT(nn.Module):
    config: ViTConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, images: jax.Array, *, collect: bool = False) -> ViTOutput:  # [B H W 3]
        c, dtype = self.config, self.compute.dtype
        check_images(c, images)
        x = Stem(c.stem, dtype, name="stem")(images)
        x = PatchEmbed(c.width, c.patch_size // 2 ** len(c.stem), dtype=dtype, name="patch_embed")(x)
        x = with_class_token(self.param("class_embed", nn.initializers.zeros, (c.width,)), x)
        position = nn.initializers.normal(c.width**-0.5)
        x = x + self.param("pos_embed", position, (c.num_patches + 1, c.width)).astype(dtype)

        norm = partial(LayerNorm, c.epsilon, dtype)
        attention = partial(Attention, c.num_heads, dtype, xavier_uniform, xavier_uniform)
        tiny_bias = nn.initializers.normal(1e-6)
        mlp = partial(MLP, c.hidden, c.activation, dtype, xavier_uniform, xavier_uniform, tiny_bias, tiny_bias)
        block = partial(PreNormBlock, attention, mlp, norm)
        x, hidden = Stack(block, c.depth, self.compute, name="layers")(x, collect=collect)
        x = norm(name="norm")(x)
        return ViTOutput(x, x[:, 0], hidden)
