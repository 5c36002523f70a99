"""Mamba-2: Mamba with one decay a head, which makes its recurrence a masked attention without softmax, and so matmuls.

Source: Dao and Gu 2024, arXiv:2405.21060; the block is figure 6, its recurrence section 6 (ops/ssd.py).

    input_ids [B T] -embed-> [B T W] -L blocks, norm-> last_hidden_state [B T W] -head-> logits [B T V]
    block:  x + down( norm( ssd(silu(conv(up, select))) * silu(gate) ) ),  all four read from norm(x)

B batch, T tokens, V vocabulary, W width, L layers, H heads, P width of a head, E = H P, G groups of heads that share B
and C, N state, K taps. What differs from Mamba (models/mamba.py, where everything around the mixer stands): B, C and
the step size are read from the block's input beside x instead of from x; B and C pass the convolution too; a norm
follows the gate, over each group's channels.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmjax.models import mamba
from mmjax.models.mamba import Conv, Text
from mmjax.nn.embeddings import Embed
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.stack import Compute
from mmjax.ops.ssd import ssd


@dataclasses.dataclass(frozen=True)
class Mamba2Config:
    """The defaults are those of Mamba-2 130M."""

    vocab_size: int = 50_288  # V: 50,277 ids of GPT-NeoX's tokenizer, rounded up to a multiple of 16
    width: int = 768  # W
    depth: int = 24  # L
    heads: int = 24  # H
    head_dim: int = 64  # P
    groups: int = 1  # G
    state: int = 128  # N
    taps: int = 4  # K
    epsilon: float = 1e-5  # of the norms
    tied: bool = True  # whether the head is the table of embeddings
    compute: Compute = Compute()

    def __post_init__(self):
        if self.heads % self.groups:
            raise ValueError(f"groups must divide heads, got groups={self.groups}, heads={self.heads}")

    @property
    def inner(self) -> int:  # E
        return self.heads * self.head_dim

    @classmethod
    def tiny(cls) -> "Mamba2Config":
        return cls(64, width=16, depth=2, heads=4, head_dim=8, groups=2, state=8)


def _published(width: int, depth: int) -> Mamba2Config:  # the hub's configs; section 9.2 trains these sizes
    return Mamba2Config(width=width, depth=depth, heads=2 * width // 64)


def mamba2_130m() -> Mamba2Config:
    return _published(768, 24)


def mamba2_370m() -> Mamba2Config:
    return _published(1024, 48)


def mamba2_780m() -> Mamba2Config:
    return _published(1536, 48)


def mamba2_1_3b() -> Mamba2Config:
    return _published(2048, 48)


def mamba2_2_7b() -> Mamba2Config:
    return _published(2560, 64)


def codestral_7b() -> Mamba2Config:  # Mistral AI 2024; config.json of Mamba-Codestral-7B-v0.1
    return Mamba2Config(32_768, 4096, 64, heads=128, groups=8, tied=False)


class Memory(NamedTuple):
    """What a layer, or with a leading [L] all layers, remember of the tokens before."""

    conv: jax.Array  # [B K-1 E] the last inputs of x's convolution
    conv_select: jax.Array  # [B K-1 2GN] and of B's and C's
    state: jax.Array  # [B H P N] float32


class GroupedRMSNorm(nn.Module):
    """RMSNorm over each of `groups` equal parts of the last axis."""

    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # float32 [... E] -> same
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        parts = rearrange(x, "... (g e) -> ... g e", g=self.groups)
        parts = parts * jax.lax.rsqrt(jnp.mean(parts**2, axis=-1, keepdims=True) + self.epsilon)
        return rearrange(parts, "... g e -> ... (g e)") * scale


class Mixer(nn.Module):
    config: Mamba2Config

    @nn.compact
    def __call__(self, x: jax.Array, text: Text, memory: Memory | None = None) -> tuple[jax.Array, Memory | None]:
        """[B T W] -> [B T W], and what a layer remembers after it."""
        c, dtype = self.config, self.config.compute.dtype
        linear = partial(Linear, use_bias=False, dtype=dtype, kernel_init=torch_linear)
        before, before_select, initial = (None, None, None) if memory is None else memory

        u, z = linear(c.inner, name="up")(x), linear(c.inner, name="gate")(x)  # [B T E]
        selected = linear(2 * c.groups * c.state + c.heads, name="select")(x)
        BC, raw = jnp.split(selected, [2 * c.groups * c.state], axis=-1)  # [B T 2GN], [B T H]
        u, before = Conv(c.taps, dtype, name="conv")(u, text, before)
        BC, before_select = Conv(c.taps, dtype, name="conv_select")(BC, text, before_select)
        B, C = rearrange(BC, "b t (two g n) -> two b t g n", two=2, g=c.groups)

        delta = jax.nn.softplus(raw.astype(jnp.float32) + self.param("delta_bias", mamba.log_steps, (c.heads,)))
        A = -jnp.exp(self.param("A_log", self._A_log_init, (c.heads,)))
        D = self.param("D", nn.initializers.ones, (c.heads,))
        u = rearrange(u, "b t (h p) -> b t h p", h=c.heads)
        y, state = ssd(u, mamba.counted_steps(delta, text), A, B, C, initial=initial, resets=text.starts)
        y = rearrange(y + D[:, None] * u, "b t h p -> b t (h p)") * jax.nn.silu(z.astype(jnp.float32))
        y = GroupedRMSNorm(c.groups, c.epsilon, name="norm")(y).astype(dtype)
        out = linear(c.width, kernel_init=mamba.out_init(c.depth), name="down")(y)
        return out, None if memory is None else Memory(before, before_select, state)

    @staticmethod
    def _A_log_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=16.0))


class Mamba2(mamba.Mamba):
    config: Mamba2Config

    @nn.nowrap
    def init_cache(self, batch_size: int, length: int) -> Memory:
        """Of the same size for any `length`."""
        c = self.config
        before = lambda channels: jnp.zeros((c.depth, batch_size, c.taps - 1, channels), c.compute.dtype)  # noqa: E731
        state = jnp.zeros((c.depth, batch_size, c.heads, c.head_dim, c.state))
        return Memory(before(c.inner), before(2 * c.groups * c.state), state)

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[W V] what the last hidden state is multiplied by."""
        return params["embed"]["embedding"].T if self.config.tied else params["head"]["kernel"]

    @nn.nowrap
    def mixer(self, name: str) -> nn.Module:
        return Mixer(self.config, name=name)

    @nn.nowrap
    def logits(self, x: jax.Array, embed: Embed) -> jax.Array:
        c = self.config
        if c.tied:
            return embed.logits(x)
        return Linear(c.vocab_size, False, c.compute.dtype, torch_linear, name="head")(x)
