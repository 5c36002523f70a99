"""MAR: a picture as continuous tokens, filled in a random order; each token is drawn by a small diffusion of its own.

Source: Li et al. 2024, arXiv:2406.11838, sections 3 and 4; what the paper leaves open from LTH14/mar (models/mar.py,
models/diffloss.py).

    latents [B h w C] -patches-> tokens [B N D], of which the first n of a random order are masked
    [class; ... class; visible tokens] + positions -norm, encoder-> [B K+S W], a mask vector for each that is masked
        + positions -decoder-> z [B N W], what is known of each token
    head: x_t [... D], t, z -> noise and variance: the loss of masked tokens, and how they are drawn

B batch, h w C of the latents, N tokens in rows from the top left, D numbers in a token (C p p, channel first), W width,
K slots that all hold the class, S tokens shown, M times of noise for each token. No token is a code: the loss is that
of Nichol and Dhariwal (ops/diffusion.py) for each token, and its gradient trains the network through z.

Latents are an autoencoder's, divided by their deviation (there: KL-16's posterior sample times 0.2325). Evaluate a
moving average of the parameters (0.9999; Task.after_update), without which early pictures are noise; the loss soon
looks flat while the pictures still improve. As published, weights decay by 0.02, but those of the head do not.

Not as in the original: only as many slots are encoded as may ever be visible, padding masked; no dropout on attention
weights, which fused attention never holds.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models.diffusion import Final, Modulation, TimeEmbed, modulate
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import placed
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import diffusion, masks

normal, xavier = nn.initializers.normal(0.02), nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class MARConfig:
    """Sizes; the defaults are MAR-B's for 256 x 256 pixels. Published sizes are the functions below."""

    side: int = 16  # h = w of the latents
    channels: int = 16  # C
    patch_size: int = 1  # p
    width: int = 768  # W
    depth: int = 12  # of the encoder, and of the decoder
    num_heads: int = 12
    hidden: int = 3072  # of the MLPs
    buffer: int = 64  # K
    head_width: int = 1024
    head_depth: int = 6
    classes: tuple[int, ...] = (1000,)  # how many each kind of label has
    dropout: float = 0.1  # of what attention and MLP add, and inside the MLP
    drop: float = 0.1  # share of the classes that training leaves out, for guidance
    least_masked: float = 0.7  # share of the tokens
    repeats: int = 4  # M
    betas: Callable[[], np.ndarray] = diffusion.cosine_betas  # of the noise

    def __post_init__(self):
        if self.side % self.patch_size:
            raise ValueError(f"side must be a multiple of patch_size, got side={self.side}, {self.patch_size}")

    @property
    def tokens(self) -> int:  # N
        return (self.side // self.patch_size) ** 2

    @property
    def token_dim(self) -> int:  # D
        return self.channels * self.patch_size**2

    @property
    def most_shown(self) -> int:  # S in training
        return self.tokens - int(np.ceil(self.least_masked * self.tokens))

    @classmethod
    def tiny(cls) -> "MARConfig":
        return cls(4, 3, 1, 16, 1, 2, 32, 3, 16, 1, (4,), dropout=0.0, repeats=2)


def mar_b() -> MARConfig:  # table 4
    return MARConfig()


def mar_l() -> MARConfig:  # table 4
    return MARConfig(width=1024, depth=16, num_heads=16, hidden=4096, head_width=1280, head_depth=8)


def mar_h() -> MARConfig:  # table 4
    return MARConfig(width=1280, depth=20, num_heads=16, hidden=5120, head_width=1536, head_depth=12)


# --- the paper's maths


def patchify(latents: jax.Array, size: int) -> jax.Array:  # [B h w C] -> [B N D]
    return rearrange(latents, "b (h p) (w q) c -> b (h w) (c p q)", p=size, q=size)


def unpatchify(tokens: jax.Array, size: int) -> jax.Array:  # [B N D] -> [B h w C]
    side = round(tokens.shape[1] ** 0.5)
    return rearrange(tokens, "b (h w) (c p q) -> b (h p) (w q) c", h=side, p=size, q=size)


def random_orders(rng: jax.Array, batch_size: int, tokens: int) -> jax.Array:
    """[B N] int: each row all tokens, shuffled. The first are masked; filling starts from the last."""
    orders = jnp.broadcast_to(jnp.arange(tokens), (batch_size, tokens))
    return jax.random.permutation(rng, orders, axis=1, independent=True)


def masked_count(rng: jax.Array, tokens: int, least: float) -> jax.Array:
    """[] int, one for the whole batch: a share from the left half of a normal distribution around 1 of deviation 0.25,
    cut at `least`; section 4."""
    share = 1 + 0.25 * jax.random.truncated_normal(rng, (least - 1) / 0.25, 0.0)
    return jnp.ceil(tokens * share).astype(jnp.int32)


def masked_after(tokens: int, steps: int) -> np.ndarray:
    """[steps + 1] int: how many tokens are masked before the first filling and after each: N times a cosine, at least
    one less each time, 0 at the end (section 3.4, after MaskGIT)."""
    if not 1 <= steps <= tokens:
        raise ValueError(f"each filling takes a token, so steps must be between 1 and {tokens}, got {steps}")
    left = [tokens]
    for i in range(1, steps):
        left.append(max(1, min(left[-1] - 1, int(np.floor(tokens * np.cos(np.pi / 2 * i / steps))))))
    return np.array([*left, 0])


class Draws(NamedTuple):
    """What chance decides in a step of training."""

    orders: jax.Array  # [B N] int, as random_orders
    count: jax.Array  # [] int, how many tokens are masked
    dropped: jax.Array  # [B] bool, whose class is not told
    t: jax.Array  # [M B N] int, steps of noise
    noise: jax.Array  # [M B N D]


def draw(c: MARConfig, rng: jax.Array, batch_size: int) -> Draws:
    order_rng, count_rng, drop_rng, t_rng, noise_rng = jax.random.split(rng, 5)
    shape = (c.repeats, batch_size, c.tokens)
    return Draws(
        random_orders(order_rng, batch_size, c.tokens),
        masked_count(count_rng, c.tokens, c.least_masked),
        jax.random.bernoulli(drop_rng, c.drop, (batch_size,)),
        jax.random.randint(t_rng, shape, 0, len(c.betas())),
        jax.random.normal(noise_rng, (*shape, c.token_dim)),
    )


# --- modules


class HeadBlock(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, told: jax.Array) -> jax.Array:  # [... V] both -> [... V]
        shift, scale, gate = Modulation(3, self.dtype, name="modulation")(told)
        h = modulate(LayerNorm(1e-6, self.dtype, name="norm")(x), shift, scale)
        h = jax.nn.silu(Linear(x.shape[-1], True, self.dtype, xavier, name="up")(h))
        return x + gate * Linear(x.shape[-1], True, self.dtype, xavier, name="down")(h)


class DiffusionHead(nn.Module):
    """Section 3.2: an MLP that says, of a noisy token and what is known of it, what the noise is, and its variance."""

    features: int  # D
    width: int  # V
    depth: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        """x [... D]; t [...] and z [... W], or without leading axes that repeat -> [... 2D] float32."""
        dtype = self.compute.dtype
        told = TimeEmbed(self.width, dtype, name="time")(t)
        told = told + Linear(self.width, True, dtype, xavier, name="condition")(z)
        x = Linear(self.width, True, dtype, xavier, name="embed")(x)
        x, _ = Stack(partial(HeadBlock, dtype), self.depth, self.compute, name="layers")(x, told)
        return Final(2 * self.features, dtype, name="final")(x, told)


class Block(nn.Module):
    """A pre-norm block with dropout where timm has it."""

    config: MARConfig
    rate: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any = None) -> jax.Array:  # [B T W] -> [B T W]
        c, norm = self.config, partial(LayerNorm, 1e-6, self.dtype)
        drop = nn.Dropout(self.rate, deterministic=self.rate == 0)
        attention = Attention(c.num_heads, self.dtype, xavier, xavier, name="attention")
        x = placed(x + drop(attention(norm(name="norm1")(x), mask)))
        h = drop(gelu(Linear(c.hidden, True, self.dtype, xavier, name="up")(norm(name="norm2")(x))))
        return placed(x + drop(Linear(c.width, True, self.dtype, xavier, name="down")(h)))


class Trunk(nn.Module):
    """Blocks and a norm."""

    config: MARConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any = None, *, train: bool = False) -> jax.Array:  # [B T W] -> [B T W]
        c, dtype = self.config, self.compute.dtype
        block = partial(Block, c, c.dropout if train else 0.0, dtype)
        x, _ = Stack(block, c.depth, self.compute, name="layers")(x, mask)
        return LayerNorm(1e-6, dtype, name="norm")(x)


@struct.dataclass
class MAROutput:
    last_hidden_state: jax.Array  # [B N W] z, what is known of each token
    error: jax.Array  # [M B N] squared error of the noise
    bound: jax.Array  # [M B N] bits, what trains the variance
    masked: jax.Array  # [B N] bool, whose error counts


class MAR(nn.Module):
    config: MARConfig
    compute: Compute = Compute()

    def setup(self):
        c, dtype = self.config, self.compute.dtype
        table = lambda name, rows: self.param(name, normal, (rows, c.width))  # noqa: E731
        self.class_embed, self.no_class = table("class_embed", sum(c.classes)), table("no_class", 1)
        self.encoder_pos = table("encoder_pos", c.buffer + c.tokens)
        self.decoder_pos = table("decoder_pos", c.buffer + c.tokens)
        self.mask_embed, self.head_pos = table("mask_embed", 1), table("head_pos", c.tokens)
        self.embed = Linear(c.width, True, dtype, xavier)
        self.embed_norm = LayerNorm(1e-6, dtype)
        self.encoder, self.decoder = Trunk(c, self.compute), Trunk(c, self.compute)
        self.decoder_embed = Linear(c.width, True, dtype, xavier)
        self.head = DiffusionHead(c.token_dim, c.head_width, c.head_depth, self.compute)

    def __call__(
        self, images: jax.Array, label: jax.Array, draws: Draws | None = None, *, train: bool = False
    ) -> MAROutput:
        """images [B h w C], latents; label int [B], or [B kinds] with all kinds of a row or
        none of them, which is -1. Without draws all is
        masked and free of noise."""
        c, batch_size = self.config, images.shape[0]
        if images.shape[1:] != (c.side, c.side, c.channels):
            raise ValueError(f"images must be latents [B {c.side} {c.side} {c.channels}], got {list(images.shape)}")
        if draws is None:
            draws = jax.tree.map(jnp.zeros_like, draw(c, jax.random.key(0), batch_size))
            orders = jnp.broadcast_to(jnp.arange(c.tokens), (batch_size, c.tokens))
            draws = draws._replace(orders=orders, count=jnp.asarray(c.tokens))
        tokens, hidden = patchify(images, c.patch_size), c.tokens - c.most_shown
        visible = jnp.broadcast_to(jnp.arange(hidden, c.tokens) >= draws.count, (batch_size, c.most_shown))
        z = self.read(tokens, draws.orders[:, hidden:], visible, label, draws.dropped, train=train)
        chain = diffusion.chain(c.betas())
        tokens = jnp.broadcast_to(tokens.astype(jnp.float32), draws.noise.shape)
        output = self.head(diffusion.noised(chain, tokens, draws.noise, draws.t), draws.t, z)
        error, bound = diffusion.hybrid_loss(chain, output, tokens, draws.noise, draws.t)
        return MAROutput(z, error, bound, jnp.argsort(draws.orders) < draws.count)

    def read(
        self, tokens: jax.Array, places: jax.Array, visible: jax.Array, label: jax.Array, dropped: jax.Array, *,
        train: bool = False,
    ) -> jax.Array:  # fmt: skip
        """tokens [B N D]; places [B S] int, distinct, and visible [B S] bool: which of them are shown; label, dropped
        [B] -> z [B N W]."""
        c, dtype = self.config, self.compute.dtype
        label = label if label.ndim == 2 else label[:, None]
        none = dropped | (label < 0).any(1)
        of_classes = jnp.take(self.class_embed, label + (np.cumsum(c.classes) - c.classes), axis=0).sum(1)
        told = jnp.where(none[:, None], self.no_class, of_classes)
        told = jnp.broadcast_to(told[:, None].astype(dtype), (tokens.shape[0], c.buffer, c.width))
        x = self.embed(jnp.take_along_axis(tokens, places[..., None], axis=1))
        positions = jnp.asarray(self.encoder_pos, dtype)
        x = jnp.concatenate([told + positions[: c.buffer], x + positions[c.buffer :][places]], axis=1)
        seen = jnp.pad(visible, ((0, 0), (c.buffer, 0)), constant_values=True)
        x = self.decoder_embed(self.encoder(self.embed_norm(x), masks.Padding(seen), train=train))

        told, x = jnp.split(x, [c.buffer], axis=1)
        hidden = jnp.broadcast_to(self.mask_embed.astype(dtype), (tokens.shape[0], c.tokens, c.width))
        rows = jnp.arange(tokens.shape[0])[:, None]
        x = hidden.at[rows, places].set(jnp.where(visible[..., None], x, self.mask_embed.astype(dtype)))
        x = jnp.concatenate([told, x], axis=1) + self.decoder_pos.astype(dtype)
        return self.decoder(x, train=train)[:, c.buffer :] + self.head_pos.astype(dtype)

    def denoise(self, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        """The head: [... D], [...], [... W] -> [... 2D]."""
        return self.head(x, t, z)


def loss(model: MAR, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Eq. 1 with a learned variance, the mean over masked tokens. batch: images [B h w C], latents; label [B]."""
    draw_rng, dropout_rng = jax.random.split(rng)
    draws = draw(model.config, draw_rng, batch["images"].shape[0])
    return loss_of(model, variables, batch, draws, dropout_rng)


def loss_of(model: MAR, variables: dict, batch: dict, draws: Draws, rng: jax.Array) -> tuple[jax.Array, Aux]:
    out = model.apply(variables, batch["images"], batch["label"], draws, train=True, rngs={"dropout": rng})
    count = out.masked.sum() * out.error.shape[0]
    error, bound = (jnp.sum(x * out.masked) / count for x in (out.error, out.bound))
    value = error + bound
    return value, Aux({"loss": value, "error": error, "bound": bound}, weight=count.astype(jnp.float32))


# --- drawing


def rising(guidance: float, left: jax.Array, tokens: int) -> jax.Array:
    """From 1 to nearly `guidance` as tokens are filled, after Muse; the original's "linear". left: masked after it."""
    return 1 + (guidance - 1) * (tokens - jnp.maximum(left, 1)) / tokens


def constant(guidance: float, left: jax.Array, tokens: int) -> jax.Array:
    return jnp.float32(guidance)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a picture is drawn. The README's pictures: 256 steps, guidance 2.9 to 3.2, temperature 1."""

    steps: int = 64  # fillings, section 3.4
    guidance: float = 1.0  # classifier-free; 1: none, and half the work
    schedule: Callable = rising
    temperature: float = 1.0  # of the noise of each step; the original's 0.95 where there is no guidance
    noise_steps: int = 100  # of the diffusion of each token


def sample(
    model: MAR, variables: dict, rng: jax.Array, label: jax.Array, how: Drawing = Drawing()
) -> jax.Array:  # fmt: skip
    """label [B] int, -1 for any -> latents [B h w C]. One scan over the fillings; jit it with model and how static."""
    c = model.config
    order_rng, noise_rng = jax.random.split(rng)

    def noise(filling: jax.Array, step: jax.Array, places: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(noise_rng, filling), step)
        return jax.random.normal(key, (*places.shape, c.token_dim))

    return fill(model, variables, random_orders(order_rng, label.shape[0], c.tokens), label, noise, how)


def fill(
    model: MAR, variables: dict, orders: jax.Array, label: jax.Array, noise: Callable, how: Drawing
) -> jax.Array:  # fmt: skip
    """`sample` in these orders [B N], with noise(filling [], step [], places [B k]) -> [B k D]; step noise_steps is the
    start of a token's diffusion, those below its steps."""
    c, orders = model.config, jnp.asarray(orders)
    masked, chain = masked_after(c.tokens, how.steps), diffusion.chain(c.betas(), how.noise_steps)
    most, guided = int((masked[:-1] - masked[1:]).max()), how.guidance != 1
    rows = jnp.arange(label.shape[0])[:, None]
    double = (lambda x: jnp.concatenate([x, x])) if guided else lambda x: x
    dropped = jnp.arange(double(label).shape[0]) >= label.shape[0]

    def filling(tokens: jax.Array, at: tuple) -> tuple[jax.Array, None]:
        number, before, after = at
        visible = double(jnp.broadcast_to(jnp.arange(c.tokens) >= before, orders.shape))
        z = model.apply(variables, double(tokens), double(orders), visible, double(label), dropped, method="read")
        slots = after + jnp.arange(most)
        places = orders[:, jnp.minimum(slots, c.tokens - 1)]  # [B most], of which those below `before` count
        z = jnp.take_along_axis(z, double(places)[..., None], axis=1)
        scale = how.schedule(how.guidance, after, c.tokens)

        def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
            output = model.apply(variables, double(x), t, z, method="denoise")
            if not guided:
                return output
            # What says where the variance lies is that of the conditional half.
            told, free = jnp.split(output, 2)
            eps = diffusion.guided(told[..., : c.token_dim], free[..., : c.token_dim], scale)
            return jnp.concatenate([eps, told[..., c.token_dim :]], axis=-1)

        start = noise(number, jnp.asarray(how.noise_steps), places)
        new = diffusion.ancestral(
            chain, denoise, start, lambda step: noise(number, step, places), temperature=how.temperature
        )
        return tokens.at[rows, jnp.where(slots < before, places, c.tokens)].set(new, mode="drop"), None

    tokens = jnp.zeros((label.shape[0], c.tokens, c.token_dim))
    steps = jnp.arange(how.steps), jnp.asarray(masked[:-1]), jnp.asarray(masked[1:])
    return unpatchify(jax.lax.scan(filling, tokens, steps)[0], c.patch_size)
