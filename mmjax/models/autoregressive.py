"""Next tokens of a picture in every way of one figure: raster or random order, causal or bidirectional attention, one
token or a set at a time, codes or continuous tokens.

Source: Li et al. 2024, arXiv:2406.11838, figure 3 and table 1. One plain transformer for all of them, so that what
differs is what the name says; the published network of sets, with encoder and decoder, is mar.py.

    causal          [class; x_1 ... x_{N-1}] + where each is + where the next will be -blocks-> z_1 ... z_N
    bidirectional   [class; x_1 ... x_k; mask ... mask] + where each is               -blocks-> z_1 ... z_N
    head            z_i -> x_i: cross entropy over K codes (Codes), or the loss of a diffusion (Latents)

B batch, N tokens in the order in which they come (path [B N] says where in the picture each stands), W width, k known.
Causal attention learns from all tokens of a picture at once and draws one at a time; bidirectional attention learns
from the N - k that are masked, and may draw many at a time. In a random order a causal network must be told where the
token is that it shall say, which the figure leaves open: here, by a second table of positions added to its input.
Causal networks keep the keys of what is drawn; bidirectional ones read the whole picture again for each set.

Not in the figure: `modulated` also tells each block of the class, as DiT does (models/diffusion.py), and the condition
may be any module that gives one vector or several, such as the words of a caption (Words).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmjax.models import diffusion
from mmjax.models.mar import DiffusionHead, masked_after, masked_count, random_orders
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.cache import KVCache
from mmjax.nn.embeddings import Labels
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.sampling import Sampling, filtered
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import diffusion as diffusion_ops
from mmjax.ops import masks
from mmjax.ops.cross_entropy import softmax_cross_entropy

AS_LEARNED = Sampling(temperature=1.0)
normal, xavier = nn.initializers.normal(0.02), nn.initializers.xavier_uniform()


def raster(rng: jax.Array, batch_size: int, tokens: int) -> jax.Array:
    """[B N] int: row by row from the top left."""
    return jnp.broadcast_to(jnp.arange(tokens), (batch_size, tokens))


shuffled = random_orders


# --- heads: what a token is, how it is read, scored and drawn


class Codes(nn.Module):
    """One of K codes: tokens are int."""

    count: int  # K
    width: int  # W

    def setup(self):
        self.table = self.param("embedding", normal, (self.count, self.width))
        self.out = Linear(self.count, True, kernel_init=xavier)

    def empty(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    def embed(self, tokens: jax.Array) -> jax.Array:  # [B N] -> [B N W]
        return jnp.take(self.table, tokens, axis=0)

    def loss(self, z: jax.Array, tokens: jax.Array, rng: jax.Array) -> jax.Array:  # [B N W], [B N] -> [B N]
        return softmax_cross_entropy(self.out(z), tokens)

    def draw(self, z: jax.Array, free: jax.Array | None, guidance: float, rng: jax.Array, how: Sampling) -> jax.Array:
        """z [B k W], free the same without the class, or None -> tokens [B k]. Temperature 0 takes the likeliest."""
        logits = self.out(z) if free is None else diffusion_ops.guided(self.out(z), self.out(free), guidance)
        flat = filtered(rearrange(logits, "b k v -> (b k) v"), jnp.zeros((logits.shape[0] * logits.shape[1], 0)), how)
        drawn = jnp.argmax(flat, axis=-1) if how.temperature == 0 else jax.random.categorical(rng, flat)
        return drawn.reshape(logits.shape[:2]).astype(jnp.int32)


class Latents(nn.Module):
    """D numbers with any values, by a diffusion of their own: MAR's head."""

    features: int  # D
    width: int  # W
    head_width: int = 1024
    head_depth: int = 3
    repeats: int = 4  # noises for each token of a batch
    noise_steps: int = 100  # in drawing

    def setup(self):
        self.inputs = Linear(self.width, True, kernel_init=xavier)
        self.net = DiffusionHead(self.features, self.head_width, self.head_depth)

    def empty(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*shape, self.features))

    def embed(self, tokens: jax.Array) -> jax.Array:  # [B N D] -> [B N W]
        return self.inputs(tokens)

    def loss(self, z: jax.Array, tokens: jax.Array, rng: jax.Array) -> jax.Array:  # [B N W], [B N D] -> [B N]
        t_rng, noise_rng = jax.random.split(rng)
        chain, shape = diffusion_ops.chain(diffusion_ops.cosine_betas()), (self.repeats, *tokens.shape)
        t, noise = jax.random.randint(t_rng, shape[:-1], 0, len(chain.kept)), jax.random.normal(noise_rng, shape)
        tokens = jnp.broadcast_to(tokens, shape)
        output = self.net(diffusion_ops.noised(chain, tokens, noise, t), t, z)
        return sum(part.mean(0) for part in diffusion_ops.hybrid_loss(chain, output, tokens, noise, t))

    def draw(self, z: jax.Array, free: jax.Array | None, guidance: float, rng: jax.Array, how: Sampling) -> jax.Array:
        """z [B k W], free the same without the class, or None -> tokens [B k D]. Temperature: of each step's noise, the
        one field of `how` that means something here."""
        chain = diffusion_ops.chain(diffusion_ops.cosine_betas(), self.noise_steps)
        shape = (*z.shape[:-1], self.features)
        params = {"params": self.net.variables["params"]}
        net = partial(DiffusionHead(self.features, self.head_width, self.head_depth, parent=None).apply, params)

        def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
            if free is None:
                return net(x, t, z)
            told, untold = net(x, t, z), net(x, t, free)
            noise = diffusion_ops.guided(told, untold, guidance)[..., : self.features]
            return jnp.concatenate([noise, told[..., self.features :]], axis=-1)

        start_rng, step_rng = jax.random.split(rng)
        noise = diffusion_ops.normal_noise(step_rng, shape)
        start = jax.random.normal(start_rng, shape)
        return diffusion_ops.ancestral(chain, denoise, start, noise, temperature=how.temperature)


# --- attention: what of a picture is read for the next tokens


class Blocks(nn.Module):
    """The transformer below all ways, with the norm after its last block."""

    config: "PictureConfig"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, told: jax.Array, mask: Any = None, cache: Any = None) -> tuple[jax.Array, Any]:
        """x [B T W], told [B P W] -> [B T W], and the cache as the layers leave it."""
        c, dtype = self.config, self.compute.dtype
        args, norm = (mask,), partial(LayerNorm, 1e-6, dtype)
        if c.modulated:
            args, block = (told.mean(1, keepdims=True), mask), partial(diffusion.Block, c.num_heads, c.hidden, dtype)
        else:
            attention = partial(Attention, c.num_heads, dtype, xavier, xavier)
            mlp = partial(MLP, c.hidden, dtype=dtype, up_init=xavier, down_init=xavier)
            block = partial(PreNormBlock, attention, mlp, norm)
        x, cache = Stack(block, c.depth, self.compute, name="layers")(x, *args, cache=cache)
        return norm(name="norm")(x), cache


class Causal(nn.Module):
    """Token i is said by those before it."""

    config: "PictureConfig"
    compute: Compute = Compute()

    @staticmethod
    def known(rng: jax.Array, c: "PictureConfig") -> jax.Array:
        """How many tokens training shows without asking for them: none, as each is asked for by its place."""
        return jnp.zeros((), jnp.int32)

    def setup(self):
        tables = (self.config.tokens, self.config.width)
        self.pos, self.next_pos = (self.param(name, normal, tables) for name in ("pos", "next_pos"))
        self.blocks = Blocks(self.config, self.compute)

    def __call__(self, x: jax.Array, path: jax.Array, told: jax.Array, known: jax.Array) -> jax.Array:
        """x [B N W] tokens along path [B N], told [B P W] -> z [B N W]."""
        x = x + jnp.take(self.pos, path, axis=0)
        x = jnp.concatenate([self.led(told, path[:, :1]), x[:, :-1] + jnp.take(self.next_pos, path[:, 1:], axis=0)], 1)
        return self.blocks(x, told, masks.Causal())[0][:, told.shape[1] - 1 :]

    def led(self, told: jax.Array, place: jax.Array) -> jax.Array:
        """What stands before the tokens, [B P W]: its last asks for the token at place [B 1]."""
        return told.at[:, -1:].add(jnp.take(self.next_pos, place, axis=0))

    def begin(self, told: jax.Array, place: jax.Array) -> tuple[jax.Array, KVCache]:
        """z [B W] of the first token, and what is remembered."""
        c, dtype = self.config, self.compute.dtype
        length = told.shape[1] - 1 + c.tokens
        cache = KVCache.empty(
            c.depth, told.shape[0], length + length % 2, c.num_heads, c.width // c.num_heads, dtype
        )  # fmt: skip
        return self._extend(self.led(told, place), told, cache)

    def step(
        self, x: jax.Array, told: jax.Array, here: jax.Array, ahead: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """x [B 1 W], the token at the place here [B 1] -> z [B W] of the token at ahead [B 1]."""
        x = x + jnp.take(self.pos, here, axis=0) + jnp.take(self.next_pos, ahead, axis=0)
        return self._extend(x, told, cache)

    def _extend(self, x: jax.Array, told: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        _, mask, cache = cache.open(x.shape[:2])
        z, cache = self.blocks(x, told, mask, cache)
        return z[:, -1], cache.close()


class Bidirectional(nn.Module):
    """The tokens after the first `known` are said by these."""

    config: "PictureConfig"
    compute: Compute = Compute()

    @staticmethod
    def known(rng: jax.Array, c: "PictureConfig") -> jax.Array:
        """As MAR masks; the rest is shown."""
        return c.tokens - masked_count(rng, c.tokens, c.least_masked)

    @nn.compact
    def __call__(self, x: jax.Array, path: jax.Array, told: jax.Array, known: jax.Array) -> jax.Array:
        """As in Causal."""
        c = self.config
        here, mask = self.param("pos", normal, (c.tokens, c.width)), self.param("mask_embed", normal, (c.width,))
        x = jnp.where((jnp.arange(c.tokens) < known)[:, None], x, mask) + jnp.take(here, path, axis=0)
        x, _ = Blocks(c, self.compute, name="blocks")(jnp.concatenate([told, x], axis=1), told)
        return x[:, told.shape[1] :]


class Words(nn.Module):
    """A condition of words: token ids [B T] int -> [B T W]. -1 stands for no word; a row of these, for no condition."""

    vocab_size: int
    length: int  # T
    width: int  # W

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        words = Labels((self.vocab_size,), self.width, name="words")(ids.reshape(-1, 1))
        return rearrange(words, "(b t) w -> b t w", t=self.length) + self.param(
            "pos", normal, (self.length, self.width)
        )


# --- a picture, from these parts


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """One of the figure's ways; how many tokens are drawn at a time is a choice of `sample`."""

    head: Callable[..., nn.Module]  # Codes or Latents, given width
    read: type = Bidirectional  # or Causal
    order: Callable = shuffled  # or raster
    tokens: int = 256  # N
    width: int = 1024  # W
    depth: int = 32
    num_heads: int = 16
    hidden: int = 4096
    condition: Callable[..., nn.Module] = partial(Labels, (1000,))  # or Words, given width
    modulated: bool = False
    drop: float = 0.1  # share of the classes that training leaves out, for guidance
    least_masked: float = 0.7  # share of the tokens, where attention is bidirectional

    @classmethod
    def tiny(cls, head: Callable[..., nn.Module], **ways: Any) -> "PictureConfig":
        return cls(
            head, tokens=9, width=16, depth=2, num_heads=2, hidden=32, **{"condition": partial(Labels, (3,)), **ways}
        )


class Picture(nn.Module):
    config: PictureConfig
    compute: Compute = Compute()

    def setup(self):
        c = self.config
        self.condition = c.condition(width=c.width)
        self.reader = c.read(c, self.compute)
        self.head = c.head(width=c.width)

    def __call__(
        self, tokens: jax.Array, label: jax.Array, path: jax.Array | None = None, known: jax.Array | int = 0,
        rng: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """The loss of each token [B N], along its path. tokens [B N] int or [B N D] in rows from the top left, label
        as `condition` reads it, path [B N] int, rng for the noise of Latents."""
        path = raster(rng, *tokens.shape[:2]) if path is None else path
        tokens = along(tokens, path)
        rng = jax.random.key(0) if rng is None else rng
        return self.head.loss(self.states(tokens, label, path, known), tokens, rng)

    def states(self, tokens: jax.Array, label: jax.Array, path: jax.Array, known: jax.Array | int) -> jax.Array:
        """z [B N W], from tokens along path."""
        return self.reader(self.head.embed(tokens), path, self.told(label), known)

    def told(self, label: jax.Array) -> jax.Array:
        """[B P W], what stands before a picture."""
        told = self.condition(label)
        return told if told.ndim == 3 else told[:, None]

    def begin(self, told: jax.Array, place: jax.Array) -> tuple[jax.Array, KVCache]:
        """As Causal's."""
        return self.reader.begin(told, place)

    def step(self, token: jax.Array, *args: Any) -> tuple[jax.Array, KVCache]:
        """As Causal's; token [B 1] int or [B 1 D]."""
        return self.reader.step(self.head.embed(token), *args)

    def empty(self, batch_size: int) -> jax.Array:
        return self.head.empty((batch_size, self.config.tokens))

    def draw(self, *args: Any) -> jax.Array:
        """As of the heads."""
        return self.head.draw(*args)


def along(tokens: jax.Array, path: jax.Array) -> jax.Array:
    """tokens [B N ...] of a picture, in the order of path [B N]."""
    return jax.vmap(lambda tokens, path: tokens[path])(jnp.asarray(tokens), jnp.asarray(path))


def loss(model: Picture, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """The mean over the tokens that are asked for. batch: tokens [B N] or [B N D], label as `condition` reads it."""
    c, tokens, label = model.config, batch["tokens"], batch["label"]
    order_rng, known_rng, drop_rng, head_rng = jax.random.split(rng, 4)
    path, known = c.order(order_rng, *tokens.shape[:2]), c.read.known(known_rng, c)
    dropped = jax.random.bernoulli(drop_rng, c.drop, tokens.shape[:1])
    label = jnp.where(dropped.reshape(-1, *[1] * (label.ndim - 1)), -1, label)
    losses = model.apply(variables, tokens, label, path, known, head_rng)
    asked = jnp.arange(c.tokens) >= known
    count = asked.sum() * tokens.shape[0]
    value = jnp.sum(losses * asked) / count
    return value, Aux({"loss": value}, weight=count.astype(jnp.float32))


def sample(
    model: Picture, variables: dict, rng: jax.Array, label: jax.Array, *, steps: int, guidance: float = 1.0,
    sampling: Sampling = AS_LEARNED,
) -> jax.Array:  # fmt: skip
    """label [B ...] as `condition` reads it, -1 for any -> tokens in rows from the top left. steps: as many as tokens,
    or fewer where attention is bidirectional: sets of tokens by MAR's cosine. One scan; jit it with what is keyword
    static."""
    c = model.config
    if c.read is Causal and steps != c.tokens:
        raise ValueError(f"causal attention says one token at a time, so steps must be {c.tokens}, got {steps}")
    order_rng, step_rng = jax.random.split(rng)
    path, rows = c.order(order_rng, label.shape[0], c.tokens), jnp.arange(label.shape[0])[:, None]
    fill = _one_by_one if c.read is Causal else _set_by_set
    tokens = fill(model, variables, jax.random.split(step_rng, steps), label, path, guidance, sampling)
    return tokens.at[rows, path].set(tokens)


def drawn_at(c: PictureConfig, rng: jax.Array, batch_size: int, steps: int) -> jax.Array:
    """[B N] int from 0: at which of its steps `sample` with this rng draws each token, in rows from the top left."""
    path = c.order(jax.random.split(rng)[0], batch_size, c.tokens)
    step = np.searchsorted(c.tokens - masked_after(c.tokens, steps), np.arange(c.tokens), side="right") - 1
    return jnp.zeros_like(path).at[jnp.arange(batch_size)[:, None], path].set(step)


def _one_by_one(model, variables, keys, label, path, guidance, how) -> jax.Array:
    """Tokens along the path; told and untold rows are read together."""
    rows = label.shape[0]

    def twice(x: jax.Array, other: jax.Array | None = None) -> jax.Array:
        return x if guidance == 1 else jnp.concatenate([x, x if other is None else other])

    def drawn(z: jax.Array, rng: jax.Array) -> jax.Array:  # [B or 2B, W] -> [B 1]
        free = None if guidance == 1 else z[rows:, None]
        return model.apply(variables, z[:rows, None], free, guidance, rng, how, method="draw")

    def step(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        (z, cache), (rng, here, ahead) = carry, at
        token = drawn(z, rng)
        places = (twice(x[:, None]) for x in (here, ahead))
        return model.apply(variables, twice(token), told, *places, cache, method="step"), token[:, 0]

    told = model.apply(variables, twice(label, jnp.full_like(label, -1)), method="told")
    first = model.apply(variables, told, twice(path[:, :1]), method="begin")
    places = jnp.moveaxis(path, 1, 0)
    (z, _), tokens = jax.lax.scan(step, first, (keys[:-1], places[:-1], places[1:]))
    return jnp.concatenate([jnp.moveaxis(tokens, 0, 1), drawn(z, keys[-1])], axis=1)


def _set_by_set(model, variables, keys, label, path, guidance, how) -> jax.Array:
    """Tokens along the path, MAR's number of them at a time."""
    tokens, steps = model.config.tokens, len(keys)
    known = tokens - masked_after(tokens, steps)  # [steps + 1]
    most, draw = int((known[1:] - known[:-1]).max()), partial(model.apply, variables, method="draw")
    states = partial(model.apply, variables, method="states")

    def fill(found: jax.Array, at: tuple) -> tuple[jax.Array, None]:
        first, end, rng = at
        slots = jnp.minimum(first + jnp.arange(most), tokens - 1)
        z = states(found, label, path, first)[:, slots]
        free = None if guidance == 1 else states(found, jnp.full_like(label, -1), path, first)[:, slots]
        new = draw(z, free, guidance, rng, how)
        return found.at[:, jnp.where(first + jnp.arange(most) < end, slots, tokens)].set(new, mode="drop"), None

    empty = model.apply(variables, label.shape[0], method="empty")
    return jax.lax.scan(fill, empty, (jnp.asarray(known[:-1]), jnp.asarray(known[1:]), keys))[0]
