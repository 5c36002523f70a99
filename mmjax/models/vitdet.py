"""ViTDet: a plain ViT for large pictures; most layers look at windows of them, a few at everything.

Source: Li et al. 2022, arXiv:2203.16527, section 3, as the image encoder of SAM has it (Kirillov et al. 2023,
arXiv:2304.02643, section 3; facebookresearch/segment-anything, image_encoder.py). Positions between patches: Li et al.
2022, arXiv:2112.01526, eq. 4.

    images [B H H 3] -patches, positions-> [B S*S D] -layers, in windows or of all-> [B S S D] -neck-> [B S S C]

B pictures, H pixels along a side, S patches along a side, D width, C width of what comes out, E width of a head.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn

from mmjax.models import vit
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.mlp import MLP, gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import attention

zeros = nn.initializers.zeros


class Run(NamedTuple):
    """Neighbouring layers that are alike."""

    first: int  # layer
    depth: int
    window: int | None  # None: all patches look at all


@dataclasses.dataclass(frozen=True)
class ViTDetConfig:
    """The image encoder; the defaults are ViT-B."""

    image_size: int = 1024  # H
    patch_size: int = 16
    width: int = 768  # D
    depth: int = 12
    num_heads: int = 12
    hidden: int = 3072  # of the MLP
    window: int = 14  # patches along a side of what a layer looks at
    global_layers: tuple[int, ...] = (2, 5, 8, 11)  # those that look at everything
    epsilon: float = 1e-6  # of the norms
    drop_path: float = 0.0  # of the last layer, rising from 0: share of pictures that a branch is left out for

    def __post_init__(self):
        if self.image_size % self.patch_size or self.width % self.num_heads:
            raise ValueError(f"image_size must be a multiple of patch_size, and width of num_heads, got {self}")
        if any(not 0 <= layer < self.depth for layer in self.global_layers):
            raise ValueError(f"global_layers must be in [0, {self.depth}), got {self.global_layers}")

    @property
    def grid(self) -> int:  # S
        return self.image_size // self.patch_size

    @property
    def runs(self) -> tuple[Run, ...]:
        """Each is one stack of layers."""
        runs: list[Run] = []
        for layer in range(self.depth):
            window = None if layer in self.global_layers else self.window
            if runs and runs[-1].window == window:
                runs[-1] = runs[-1]._replace(depth=runs[-1].depth + 1)
            else:
                runs.append(Run(layer, 1, window))
        return tuple(runs)


def into_windows(x: jax.Array, side: int) -> jax.Array:
    """[B h w D] -> [B * windows, side side D], zeros at the right and below where the grid ends within one."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % side), (0, -x.shape[2] % side), (0, 0)))
    return rearrange(x, "b (r h) (c w) d -> (b r c) h w d", h=side, w=side)


def from_windows(x: jax.Array, height: int, width: int) -> jax.Array:
    """[B * windows, side side D] -> [B height width D]."""
    side = x.shape[1]
    x = rearrange(x, "(b r c) h w d -> b (r h) (c w) d", r=-(-height // side), c=-(-width // side))
    return x[:, :height, :width]


def relative_attention(q: jax.Array, k: jax.Array, v: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[B S S H E] three times, tables [2S-1 E] of how far apart query and key are -> [B S S H E].

    The score of query (i, j) and key (u, w) is q.k / sqrt(E) + q.rows[i - u + S - 1] + q.columns[j - w + S - 1]. The
    last two are S numbers of a query each, of which a key picks one; so they are 2S more channels of the query, against
    ones and zeros of the key: any kernel of ops.attention can do this, without an [S^4] bias in memory.
    """
    side, heads, width = q.shape[1], q.shape[3], q.shape[4]
    apart = np.arange(side)[:, None] - np.arange(side) + side - 1
    by_row = jnp.einsum("bijhe,iue->bijhu", q, rows[apart].astype(q.dtype))
    by_column = jnp.einsum("bijhe,jwe->bijhw", q, columns[apart].astype(q.dtype))
    place = np.eye(side, dtype=np.float32)
    place = np.concatenate(
        [repeat(place, "i u -> i j u", j=side), repeat(place, "j w -> i j w", i=side)], -1
    )  # [S S 2S]
    place = jnp.broadcast_to(place[:, :, None].astype(q.dtype), (q.shape[0], side, side, heads, 2 * side))
    q = jnp.concatenate([q * width**-0.5, by_row, by_column], -1)
    k = jnp.concatenate([k, place], -1)
    wide = q.shape[-1] + -q.shape[-1] % 8  # cuDNN takes multiples of 8
    q, k, v = (
        rearrange(jnp.pad(x, ((0, 0),) * 4 + ((0, wide - x.shape[-1]),)), "b i j h e -> b (i j) h e") for x in (q, k, v)
    )
    y = attention.attention(q, k, v, scale=1.0)[..., :width]
    return rearrange(y, "b (i j) h e -> b i j h e", i=side)


class RelativeAttention(nn.Module):
    """Of a grid [B S*S D], in windows or of all."""

    num_heads: int
    grid: int  # S
    window: int | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B S*S D] -> the same
        width, side = x.shape[-1], self.window or self.grid
        # Patches that only fill up a window are looked at too, as in the original.
        x = into_windows(rearrange(x, "b (i j) d -> b i j d", i=self.grid), side)

        def linear(x: jax.Array, name: str) -> jax.Array:
            return Linear(width, dtype=self.dtype, kernel_init=torch_linear, name=name)(x)

        q, k, v = (
            rearrange(linear(x, name), "b i j (h e) -> b i j h e", h=self.num_heads)
            for name in ("query", "key", "value")
        )
        tables = (self.param(name, zeros, (2 * side - 1, q.shape[-1])) for name in ("rel_pos_h", "rel_pos_w"))
        y = linear(rearrange(relative_attention(q, k, v, *tables), "b i j h e -> b i j (h e)"), "out")
        return rearrange(from_windows(y, self.grid, self.grid), "b i j d -> b (i j) d")


class Layers(nn.Module):
    """A run."""

    block: Callable[[], nn.Module]
    depth: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array | None) -> jax.Array:
        return Stack(self.block, self.depth, self.compute, name="layers")(x, each=kept)[0]


class ViTDet(nn.Module):
    """ViTDet's plain ViT: most layers look at windows; then a neck of two convolutions."""

    config: ViTDetConfig
    dim: int  # C
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """[B H H 3] float -> [B S S C]. In training with drop_path, random numbers are the stream "drop_path"."""
        c, dtype = self.config, self.compute.dtype
        if images.ndim != 4 or images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(
                f"images must be [B {c.image_size} {c.image_size} 3], got {list(images.shape)}; for pictures of other "
                "shapes see ops.images.fit_longest_side"
            )
        embed = vit.PatchEmbed(c.width, c.patch_size, dtype=dtype, kernel_init=torch_linear, name="patch_embed")
        positions = self.param("pos_embed", zeros, (c.grid, c.grid, c.width))
        x = embed(images) + rearrange(positions, "i j d -> (i j) d").astype(dtype)
        dropping = train and c.drop_path > 0
        kept = vit.drop_linear(self.make_rng("drop_path"), c.drop_path, c.depth, x.shape[0]) if dropping else None
        norm = partial(LayerNorm, c.epsilon, dtype)
        mlp = partial(MLP, c.hidden, gelu, dtype, torch_linear, torch_linear)
        for i, run in enumerate(c.runs):
            inner = partial(RelativeAttention, c.num_heads, c.grid, run.window, dtype)
            layers = Layers(partial(vit.Block, inner, mlp, norm), run.depth, self.compute, name=f"run{i}")
            x = layers(x, None if kept is None else kept[run.first : run.first + run.depth])
        x = rearrange(x, "b (i j) d -> b i j d", i=c.grid)
        x = LayerNorm(1e-6, dtype, name="neck_norm1")(Linear(self.dim, False, dtype, torch_linear, name="neck1")(x))
        x = nn.Conv(self.dim, (3, 3), use_bias=False, dtype=dtype, kernel_init=torch_linear, name="neck_conv2")(x)
        return LayerNorm(1e-6, dtype, name="neck_norm2")(x)
