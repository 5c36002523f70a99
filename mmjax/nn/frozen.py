"""Tokenizers that a generator looks through: pictures -> tokens -> pictures, with weights that stay as they are.

    Codes(VQGAN(...), side=8)       images uint8 [B H W 3] <-> tokens [B N] int, row by row
    Latents(AutoencoderKL(...), 8)  images uint8 [B H W 3] <-> tokens [B N D] of mean 0 and deviation 1

    Colours(side=16)                images uint8 [B H W 3] <-> tokens [B N] int, a colour for each pixel of h x h

The weights are the collection "tokenizer", which init_from brings: Source("vqgan_emoji", to="tokenizer"). The mean and
the deviation of latents are measured once, on the batch that the variables begin with: the collection "latents".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import linen as nn

from mmjax.ops import images as image_ops

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Codes:
    model: nn.Module  # encode: images -> ids [B h w], decode: back to float pictures in [-1, 1]
    side: int  # h = w

    def tokens(self, variables: Variables, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B N] int
        ids = self.model.apply(variables["tokenizer"], images, method="encode")
        return rearrange(ids, "b h w -> b (h w)")

    def images(self, variables: Variables, tokens: jax.Array) -> jax.Array:  # [B N] -> uint8 [B H W 3]
        ids = rearrange(tokens, "b (h w) -> b h w", h=self.side)
        return image_ops.to_uint8(self.model.apply(variables["tokenizer"], ids, method="decode"), 0.5, 0.5)

    def measured(self, variables: Variables, images: jax.Array) -> Variables:
        """Nothing: codes have no scale."""
        return {}


@dataclasses.dataclass(frozen=True)
class Latents:
    model: nn.Module  # encode: images -> latents [B h w D], decode: back to float pictures in [-1, 1]
    side: int  # h = w

    def tokens(self, variables: Variables, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B N D]
        z, known = self.model.apply(variables["tokenizer"], images, method="encode"), variables["latents"]
        return rearrange((z - known["mean"]) / known["std"], "b h w d -> b (h w) d")

    def images(self, variables: Variables, tokens: jax.Array) -> jax.Array:  # [B N D] -> uint8 [B H W 3]
        known = variables["latents"]
        z = rearrange(tokens * known["std"] + known["mean"], "b (h w) d -> b h w d", h=self.side)
        return image_ops.to_uint8(self.model.apply(variables["tokenizer"], z, method="decode"), 0.5, 0.5)

    def measured(self, variables: Variables, images: jax.Array) -> Variables:
        """The collection "latents" of pictures [B H W 3]."""
        z = self.model.apply(variables["tokenizer"], images, method="encode")
        return {"latents": {"mean": z.mean((0, 1, 2)), "std": z.std((0, 1, 2))}}


@dataclasses.dataclass(frozen=True)
class Colours:
    """No weights: the mean colour of each square of pixels, rounded to `levels` of red, of green and of blue. What Chen
    et al. 2020 (Image GPT) begin with, there by a palette of 512."""

    side: int  # h = w
    levels: int = 8

    @property
    def num_codes(self) -> int:
        return self.levels**3

    def tokens(self, variables: Variables, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B N] int
        square = images.shape[1] // self.side
        means = reduce(images.astype(jnp.float32), "b (h p) (w q) c -> b (h w) c", "mean", p=square, q=square)
        levels = jnp.round(means * ((self.levels - 1) / 255)).astype(jnp.int32)
        return (levels * self._weights).sum(-1)

    def images(self, variables: Variables, tokens: jax.Array) -> jax.Array:  # [B N] -> uint8 [B h h 3]
        levels = tokens[..., None] // self._weights % self.levels
        colours = jnp.round(levels * (255 / (self.levels - 1))).astype(jnp.uint8)
        return rearrange(colours, "b (h w) c -> b h w c", h=self.side)

    def measured(self, variables: Variables, images: jax.Array) -> Variables:
        return {}

    @property
    def _weights(self) -> np.ndarray:
        return self.levels ** np.arange(3)[::-1]
