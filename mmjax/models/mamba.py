"""Mamba: a language model without attention, whose memory of the text is a state of fixed size.

Source: Gu and Dao 2023, arXiv:2312.00752; the block is figure 3, its recurrence algorithm 2 (ops/selective_scan.py).

    input_ids [B T] -embed-> [B T W] -L blocks, norm-> last_hidden_state [B T W] -embed^T-> logits [B T V]
    block:  x [B T W] + down( scan(silu(conv(up(norm(x))))) [B T E] * silu(gate(norm(x))) )

B batch, T tokens, V vocabulary, W width, L layers, E channels inside (2 W), N numbers of state a channel, K taps of the
convolution, R rank of the step size. Decoding reads the last K - 1 inputs of each convolution and E N numbers a layer,
whatever the length of the text. There are no positions, and no bound on the length.

The residual stream and the scan are float32 whatever the compute type, as in the authors' code.
"""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.nn.blocks import placed
from mmjax.nn.cache import Layer
from mmjax.nn.embeddings import Embed
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.norms import RMSNorm
from mmjax.nn.outputs import LMOutput
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import chunks, conv
from mmjax.ops.selective_scan import selective_scan

# torch.nn.Linear's default, U(-1/sqrt(in), 1/sqrt(in)), in which the published models start.


@dataclasses.dataclass(frozen=True)
class MambaConfig:
    """The defaults are those of Mamba-130M."""

    vocab_size: int = 50_280  # V: GPT-NeoX's tokenizer has 50,277 ids, rounded up to a multiple of 8
    width: int = 768  # W
    depth: int = 24  # L
    expand: int = 2  # E / W
    state: int = 16  # N
    taps: int = 4  # K
    rank: int = 48  # R: W / 16
    epsilon: float = 1e-5  # of the norms
    compute: Compute = Compute()

    @property
    def inner(self) -> int:  # E
        return self.expand * self.width

    @classmethod
    def tiny(cls) -> "MambaConfig":
        return cls(64, width=16, depth=2, state=4, rank=3)


def _published(width: int, depth: int) -> MambaConfig:  # section E.2.1, table 12
    return MambaConfig(width=width, depth=depth, rank=width // 16)


def mamba_130m() -> MambaConfig:
    return _published(768, 24)


def mamba_370m() -> MambaConfig:
    return _published(1024, 48)


def mamba_790m() -> MambaConfig:
    return _published(1536, 48)


def mamba_1_4b() -> MambaConfig:
    return _published(2048, 48)


def mamba_2_8b() -> MambaConfig:
    return _published(2560, 64)


class Text(NamedTuple):
    """What the layers know of the tokens besides their vectors. Padding stands at the end of each row."""

    starts: jax.Array | None = None  # bool [B T], True where a new text begins; None: one text a row
    lengths: jax.Array | None = None  # int32 [B], tokens that count; None: all


class Memory(NamedTuple):
    """What a layer, or with a leading [L] all layers, remember of the tokens before."""

    conv: jax.Array  # [B K-1 E] the last inputs of the convolution
    state: jax.Array  # [B E N] float32: bfloat16 would lose what a token adds to a large state


def log_steps(key: jax.Array, shape: tuple[int, ...], low: float = 1e-3, high: float = 0.1) -> jax.Array:
    """Biases whose softplus is spread evenly in log between `low` and `high`: section 3.6."""
    delta = jnp.exp(jax.random.uniform(key, shape) * math.log(high / low) + math.log(low))
    return delta + jnp.log(-jnp.expm1(-delta))  # the inverse of softplus


def out_init(depth: int) -> Any:
    """Divided by sqrt(L), as each layer adds to the residual stream."""
    return nn.initializers.variance_scaling(1 / 3 / depth, "fan_in", "uniform")


class Conv(nn.Module):
    """Causal depthwise convolution and silu; with `before` it also returns what the next tokens find there."""

    taps: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, text: Text, before: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:  # [B T E], [B K-1 E] -> the same
        bound = self.taps**-0.5
        draw = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)  # noqa: E731
        kernel = self.param("kernel", draw, (self.taps, x.shape[-1])).astype(self.dtype)
        bias = self.param("bias", draw, (x.shape[-1],)).astype(self.dtype)
        y = jax.nn.silu(conv.causal_conv(x, kernel, bias, before=before, resets=text.starts))
        return y, None if before is None else conv.last(x, before, text.lengths)


def counted_steps(delta: jax.Array, text: Text) -> jax.Array:
    """delta [B T ...] with 0 at padding, which then leaves the state as it is."""
    if text.lengths is None:
        return delta
    counts = jnp.arange(delta.shape[1]) < text.lengths[:, None]
    return delta * counts.reshape(*counts.shape, *[1] * (delta.ndim - 2))


class Mixer(nn.Module):
    config: MambaConfig

    @nn.compact
    def __call__(self, x: jax.Array, text: Text, memory: Memory | None = None) -> tuple[jax.Array, Memory | None]:
        """[B T W] -> [B T W], and what a layer remembers after it."""
        c, dtype = self.config, self.config.compute.dtype
        linear = partial(Linear, use_bias=False, dtype=dtype, kernel_init=torch_linear)
        before, initial = (None, None) if memory is None else memory

        u, z = linear(c.inner, name="up")(x), linear(c.inner, name="gate")(x)  # [B T E]
        u, before = Conv(c.taps, dtype, name="conv")(u, text, before)

        # What the token selects: how far its step goes, what it writes into the state, what it reads from it.
        selected = linear(c.rank + 2 * c.state, name="select")(u)
        delta, B, C = jnp.split(selected, [c.rank, c.rank + c.state], axis=-1)  # [B T R], [B T N], [B T N]
        raw = Linear(c.inner, dtype=jnp.float32, kernel_init=self._delta_init(), bias_init=log_steps, name="delta")
        delta = counted_steps(jax.nn.softplus(raw(delta)), text)  # [B T E]
        # Kept as [N E], channels last like every other parameter of the scan.
        A = -jnp.exp(self.param("A_log", self._A_log_init, (c.state, c.inner))).T
        D = self.param("D", nn.initializers.ones, (c.inner,))

        y, state = selective_scan(u, delta, A, B, C, initial=initial, resets=text.starts)
        y = ((y + D * u) * jax.nn.silu(z.astype(jnp.float32))).astype(dtype)
        out = linear(c.width, kernel_init=out_init(c.depth), name="down")(y)
        return out, None if memory is None else Memory(before, state)

    def _delta_init(self):
        bound = self.config.rank**-0.5
        return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    @staticmethod
    def _A_log_init(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """-1 ... -N in each channel (S4D-Real): Gu et al. 2022, arXiv:2206.11893."""
        return jnp.broadcast_to(jnp.log(jnp.arange(1.0, shape[0] + 1))[:, None], shape)


class Block(nn.Module):
    """x + mixer(norm(x))."""

    mixer: Any  # () -> module; Mamba-2 hands in its own
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, text: Text, *, cache: Layer | None = None) -> jax.Array | tuple[jax.Array, Any]:
        memory = None if cache is None else cache.read()
        y, memory = self.mixer(name="mixer")(self.norm(name="norm")(x), text, memory)
        x = placed(x + y)
        return x if cache is None else (x, cache.write(memory))


class Mamba(nn.Module):
    config: MambaConfig

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> LMOutput:
        """input_ids [B T] int; attention_mask [B T] bool, False at padding; segments [B T] int, neighbours of one
        number are a text of their own. `positions` is unused: the order of the tokens is all that a recurrence sees."""
        return self.decode(input_ids, attention_mask, segments)[0]

    def extend(self, input_ids: jax.Array, cache: Any, attention_mask: jax.Array | None = None) -> tuple[LMOutput, Any]:
        """Reads further tokens [B T] of the texts in the cache; padding may stand on either side of a row."""
        return self.decode(input_ids, attention_mask, cache=cache)

    @nn.nowrap
    def init_cache(self, batch_size: int, length: int) -> Memory:
        """Of the same size for any `length`."""
        c = self.config
        before = jnp.zeros((c.depth, batch_size, c.taps - 1, c.inner), c.compute.dtype)
        return Memory(before, jnp.zeros((c.depth, batch_size, c.inner, c.state)))

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[W V] what the last hidden state is multiplied by."""
        return params["embed"]["embedding"].T

    @nn.nowrap
    def mixer(self, name: str) -> nn.Module:
        return Mixer(self.config, name=name)

    @nn.compact
    def decode(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, segments: jax.Array | None = None,
        cache: Any = None,
    ) -> tuple[LMOutput, Any]:  # fmt: skip
        c, dtype = self.config, self.config.compute.dtype
        norm = partial(RMSNorm, c.epsilon, dtype)
        order = None if attention_mask is None else padding_last(attention_mask)
        if order is not None:
            input_ids = jnp.take_along_axis(input_ids, order, axis=1)
            segments = None if segments is None else jnp.take_along_axis(segments, order, axis=1)
        text = Text(
            None if segments is None else chunks.starts(segments),
            None if attention_mask is None else attention_mask.sum(1),
        )

        embed = Embed(c.vocab_size, c.width, dtype, nn.initializers.normal(0.02), name="embed")
        x = embed(input_ids).astype(jnp.float32)
        x, cache = Stack(partial(Block, self.mixer, norm), c.depth, c.compute, name="layers")(x, text, cache=cache)
        x = norm(name="norm")(x)
        if order is not None:
            x = jnp.take_along_axis(x, jnp.argsort(order, axis=1)[..., None], axis=1)
        logits = self.logits(x, embed)
        return LMOutput(x, logits.astype(jnp.float32)), cache

    @nn.nowrap
    def logits(self, x: jax.Array, embed: Embed) -> jax.Array:
        return embed.logits(x)


def padding_last(attention_mask: jax.Array) -> jax.Array:
    """Where each row's tokens stand, padding after them: int [B T]. So neighbours are neighbours for the convolution,
    and what it remembers is the end of the text."""
    return jnp.argsort(~attention_mask, axis=1, stable=True)
