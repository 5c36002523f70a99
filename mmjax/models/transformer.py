"""Transformer: a sentence is read all at once by attention, and written word by word by attention.

Source: Vaswani et al. 2017, arXiv:1706.03762; what the paper leaves open from its code, tensorflow/tensor2tensor.

    input_ids [B S] -embed, + positions-> N x (attention, MLP) -> memory [B S D]
    decoder_input_ids [B T] -embed, + positions-> N x (causal attention, attention to memory, MLP) -> [B T D]
        -embed^T-> logits [B T V] of the token that follows

B batch, S tokens that are read, T tokens that are written, D width, N layers, H heads, V vocabulary of both languages.
`decoder_input_ids` are the right answer, moved by one place behind a start token (`shift_right`).

Differs from the original: padding is not counted as a position, so it may stand on either side; the start token has an
embedding (theirs is a vector of zeros); T2T's positions have slightly other frequencies than the paper's.
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
from flax import struct

from mmjax.nn import beam
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import attend, placed
from mmjax.nn.cache import KVCache, Layer
from mmjax.nn.embeddings import Embed, positions_of
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import cross_entropy, masks, sharding

INIT = nn.initializers.xavier_uniform()  # of every kernel; T2T's uniform_unit_scaling is alike


def angles(length: int, width: int) -> np.ndarray:  # [T D/2]
    """pos / 10000^(2i/D), section 3.5: wave i turns more slowly the larger i."""
    if width % 2:
        raise ValueError(f"sinusoidal positions are pairs of sine and cosine, so width must be even, got {width}")
    # float64: at position 500, an angle in float32 would be off by 3e-5.
    return np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)


def interleaved(length: int, width: int) -> np.ndarray:  # [T D]
    """The paper's layout: sine of wave i at 2i, cosine at 2i + 1."""
    return rearrange([np.sin(angles(length, width)), np.cos(angles(length, width))], "c t i -> t (i c)")


def halves(length: int, width: int) -> np.ndarray:  # [T D]
    """All sines, then all cosines: Marian. The same up to the order of the channels, but not for trained weights."""
    return np.concatenate([np.sin(angles(length, width)), np.cos(angles(length, width))], axis=1)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The defaults are the base model of table 3."""

    vocab_size: int = 37_000  # V
    width: int = 512  # D
    depth: int = 6  # N of the encoder
    decoder_depth: int = 6  # N of the decoder
    num_heads: int = 8  # H
    hidden: int = 2048  # of the MLP
    activation: Callable = jax.nn.relu
    positions: Callable[[int, int], np.ndarray] = interleaved  # (length, width) -> [length width]
    norm_first: bool = False  # False: norm(x + f(x)), the paper; True: x + f(norm(x)), its code from version 2 on
    use_bias: bool = False  # in attention; MLPs always have biases
    head_bias: bool = False  # added to the logits, in Marian's files
    epsilon: float = 1e-6  # of the norms
    pad_id: int = 0
    start_id: int = 1  # what the decoder reads first
    end_id: int = 2
    dropout: float = 0.1  # of embeddings and of what each part adds, section 5.4
    label_smoothing: float = 0.1  # e of section 5.4: the target is (1 - e) on the right token plus e / V on each
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "TransformerConfig":
        return cls(
            vocab_size=64, width=16, depth=2, decoder_depth=2, num_heads=2, hidden=32, dropout=0.0, label_smoothing=0.0
        )


def base() -> TransformerConfig:  # table 3; 63 M parameters
    return TransformerConfig()


def big() -> TransformerConfig:  # table 3; 214 M
    return TransformerConfig(width=1024, num_heads=16, hidden=4096, dropout=0.3)


@struct.dataclass
class TransformerOutput:
    last_hidden_state: jax.Array  # [B T D] of the decoder; what the loss reads
    logits: jax.Array  # [B T V] float32, of the token that follows; under jit they cost nothing where nobody reads them
    encoder_last_hidden_state: jax.Array  # [B S D] memory


@struct.dataclass
class DecoderCache:
    """What is kept between two tokens: keys and values of the tokens written, and of the memory, made once."""

    written: KVCache
    memory: tuple[jax.Array, jax.Array]  # keys and values, both [N B S H D/H]
    valid: jax.Array  # [B S] bool, memory that counts

    def repeated(self, count: int) -> "DecoderCache":
        """Each row `count` times, side by side: one per beam."""
        beams, old = partial(jnp.repeat, repeats=count), self.written
        key, value, *memory = (beams(x, axis=1) for x in (old.key, old.value, *self.memory))
        written = old.replace(key=key, value=value, positions=beams(old.positions, axis=0))
        return DecoderCache(written, tuple(memory), beams(self.valid, axis=0))

    def rows(self, order: jax.Array) -> "DecoderCache":
        """Goes on with these rows [B]; each may only stand in for one that has read the same, as beams have."""
        return self.replace(written=self.written.rows(order))


class Around(nn.Module):
    """What both kinds of layer share: where the norms stand, and dropout."""

    config: TransformerConfig
    train: bool

    def enter(self, norm: LayerNorm, x: jax.Array) -> jax.Array:
        return norm(x) if self.config.norm_first else x

    def leave(self, norm: LayerNorm, x: jax.Array, y: jax.Array) -> jax.Array:
        x = placed(x + nn.Dropout(self.config.dropout, deterministic=not self.train)(y))
        return x if self.config.norm_first else norm(x)

    def parts(self) -> tuple[Callable, Callable, Callable]:
        c, dtype = self.config, self.config.compute.dtype
        attention = partial(Attention, c.num_heads, dtype, INIT, INIT, use_bias=c.use_bias)
        return attention, partial(MLP, c.hidden, c.activation, dtype, INIT, INIT), partial(LayerNorm, c.epsilon, dtype)


class EncoderLayer(Around):
    @nn.compact
    def __call__(self, x: jax.Array, mask: masks.Mask) -> jax.Array:  # [B S D] -> [B S D]
        attention, mlp, norm = self.parts()
        norm1, norm2 = norm(name="norm1"), norm(name="norm2")
        x = self.leave(norm1, x, attention(name="attention")(self.enter(norm1, x), mask))
        return self.leave(norm2, x, mlp(name="mlp")(self.enter(norm2, x)))


class DecoderLayer(Around):
    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Any, memory: Any, valid: masks.Mask, cache: Layer | None = None
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """[B T D] -> [B T D]; memory [B S D], or with a cache its keys and values for all layers [N B S H D/H]."""
        attention, mlp, norm = self.parts()
        norm1, norm2, norm3 = (norm(name=f"norm{i}") for i in (1, 2, 3))
        y, renewed = attend(attention(name="attention"), self.enter(norm1, x), (mask,), cache)
        x = self.leave(norm1, x, y)
        if cache is not None:
            memory = Layer(memory, cache.index).read()
        x = self.leave(norm2, x, attention(name="cross")(self.enter(norm2, x), valid, context=memory))
        x = self.leave(norm3, x, mlp(name="mlp")(self.enter(norm3, x)))
        return x if cache is None else (x, renewed)


class Layers(nn.Module):
    """The encoder or the decoder; norms that come first leave the last sum without one."""

    config: TransformerConfig
    layer: Callable
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, *args: Any, train: bool = False, cache: Any = None) -> tuple[jax.Array, Any]:
        c = self.config
        x, cache = Stack(partial(self.layer, c, train), self.depth, c.compute, name="layers")(x, *args, cache=cache)
        return LayerNorm(c.epsilon, c.compute.dtype, name="norm")(x) if c.norm_first else x, cache


class Transformer(nn.Module):
    config: TransformerConfig

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab_size, c.width, c.compute.dtype, nn.initializers.normal(c.width**-0.5))
        self.encoder = Layers(c, EncoderLayer, c.depth)
        self.decoder = Layers(c, DecoderLayer, c.decoder_depth)
        self.dropout = nn.Dropout(c.dropout)
        if c.head_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (c.vocab_size,))

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        decoder_input_ids: jax.Array,
        decoder_attention_mask: jax.Array | None = None,
        train: bool = False,
    ) -> TransformerOutput:
        """input_ids [B S], decoder_input_ids [B T] int; the masks are True where a token counts, everywhere if None."""
        valid = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
        written = None if decoder_attention_mask is None else decoder_attention_mask.astype(bool)
        memory = self.encode(input_ids, valid, train=train)
        positions = positions_of(decoder_input_ids.shape, written)
        x = self.embedded(decoder_input_ids, positions, decoder_input_ids.shape[1], train)
        x, _ = self.decoder(x, masks.causal(written), memory, masks.Padding(valid), train=train)
        return TransformerOutput(x, self.logits(x), memory)

    def encode(self, input_ids: jax.Array, valid: jax.Array, *, train: bool = False) -> jax.Array:
        """[B S], [B S] bool -> memory [B S D]."""
        x = self.embedded(input_ids, positions_of(input_ids.shape, valid), input_ids.shape[1], train)
        return self.encoder(x, masks.Padding(valid), train=train)[0]

    def embedded(self, input_ids: jax.Array, positions: jax.Array, length: int, train: bool) -> jax.Array:  # [B T D]
        c, dtype = self.config, self.config.compute.dtype
        waves = jnp.asarray(c.positions(length, c.width), dtype)
        x = self.embed(input_ids) * jnp.sqrt(c.width).astype(dtype) + jnp.take(waves, positions, axis=0, mode="clip")
        return self.dropout(x, deterministic=not train)

    def logits(self, x: jax.Array) -> jax.Array:  # [B T D] -> [B T V]
        logits = self.embed.logits(x).astype(jnp.float32)
        return logits + self.logit_bias if self.config.head_bias else logits

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[D V] what the last hidden state is multiplied by."""
        return params["embed"]["embedding"].T

    # --- token by token

    def start(self, input_ids: jax.Array, attention_mask: jax.Array, length: int) -> DecoderCache:
        """Reads [B S]; room to write `length` tokens a row."""
        c, dtype, valid = self.config, self.config.compute.dtype, attention_mask.astype(bool)
        memory, cross = self.encode(input_ids, valid), self.variables["params"]["decoder"]["layers"]["cross"]

        def project(name: str) -> jax.Array:  # for every layer: [N B S H D/H]
            x = jnp.einsum("bsd,lde->lbse", memory, cross[name]["kernel"].astype(dtype))
            if c.use_bias:
                x = x + cross[name]["bias"][:, None, None].astype(dtype)
            return rearrange(x, "l b s (h d) -> l b s h d", h=c.num_heads)

        room = KVCache.empty(c.decoder_depth, len(input_ids), length, c.num_heads, c.width // c.num_heads, dtype)
        # Closed, so that the first token is written by the same program as the others.
        return DecoderCache(room.close(), (project("key"), project("value")), valid)

    def extend(
        self, decoder_input_ids: jax.Array, cache: DecoderCache, decoder_attention_mask: jax.Array | None = None
    ) -> tuple[TransformerOutput, DecoderCache]:
        """Writes further tokens [B T]; the output has no encoder_last_hidden_state."""
        positions, mask, written = cache.written.open(decoder_input_ids.shape, decoder_attention_mask)
        x = self.embedded(decoder_input_ids, positions, written.positions.shape[1], train=False)
        x, written = self.decoder(x, mask, cache.memory, masks.Padding(cache.valid), cache=written)
        return TransformerOutput(x, self.logits(x), None), cache.replace(written=written.close())


def shift_right(labels: jax.Array, start_id: int) -> jax.Array:  # [B T] -> [B T]
    """decoder_input_ids for these labels; where a label is IGNORED, any id will do, and the start token stands."""
    shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
    return jnp.where(shifted == cross_entropy.IGNORED, start_id, shifted)


def loss(model: Transformer, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """batch: input_ids, attention_mask [B S], decoder_input_ids [B T], labels [B T], IGNORED where none counts."""
    c, labels = model.config, batch["labels"]
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    inputs = {name: batch[name] for name in names if name in batch}
    out = model.apply(variables, **inputs, train=True, rngs={"dropout": rng})
    if c.head_bias:
        losses = cross_entropy.softmax_cross_entropy(out.logits, labels, label_smoothing=c.label_smoothing)
    else:
        head = model.head(variables["params"])
        losses = cross_entropy.linear_nll(out.last_hidden_state, head, labels, label_smoothing=c.label_smoothing)
    count = (labels != cross_entropy.IGNORED).sum()
    value = losses.sum() / jnp.maximum(count, 1)
    return value, Aux({"loss": value}, weight=count)


def translate(
    model: Transformer, variables: dict, input_ids: jax.Array, attention_mask: jax.Array, search: beam.Search
) -> beam.Found:
    """input_ids [B S] int, attention_mask [B S] bool -> the `search.beams` best answers to each row, best first."""
    if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids and attention_mask must be [B S] both, got {input_ids.shape} and {attention_mask.shape}"
        )
    ids, counts = np.asarray(input_ids), np.asarray(attention_mask).astype(bool)
    if not counts.any(1).all():
        raise ValueError(f"row {int(counts.any(1).argmin())} has nothing to translate: its attention_mask is all False")
    unknown = counts & ((ids < 0) | (ids >= model.config.vocab_size))
    if unknown.any():
        row, column = (int(i) for i in np.argwhere(unknown)[0])
        raise ValueError(
            f"input_ids[{row}, {column}] is {ids[row, column]}, but the model knows the ids 0 to "
            f"{model.config.vocab_size - 1}; is this the model's own tokenizer?"
        )
    return _translate(model, variables, np.where(counts, ids, model.config.pad_id), counts, search)


@partial(jax.jit, static_argnames=("model", "search"))
def _translate(model, variables, input_ids, attention_mask, search):
    room = search.length + search.length % 2  # an even number of slots, which cuDNN's attention wants
    cache = model.apply(variables, input_ids, attention_mask, room, method="start").repeated(search.beams)

    def step(tokens: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        out, cache = model.apply(variables, tokens[:, None], cache, method="extend")
        return out.logits[:, 0], cache

    c = model.config
    first = jnp.full(len(input_ids) * search.beams, c.start_id, jnp.int32)
    found = beam.search(step, cache, first, search, end_id=c.end_id, pad_id=c.pad_id)
    return jax.tree.map(lambda x: sharding.constrain(x, None), found)  # every process gets all of it
