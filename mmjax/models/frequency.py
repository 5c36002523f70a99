"""Frequencies as tokens: a picture is said from its mean to its finest detail, band by band, and each prefix of the
bands is a picture already, only blurred.

Source: no paper holds this system. Near it: Nash et al. 2021, arXiv:2103.03841 (DCTransformer); Tian et al. 2024,
arXiv:2404.02905 (VAR: all tokens of a scale at once, under a block-causal mask); Li et al. 2024, arXiv:2406.11838
(MAR: the loss of tokens that are no codes).

    images [B H W C] -frequency_tokenizer.py-> tokens [B L m] in K bands
    [condition; for each band what is known of the one before] + places -blocks, block-causal-> z [B L W]
    head: z -> tokens

B pictures, H W pixels, C channels, L tokens, m numbers in a token, K bands, W width, Q the largest code.

Tokens of a band are said together, each by its own place, from what stands in the input of this band and of those
below. There stand the tokens of the band before, spread over the places in order. So each number of a picture comes in
once, whitened, by the projection of its own group of frequencies. To embed the partial picture in their place would be
linear in the same numbers, yet press all of them into one vector of W.

Heads: Scalars, the cross entropy of each number as one of 2 Q + 1 codes, together the exact likelihood of the rounded
picture; Denoised, MAR's diffusion of each token. Numbers of one token are said independently by Scalars, jointly by
Denoised.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmjax.models import frequency_tokenizer
from mmjax.models.autoregressive import AS_LEARNED, Blocks, Latents
from mmjax.models.frequency_tokenizer import TokenizerConfig
from mmjax.models.mar import rising
from mmjax.nn.cache import NOTHING, KVCache
from mmjax.nn.embeddings import Labels
from mmjax.nn.linear import Linear
from mmjax.nn.outputs import Aux
from mmjax.nn.sampling import Sampling, filtered
from mmjax.nn.stack import Compute
from mmjax.ops import diffusion, masks
from mmjax.ops.cross_entropy import softmax_cross_entropy

normal = nn.initializers.normal(0.02)
each_xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=(0,))


# --- heads: values of deviation 1 to tokens, and how these are read, scored and drawn; grain [L m]: a step among values


class Scalars(nn.Module):
    """Each number is one of 2 Q + 1 steps: tokens [B L m] int in [-Q, Q]. At first all are equally likely."""

    config: "FrequencyConfig"

    def setup(self):
        c = self.config.tokenizer
        self.out = Linear(c.features * (2 * c.clip + 1), True, kernel_init=nn.initializers.zeros)

    def tokens(self, values: jax.Array, grain: jax.Array) -> jax.Array:
        return frequency_tokenizer.rounded(values, grain, self.config.tokenizer.clip)

    def values(self, tokens: jax.Array, grain: jax.Array) -> jax.Array:
        return tokens * grain

    def inputs(self, tokens: jax.Array, grain: jax.Array) -> jax.Array:
        # Where a step is many deviations, a code other than 0 would be a huge value.
        return tokens * jnp.minimum(grain, 1.0)

    def logits(self, z: jax.Array) -> jax.Array:  # [... W] -> [... m 2Q+1]
        return rearrange(self.out(z), "... (m v) -> ... m v", m=self.config.tokenizer.features)

    def losses(self, z: jax.Array, tokens: jax.Array, rng: jax.Array) -> jax.Array:  # -> [B L m] nats
        return softmax_cross_entropy(self.logits(z), tokens + self.config.tokenizer.clip)

    def draw(self, z: jax.Array, free: jax.Array | None, guidance: Any, rng: jax.Array, how: Sampling) -> jax.Array:
        """z [B k W], free the same without the condition, or None -> tokens [B k m]."""
        logits = self.logits(z) if free is None else diffusion.guided(self.logits(z), self.logits(free), guidance)
        flat = rearrange(logits, "b k m v -> (b k m) v")
        flat = filtered(flat, jnp.zeros((flat.shape[0], 0), bool), how)
        drawn = jnp.argmax(flat, axis=-1) if how.temperature == 0 else jax.random.categorical(rng, flat)
        return drawn.reshape(logits.shape[:-1]).astype(jnp.int32) - self.config.tokenizer.clip


class Denoised(nn.Module):
    """Tokens are the values themselves [B L m], each token by a diffusion of its own."""

    config: "FrequencyConfig"
    head_width: int = 256
    head_depth: int = 3
    repeats: int = 4  # noises for each token of a batch
    noise_steps: int = 100  # in drawing

    def setup(self):
        sizes = (self.config.tokenizer.features, self.config.width, self.head_width, self.head_depth)
        self.latents = Latents(*sizes, self.repeats, self.noise_steps)

    def tokens(self, values: jax.Array, grain: jax.Array) -> jax.Array:
        return values

    values = inputs = tokens

    def losses(self, z: jax.Array, tokens: jax.Array, rng: jax.Array) -> jax.Array:  # -> [B L m]
        t_rng, noise_rng = jax.random.split(rng)
        shape = (self.repeats, *tokens.shape)
        t = jax.random.randint(t_rng, shape[:-1], 0, len(diffusion.cosine_betas()))
        return self.losses_at(z, tokens, t, jax.random.normal(noise_rng, shape))

    def losses_at(self, z: jax.Array, tokens: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
        """At steps t [R B L] with noise [R B L m]. MAR's loss of each number by itself, as some do not count."""
        chain, tokens = diffusion.chain(diffusion.cosine_betas()), jnp.broadcast_to(tokens, noise.shape)
        output = self.latents.net(diffusion.noised(chain, tokens, noise, t), t, z)
        each = rearrange(output, "... (two m) -> ... m two", two=2)
        t = jnp.broadcast_to(t[..., None], noise.shape)
        return sum(x.mean(0) for x in diffusion.hybrid_loss(chain, each, tokens[..., None], noise[..., None], t))

    def draw(self, *args: Any) -> jax.Array:
        """As Scalars'; of `how` only the temperature counts."""
        return self.latents.draw(*args)


# --- the model


@dataclasses.dataclass(frozen=True)
class FrequencyConfig:
    tokenizer: TokenizerConfig = TokenizerConfig()
    head: Callable[["FrequencyConfig"], nn.Module] = Scalars  # or Denoised
    width: int = 256  # W
    depth: int = 8
    num_heads: int = 8
    hidden: int = 1024
    condition: Callable[..., nn.Module] = partial(Labels, (1000,))  # given width; as of models/autoregressive.py
    modulated: bool = False  # tells every block the condition too
    drop: float = 0.1  # share of the conditions that training leaves out, for guidance

    @classmethod
    def tiny(cls, **changes: Any) -> "FrequencyConfig":
        sizes = {"tokenizer": TokenizerConfig.tiny(), "condition": partial(Labels, (4,)), "hidden": 32}
        return cls(**{**sizes, "width": 16, "depth": 2, "num_heads": 2, **changes})

    @property
    def scores(self) -> bool:
        """Whether the loss is a likelihood."""
        return isinstance(self.head(self), Scalars)


def spread(tokens: int, places: int) -> np.ndarray:
    """[places tokens] of 0 and 1: which tokens of a band stand at each place of the next. With more places, tokens
    stand at several; with fewer, places hold several."""
    longer = np.arange(max(places, tokens))
    found = np.zeros((places, tokens), np.float32)
    found[longer * places // len(longer), longer * tokens // len(longer)] = 1
    return found


class Frequency(nn.Module):
    """Variables: "params", and "statistics" as of `frequency_tokenizer.fit`, which is to be called: `init` has mean 0
    and deviation 1."""

    config: FrequencyConfig
    compute: Compute = Compute()

    def setup(self):
        c, t = self.config, self.config.tokenizer
        shape, table = (t.block_numbers, t.channels), lambda name, rows: self.param(name, normal, (rows, c.width))
        begin = {
            "mean": (jnp.zeros, shape),
            "deviation": (jnp.ones, shape),
            "step": (jnp.asarray, t.steps, jnp.float32),
        }
        found = {name: self.variable("statistics", name, *x).value for name, x in begin.items()}
        self.statistics = frequency_tokenizer.checked(found)
        self.projection = self.param("projection", each_xavier, (len(t.groups), t.features, c.width))
        self.pos, self.band_embed = table("pos", t.tokens), table("band_embed", len(t.layout.sizes))
        self.condition, self.reader = c.condition(width=c.width), Blocks(c, self.compute)
        self.head = c.head(c)

    def grain(self) -> jax.Array:
        return frequency_tokenizer.grain(self.config.tokenizer, self.statistics)

    def tokens(self, images: jax.Array) -> jax.Array:
        """[B H W C] -> [B L m], int or float32 as the head has them; 0 where there is no number."""
        return self.head.tokens(
            frequency_tokenizer.values(self.config.tokenizer, self.statistics, images), self.grain()
        )

    def pictures(self, tokens: jax.Array, bands: int | None = None) -> jax.Array:
        """[B L m] -> [B H W C] float32, about in [-1, 1]; of the first `bands` bands alone, 0 being all others."""
        values = self.head.values(tokens, self.grain())
        return frequency_tokenizer.pictures(self.config.tokenizer, self.statistics, values, bands)

    def __call__(self, images: jax.Array, label: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """images [B H W C], label as `condition` reads it, rng for the noise of Denoised -> the loss of each number
        [B L m], 0 where there is none."""
        tokens = self.tokens(images)
        rng = jax.random.key(0) if rng is None else rng
        return jnp.where(self.config.tokenizer.live, self.head.losses(self.states(tokens, label), tokens, rng), 0)

    def told(self, label: jax.Array) -> jax.Array:
        """[B T W], what stands before the tokens."""
        told = self.condition(label)
        return told if told.ndim == 3 else told[:, None]

    def states(self, tokens: jax.Array, label: jax.Array) -> jax.Array:
        """z [B L W]: what is known of each token, from tokens of earlier bands."""
        told, sizes = self.told(label), self.config.tokenizer.layout.sizes
        x = jnp.concatenate([told, *(self.asked(tokens, band) for band in range(len(sizes)))], axis=1)
        return self.reader(x, told, masks.BlockCausal((told.shape[1], *sizes)))[0][:, told.shape[1] :]

    def asked(self, tokens: jax.Array, band: int) -> jax.Array:
        """What stands in the input at the places of a band [B k W], of tokens [B L m] or as many as are known."""
        layout = self.config.tokenizer.layout
        first, start, end = (int(x) for x in layout.ends[[max(band - 1, 0), band, band + 1]])
        x = self.pos[start:end] + self.band_embed[band]
        if not band:
            return jnp.broadcast_to(x, (tokens.shape[0], *x.shape))
        read = self.head.inputs(tokens[:, first:start], self.grain()[first:start])
        read = jnp.einsum("btm,tmw->btw", read, self.projection[layout.kinds[first:start]])
        return x + jnp.einsum("kt,btw->bkw", spread(layout.sizes[band - 1], end - start), read)

    def extend(self, tokens: jax.Array, told: jax.Array, cache: KVCache, band: int) -> tuple[jax.Array, KVCache]:
        """z [B k W] of a band, from the tokens of the earlier ones, whose keys the cache holds."""
        x = self.asked(tokens, band)
        places = x.shape[1]
        x = x if band else jnp.concatenate([told, x], axis=1)
        _, mask, cache = cache.open(x.shape[:2])
        # New tokens see each other too, which the cache's own mask would hide.
        mask = (cache.positions != NOTHING)[:, None, None] if band else masks.BlockCausal((told.shape[1], places))
        z, cache = self.reader(x, told, mask, cache)
        return z[:, -places:], cache.close()

    def draw(self, z: jax.Array, free: jax.Array | None, band: int, *args: Any) -> jax.Array:
        """As the heads', the tokens of a band [B k m]."""
        drawn = self.head.draw(z, free, *args)
        start, end = self.config.tokenizer.layout.ends[band : band + 2]
        return jnp.where(self.config.tokenizer.live[start:end], drawn, 0)


# --- training and likelihood


def loss(model: Frequency, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """The mean over tokens, each the mean over its numbers. batch: images [B H W C], label as `condition` reads it."""
    c, label = model.config, batch["label"]
    drop_rng, head_rng = jax.random.split(rng)
    dropped = jax.random.bernoulli(drop_rng, c.drop, label.shape[:1])
    label = jnp.where(dropped.reshape(-1, *[1] * (label.ndim - 1)), -1, label)
    losses = model.apply(variables, batch["images"], label, head_rng)
    value = jnp.mean(losses.sum(-1) / c.tokenizer.live.sum(-1))
    metrics = {"loss": value}
    if c.scores:
        metrics["bits_per_pixel"] = losses.sum((1, 2)).mean() / (math.prod(c.tokenizer.size) * math.log(2))
    return value, Aux(metrics, weight=jnp.float32(losses[..., 0].size))


def bits_per_pixel(model: Frequency, variables: dict, images: jax.Array, label: jax.Array) -> jax.Array:
    """[B] bits that each rounded picture takes, all channels of a pixel together: of Scalars, an exact likelihood."""
    if not model.config.scores:
        raise ValueError("only Scalars say how likely a picture is; the loss of Denoised is no likelihood")
    return model.apply(variables, images, label).sum((1, 2)) / (math.prod(model.config.tokenizer.size) * math.log(2))


# --- drawing


def sample(
    model: Frequency, variables: dict, rng: jax.Array, label: jax.Array, *, guidance: float = 1.0,
    schedule: Callable = rising, sampling: Sampling = AS_LEARNED,
) -> jax.Array:  # fmt: skip
    """label [B ...] as `condition` reads it, -1 for any -> tokens [B L m], band by band, with the keys of those before.
    schedule: how guidance grows (models/mar.py's rising, constant). Jit it with model and what is keyword static."""
    c, t, rows = model.config, model.config.tokenizer, label.shape[0]
    twice = (lambda x, y: jnp.concatenate([x, y])) if guidance != 1 else lambda x, y: x
    told = model.apply(variables, twice(label, jnp.full_like(label, -1)), method="told")
    cache = KVCache.empty(
        c.depth, told.shape[0], told.shape[1] + t.tokens, c.num_heads, c.width // c.num_heads, model.compute.dtype
    )
    tokens = jnp.zeros((rows, 0, t.features))
    for band, key in enumerate(jax.random.split(rng, len(t.layout.sizes))):
        z, cache = model.apply(variables, twice(tokens, tokens), told, cache, band, method="extend")
        scale = schedule(guidance, t.tokens - t.layout.ends[band + 1], t.tokens)
        free = None if guidance == 1 else z[rows:]
        new = model.apply(variables, z[:rows], free, band, scale, key, sampling, method="draw")
        tokens = jnp.concatenate([tokens.astype(new.dtype), new], axis=1)
    return tokens


def progressive(model: Frequency, variables: dict, tokens: jax.Array) -> jax.Array:
    """tokens [B L m] -> [K B H W C], the picture after each band."""
    decode = partial(model.apply, variables, tokens, method="pictures")
    return jnp.stack([decode(bands=band + 1) for band in range(len(model.config.tokenizer.layout.sizes))])
