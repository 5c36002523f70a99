"""Text from a causal language model, token by token: one jitted program reads the prompt and writes the answer.

Works for any model that has `config.vocab_size`, maybe `config.length` (most tokens in a row), and

    init_cache(batch_size, length) -> cache                              room for so many tokens a row
    extend(input_ids [B T], cache, attention_mask) -> (LMOutput, cache)  reads T further tokens; for the prompt it is
                                                         given `inputs` by name too: images that the prompt speaks of
    head(params) -> [W V]                                                what turns a hidden state into logits

Rows of a batch may differ in length: `attention_mask` says what is padding, on the left or on the right, and where it
stands changes no token. B rows, T tokens of the longest prompt, N new tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from mmjax.nn.outputs import EMPTY


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Filters apply in the order of the fields, as in transformers."""

    repetition_penalty: float = 1.0  # of tokens that the row holds already: Keskar et al. 2019, arXiv:1909.05858
    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int = 0  # only among the k likeliest; 0: all
    top_p: float = 1.0  # only the likeliest that together reach p: Holtzman et al. 2020, arXiv:1904.09751
    min_p: float = 0.0  # only those at least min_p times as likely as the likeliest: arXiv:2407.01082
    stop_ids: tuple[int, ...] = ()  # a row ends with the first of these
    pad_id: int = 0  # what follows the end of a row

    def __post_init__(self):
        bounds = {
            "repetition_penalty": self.repetition_penalty > 0,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
        }
        for name, good in bounds.items():
            if not good:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}, which is out of its range")


@struct.dataclass
class Generated:
    tokens: jax.Array  # [B N] int32, what follows each prompt; pad_id after the end
    lengths: jax.Array  # [B] int32, how many of them count, the stop token included


def filtered(logits: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [B V] as they are drawn from, -inf for what is left out; seen [B V] bool, tokens that the row holds."""
    s = sampling
    if s.repetition_penalty != 1:
        weaker = jnp.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
        logits = jnp.where(seen, weaker, logits)
    if s.temperature == 0:
        return logits
    logits = logits / s.temperature
    if 0 < s.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, s.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if s.top_p < 1:
        ranked = jnp.flip(jnp.sort(logits), -1)
        chances = jax.nn.softmax(ranked)
        # A token stays while those before it do not reach p, so that the likeliest always does.
        stays = jnp.cumsum(chances, -1) - chances < s.top_p
        least = jnp.where(stays, ranked, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if s.min_p > 0:
        logits = jnp.where(logits < logits.max(-1, keepdims=True) + np.log(s.min_p), -jnp.inf, logits)
    return logits


@struct.dataclass
class State:
    """What one step hands to the next."""

    cache: Any
    logits: jax.Array  # [B V] of the next token
    seen: jax.Array  # [B V] bool, tokens that the row holds; [B 0] where nobody asks
    done: jax.Array  # [B] bool, rows that have ended


def prefill(
    model: nn.Module, variables: Any, input_ids: jax.Array, attention_mask: jax.Array, length: int, sampling: Sampling,
    inputs: Mapping = EMPTY,
) -> State:  # fmt: skip
    """Reads the prompts into a new cache with room for `length` tokens a row."""
    rows = jnp.arange(input_ids.shape[0])
    input_ids = jnp.where(attention_mask, input_ids, 0)  # padding may be any number, also one that has no embedding
    cache = model.init_cache(input_ids.shape[0], length)
    out, cache = model.apply(variables, input_ids, cache, attention_mask, method="extend", **inputs)
    last = input_ids.shape[1] - 1 - jnp.argmax(attention_mask[:, ::-1], axis=1)  # each row's last token that counts
    # Not out.logits[rows, last]: those of a whole prompt would take more memory than the model.
    hidden = out.last_hidden_state[rows, last]
    logits = (hidden @ model.head(variables["params"]).astype(hidden.dtype)).astype(jnp.float32)
    seen = jnp.zeros((input_ids.shape[0], logits.shape[1] if sampling.repetition_penalty != 1 else 0), bool)
    seen = seen.at[rows[:, None], input_ids].max(attention_mask, mode="drop")
    return State(cache, logits, seen, jnp.zeros(input_ids.shape[0], bool))


def draw(state: State, rng: jax.Array, sampling: Sampling) -> tuple[jax.Array, State]:
    """The next token of each row [B], and the state that knows it; pad_id for rows that have ended."""
    logits = filtered(state.logits, state.seen, sampling)
    drawn = jnp.argmax(logits, -1) if sampling.temperature == 0 else jax.random.categorical(rng, logits)
    token = jnp.where(state.done, sampling.pad_id, drawn.astype(jnp.int32))
    seen = state.seen.at[jnp.arange(token.size), token].set(True, mode="drop")
    stops = jnp.isin(token, jnp.asarray(sampling.stop_ids, jnp.int32))
    return token, state.replace(seen=seen, done=state.done | stops)


def advance(model: nn.Module, variables: Any, state: State, token: jax.Array) -> State:
    """Reads the tokens [B] that were drawn."""
    out, cache = model.apply(variables, token[:, None], state.cache, method="extend")
    return state.replace(cache=cache, logits=out.logits[:, 0])


def generate(
    model: nn.Module,
    variables: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),
    rng: jax.Array | None = None,
    inputs: Mapping = EMPTY,
) -> Generated:
    """Prompts [B T] int -> what follows each, at most `max_new_tokens`; ends early where all rows have stopped.

    attention_mask: [B T] bool, False at padding. rng: needed unless the temperature is 0. inputs: arrays by name that
    the model's `extend` is given with the prompt. May be called under jit.
    """
    attention_mask = _check(model, input_ids, attention_mask, max_new_tokens, sampling, rng)
    rng = jax.random.key(0) if rng is None else rng  # greedy decoding draws nothing
    return _generate(model, variables, input_ids, attention_mask, rng, dict(inputs), max_new_tokens, sampling)


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "sampling"))
def _generate(model, variables, input_ids, attention_mask, rng, inputs, max_new_tokens, sampling):
    def put(tokens, step, state):
        token, state = draw(state, jax.random.fold_in(rng, step), sampling)
        return jax.lax.dynamic_update_slice(tokens, token[:, None], (0, step)), step + 1, state

    def more(carry):
        _, step, state = carry
        return (step < max_new_tokens) & ~state.done.all()

    def body(carry):
        tokens, step, state = carry
        token = jax.lax.dynamic_index_in_dim(tokens, step - 1, axis=1, keepdims=False)
        return put(tokens, step, advance(model, variables, state, token))

    batch_size, length = input_ids.shape
    room = _room(length + max_new_tokens - 1)
    state = prefill(model, variables, input_ids, attention_mask, room, sampling, inputs)
    tokens = jnp.full((batch_size, max_new_tokens), sampling.pad_id, jnp.int32)
    tokens, _, _ = jax.lax.while_loop(more, body, put(tokens, jnp.int32(0), state))
    ends = jnp.isin(tokens, jnp.asarray(sampling.stop_ids, jnp.int32))
    return Generated(tokens, jnp.where(ends.any(1), 1 + ends.argmax(1), max_new_tokens).astype(jnp.int32))


def generate_among(
    model: nn.Module,
    variables: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    among: tuple[int, int],
    count: int,
    sampling: Sampling = Sampling(),
    rng: jax.Array | None = None,
    inputs: Mapping = EMPTY,
) -> jax.Array:
    """As `generate`, but exactly `count` tokens, all of them ids first ... last - 1 of `among`, such as a picture's
    codes -> [B count] int32. Nothing stops a row: sampling.stop_ids must not lie among them."""
    (first, last), size = among, model.config.vocab_size
    if not 0 <= first < last <= size:
        raise ValueError(f"among must be ids first < last of a vocabulary of {size}, got {among}")
    if any(first <= stop < last for stop in sampling.stop_ids):
        raise ValueError(f"sampling.stop_ids {sampling.stop_ids} must not lie among {first} ... {last - 1}")
    attention_mask = _check(model, input_ids, attention_mask, count, sampling, rng)
    rng = jax.random.key(0) if rng is None else rng
    return _among(model, variables, input_ids, attention_mask, rng, dict(inputs), among, count, sampling)


@functools.partial(jax.jit, static_argnames=("model", "among", "count", "sampling"))
def _among(model, variables, input_ids, attention_mask, rng, inputs, among, count, sampling):
    def put(state, step):
        ids = jnp.arange(state.logits.shape[1])
        inside = (ids >= among[0]) & (ids < among[1])
        state = state.replace(logits=jnp.where(inside, state.logits, -jnp.inf))
        return draw(state, jax.random.fold_in(rng, step), sampling)

    def body(carry, step):
        token, state = carry
        return put(advance(model, variables, state, token), step), token

    state = prefill(
        model, variables, input_ids, attention_mask, _room(input_ids.shape[1] + count - 1), sampling, inputs
    )
    (last, _), tokens = jax.lax.scan(body, put(state, 0), jnp.arange(1, count))
    return jnp.concatenate([tokens, last[None]]).T


def stream(
    model: nn.Module,
    variables: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),
    rng: jax.Array | None = None,
    inputs: Mapping = EMPTY,
) -> Iterator[np.ndarray]:
    """As `generate`, but hands over the tokens [B] of each step as they come; a row that has ended gives pad_id."""
    attention_mask = _check(model, input_ids, attention_mask, max_new_tokens, sampling, rng)
    rng = jax.random.key(0) if rng is None else rng
    room = _room(input_ids.shape[1] + max_new_tokens - 1)
    state = _prefill(model, variables, input_ids, attention_mask, room, sampling, dict(inputs))
    return _tokens(model, variables, state, rng, max_new_tokens, sampling)


def _tokens(model, variables, state, rng, max_new_tokens, sampling):
    for step in range(max_new_tokens):
        token, state = _draw(state, jax.random.fold_in(rng, step), sampling)
        yield np.asarray(token)
        if step == max_new_tokens - 1 or state.done.all():
            return
        state = _advance(model, variables, state, token)


_prefill = jax.jit(prefill, static_argnames=("model", "length", "sampling"))
_draw = jax.jit(draw, static_argnames="sampling", donate_argnums=0)
_advance = jax.jit(advance, static_argnames="model", donate_argnums=2)


def _room(length: int) -> int:
    """Slots for so many tokens: an even number, which cuDNN's attention wants, as padding would copy the cache."""
    return length + length % 2


def check_vocabulary(tokenizer_size: int, model: nn.Module) -> None:
    """A tokenizer may have fewer ids than its model, whose table is often rounded up, and never more."""
    if tokenizer_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer_size} ids, but the model's vocabulary holds {model.config.vocab_size}; "
            "take the tokenizer that came with the weights"
        )


def _check(model, input_ids, attention_mask, max_new_tokens, sampling, rng) -> jax.Array:
    """The attention mask, after everything that can be known before the program runs has been looked at."""
    if input_ids.ndim != 2 or not jnp.issubdtype(input_ids.dtype, jnp.integer):
        raise ValueError(f"input_ids must be int [B T], got {input_ids.dtype} {input_ids.shape}")
    if input_ids.shape[1] == 0:
        raise ValueError("the prompt is empty; give at least one token, such as the beginning-of-text token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if sampling.temperature > 0 and rng is None:
        raise ValueError(f"temperature {sampling.temperature} draws tokens at random; give rng=jax.random.key(...)")
    if not 0 <= sampling.pad_id < model.config.vocab_size:
        raise ValueError(f"sampling.pad_id is {sampling.pad_id}, but ids are 0 to {model.config.vocab_size - 1}")
    attention_mask = np.ones(input_ids.shape, bool) if attention_mask is None else attention_mask
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask must be [B T] as input_ids {input_ids.shape}, got {attention_mask.shape}")
    if isinstance(attention_mask, jax.core.Tracer) or isinstance(input_ids, jax.core.Tracer):
        return attention_mask.astype(bool)
    mask = np.asarray(attention_mask).astype(bool)
    _check_values(model.config, np.asarray(input_ids), mask, max_new_tokens)
    return mask


def _check_values(config: Any, input_ids: np.ndarray, mask: np.ndarray, max_new_tokens: int) -> None:
    if not mask.any(axis=1).all():
        raise ValueError(
            f"the prompt of row {int(mask.any(axis=1).argmin())} is empty: its attention_mask is all False"
        )
    unknown = mask & ((input_ids < 0) | (input_ids >= config.vocab_size))
    if unknown.any():
        row, column = (int(i) for i in np.argwhere(unknown)[0])
        raise ValueError(
            f"input_ids[{row}, {column}] is {input_ids[row, column]}, but the model knows the ids 0 to "
            f"{config.vocab_size - 1}; is this the model's own tokenizer?"
        )
    length, longest = getattr(config, "length", None), int(mask.sum(axis=1).max())
    if length is not None and longest + max_new_tokens > length:
        raise ValueError(
            f"the longest prompt has {longest} tokens and {max_new_tokens} more are asked for, but the model's context "
            f"is {length}; shorten the prompt or max_new_tokens"
        )
