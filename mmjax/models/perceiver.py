"""Perceiver Resampler and Query2Label: two more ways in which learned queries read a picture.

Flamingo (Alayrac et al. 2022, arXiv:2204.14198, section 3.1 and figures 4 and 5) makes a fixed number of tokens of any
number of frames, and lets words look at them through gates that start shut; where the paper is silent, open_flamingo's
helpers.py speaks:

    media [B M F V D] + times -> [B M F*V D] <-- latents [K D], L x (attention, feed-forward), norm --> [B M K D]
    words [B T W] + tanh(gate) * attention(words, latents of the picture before them) + tanh(gate) * feed-forward

Query2Label (Liu et al. 2021, arXiv:2107.10834, section 3) asks a picture for each label: the queries are labels.

    features [B h w C] -> [B S D] -encoder-> <-- labels [N D] ask in L x (attention, feed-forward) --> logits [B N]

B batch, M pictures or clips of a row, F frames, V tokens of a frame, K latents, D width, T words, W their width,
C channels, S = h * w places, N labels.

Differs from the originals: no dropout on attention weights, which fused attention never holds.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import placed
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import attention

normal = nn.initializers.normal(1.0)  # of latents and times
xavier = nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """The defaults are open_flamingo's."""

    width: int = 1024  # D
    latents: int = 64  # K
    depth: int = 6  # L
    num_heads: int = 8
    head_dim: int = 64
    hidden: int = 4096  # of the feed-forward, 4 D
    frames: int | None = None  # most frames that are told apart; None: none are
    media: int | None = None  # most pictures of a row that are told apart; None: none are
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "ResamplerConfig":
        return cls(16, 4, 2, num_heads=2, head_dim=8, hidden=32)


class FeedForward(nn.Module):
    """norm, up, GELU, down, without biases."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... D]
        width, x = x.shape[-1], LayerNorm(dtype=self.dtype, name="norm")(x)
        x = gelu(Linear(self.hidden, False, self.dtype, name="up")(x))
        return Linear(width, False, self.dtype, name="down")(x)


class ResamplerBlock(nn.Module):
    """Latents look at the media and at themselves; each side has a norm of its own."""

    config: ResamplerConfig

    @nn.compact
    def __call__(self, latents: jax.Array, media: jax.Array) -> jax.Array:  # [B K D], [B S D] -> [B K D]
        c, dtype = self.config, self.config.compute.dtype
        query = LayerNorm(dtype=dtype, name="latent_norm")(latents)
        context = jnp.concatenate([LayerNorm(dtype=dtype, name="media_norm")(media), query], axis=1)
        look = Attention(c.num_heads, dtype, head_dim=c.head_dim, use_bias=False, name="attention")
        latents = placed(latents + look(query, context=context))
        return placed(latents + FeedForward(c.hidden, dtype, name="mlp")(latents))


class PerceiverResampler(nn.Module):
    config: ResamplerConfig

    @nn.compact
    def __call__(self, media: jax.Array) -> jax.Array:
        """[B M F V D] -> [B M K D]."""
        c, dtype = self.config, self.config.compute.dtype
        if media.ndim != 5 or media.shape[-1] != c.width:
            raise ValueError(f"media must be [B M F V {c.width}], got {list(media.shape)}")
        rows, count, frames = media.shape[:3]
        for name, most, found in (("frames", c.frames, frames), ("media", c.media, count)):
            if most is not None and found > most:
                raise ValueError(f"config.{name} is {most}, got {found}")
        media = media.astype(dtype)
        if c.frames is not None:
            times = self.param("frame_embed", normal, (c.frames, c.width))[:frames]
            media = media + rearrange(times, "f d -> f 1 d").astype(dtype)
        if c.media is not None:
            times = self.param("media_embed", normal, (c.media, c.width))[:count]
            media = media + rearrange(times, "m d -> m 1 1 d").astype(dtype)
        media = rearrange(media, "b m f v d -> (b m) (f v) d")
        latents = self.param("latents", normal, (c.latents, c.width)).astype(dtype)
        latents = jnp.broadcast_to(latents, (rows * count, *latents.shape))
        latents, _ = Stack(partial(ResamplerBlock, c), c.depth, c.compute, name="layers")(latents, media)
        return rearrange(LayerNorm(dtype=dtype, name="norm")(latents), "(b m) k d -> b m k d", b=rows)


def media_times(at: jax.Array) -> jax.Array:  # [B T] bool -> [B T] int
    """Which picture each word follows, counted from 1; 0 before the first. at: where a picture's token stands. For
    words that come later, when all pictures are read: at.sum(1, keepdims=True)."""
    return jnp.cumsum(at, axis=1)


class GatedCrossAttention(nn.Module):
    """What stands between blocks of a frozen language model; with its gates at 0 it changes nothing."""

    num_heads: int = 8
    head_dim: int = 64
    hidden: int = 4096  # 4 W
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, words: jax.Array, media: jax.Array, times: jax.Array) -> jax.Array:
        """words [B T W]; media [B M K D], what the resampler gave; times [B T] int, as `media_times` -> [B T W].

        A word looks at the picture that it follows, and at no other; one that follows none gets nothing of them.
        """
        gate = lambda name: jnp.tanh(self.param(name, nn.initializers.zeros, ())).astype(self.dtype)  # noqa: E731
        number = jnp.repeat(jnp.arange(1, media.shape[1] + 1), media.shape[2])  # [M*K]
        mask = rearrange(times, "b t -> b 1 t 1") == number
        look = Attention(self.num_heads, self.dtype, head_dim=self.head_dim, use_bias=False, name="attention")
        query = LayerNorm(dtype=self.dtype, name="norm")(words)
        y = look(query, mask, context=rearrange(media, "b m k d -> b (m k) d").astype(self.dtype))
        words = words + y * gate("attention_gate")
        return words + FeedForward(self.hidden, self.dtype, name="mlp")(words) * gate("mlp_gate")


@dataclasses.dataclass(frozen=True)
class Query2LabelConfig:
    """The defaults are the authors' for COCO, after a ResNet-101."""

    labels: int = 80  # N
    width: int = 2048  # D
    encoder_depth: int = 1
    depth: int = 2  # L
    num_heads: int = 4
    hidden: int = 8192
    projected: bool = False  # whether features need a layer to become D wide
    dropout: float = 0.1
    gamma_positive: float = 0.0  # how much less a label counts that is right already: Ridnik et al. 2020, eq. 4
    gamma_negative: float = 2.0
    margin: float = 0.0  # chance of a wrong label up to which it does not count: the same, eq. 5
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "Query2LabelConfig":
        return cls(5, 16, num_heads=2, hidden=32, dropout=0.0)


def grid_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Sines and cosines of the row (first half) and of the column, both from 0 to 2 pi -> [rows * columns, D]: Carion
    et al. 2020, arXiv:2005.12872, as normalised there."""
    half = width // 2
    wave = 10_000.0 ** (2 * (np.arange(half) // 2) / half)

    def along(count: int) -> np.ndarray:  # [count, D/2]
        angle = (np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi)[:, None] / wave
        return rearrange([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], "k n d -> n (d k)")

    y, x = along(rows)[:, None], along(columns)[None]
    grid = np.concatenate([np.broadcast_to(one, (rows, columns, half)) for one in (y, x)], axis=-1)
    return rearrange(grid, "h w d -> (h w) d").astype(np.float32)


class Look(nn.Module):
    """Attention whose keys know where they are and whose values do not."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:  # [B T D], [B S D] x 2
        def heads(x: jax.Array, name: str) -> jax.Array:
            x = Linear(x.shape[-1], True, self.dtype, xavier, name=name)(x)
            return rearrange(x, "b t (h d) -> b t h d", h=self.num_heads)

        y = attention.attention(heads(query, "query"), heads(key, "key"), heads(value, "value"))
        return Linear(query.shape[-1], True, self.dtype, xavier, name="out")(rearrange(y, "b t h d -> b t (h d)"))


class LabelBlock(nn.Module):
    """norm(x + look), norm(x + mlp), for the encoder (the picture looks at itself) and for the labels, which do not."""

    config: Query2LabelConfig
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, asking: jax.Array, picture: jax.Array | None, places: jax.Array) -> jax.Array:
        """x [B T D], asking [T D] what is added to it as a query; picture [B S D], None: x itself; places [S D]."""
        c, dtype = self.config, self.config.compute.dtype
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        seen = x if picture is None else picture
        y = Look(c.num_heads, dtype, name="attention")(x + asking, seen + places, seen)
        x = LayerNorm(dtype=dtype, name="norm1")(placed(x + drop(y)))
        mlp = MLP(c.hidden, lambda x: drop(jax.nn.relu(x)), dtype, xavier, xavier, name="mlp")
        return LayerNorm(dtype=dtype, name="norm2")(placed(x + drop(mlp(x))))


class LabelBlocks(nn.Module):
    config: Query2LabelConfig
    depth: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *args: jax.Array | None) -> jax.Array:  # as LabelBlock's
        block = partial(LabelBlock, self.config, self.dropout)
        return Stack(block, self.depth, self.config.compute, name="layers")(x, *args)[0]


class Query2Label(nn.Module):
    config: Query2LabelConfig

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """[B h w C], the last map of what sees -> logits [B N] of each label's chance."""
        c, dtype, dropout = self.config, self.config.compute.dtype, self.config.dropout if train else 0.0
        if not c.projected and features.shape[-1] != c.width:
            raise ValueError(f"features must be {c.width} wide, got {list(features.shape)}; or set projected=True")
        places = jnp.asarray(grid_positions(*features.shape[1:3], c.width), dtype)
        picture = rearrange(features.astype(dtype), "b h w c -> b (h w) c")
        if c.projected:
            picture = Linear(c.width, True, dtype, name="projection")(picture)
        if c.encoder_depth:
            picture = LabelBlocks(c, c.encoder_depth, dropout, name="encoder")(picture, places, None, places)
        labels = self.param("labels", normal, (c.labels, c.width)).astype(dtype)
        nothing = jnp.zeros((len(picture), c.labels, c.width), dtype)
        x = LabelBlocks(c, c.depth, dropout, name="decoder")(nothing, labels, picture, places)
        x = LayerNorm(dtype=jnp.float32, name="norm")(x)
        bound = partial(jax.random.uniform, minval=-(c.width**-0.5), maxval=c.width**-0.5)
        kernel = self.param("kernel", lambda key, shape: bound(key, shape), (c.labels, c.width))
        return jnp.einsum("bnd,nd->bn", x, kernel) + self.param(
            "bias", lambda key, shape: bound(key, shape), (c.labels,)
        )


def asymmetric_loss(
    logits: jax.Array, labels: jax.Array, positive: float, negative: float, margin: float, epsilon: float = 1e-5
) -> jax.Array:
    """Ridnik et al. 2020, arXiv:2009.14119, eqs. 4-7: logits [...], labels [...] 0 or 1 -> [...]."""
    labels = labels.astype(jnp.float32)
    chance = jax.nn.sigmoid(logits.astype(jnp.float32))
    against = jnp.minimum(1 - chance + margin, 1)
    right = labels * jnp.log(jnp.maximum(chance, epsilon)) + (1 - labels) * jnp.log(jnp.maximum(against, epsilon))
    missed = 1 - chance * labels - against * (1 - labels)
    return -right * missed ** (positive * labels + negative * (1 - labels))


SCALE = 1000.0  # of the authors' loss


def loss(model: Query2Label, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """batch: features [B h w C], labels [B N] 0 or 1."""
    c = model.config
    logits = model.apply(variables, batch["features"], train=True, rngs={"dropout": rng})
    each = asymmetric_loss(logits, batch["labels"], c.gamma_positive, c.gamma_negative, c.margin)
    value = SCALE * each.mean()
    return value, Aux({"loss": value}, weight=jnp.float32(len(logits)))
