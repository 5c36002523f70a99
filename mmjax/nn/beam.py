"""Beam search: the likeliest texts, instead of the likeliest next token again and again.

Source: Wu et al. 2016, arXiv:1609.08144, section 7; which texts count as finished as in fairseq and transformers.

    K texts a row -step-> the 2 K best continuations -> those that end, among the K best of them: finished
                                                     -> the K best of those that don't: written on

It stops when no text that is still written could be among the K best finished ones, however long it became. B rows,
K beams, N most tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct


def gnmt(length: Any, alpha: float) -> Any:
    """What a sum of log-probabilities is divided by: Wu et al., equation 14. The Transformer took alpha = 0.6."""
    return ((5 + length) / 6) ** alpha


def power(length: Any, alpha: float) -> Any:
    """transformers' length_penalty."""
    return (1.0 * length) ** alpha


@dataclasses.dataclass(frozen=True)
class Search:
    length: int = 64  # N; a text that has so many tokens is finished
    beams: int = 4  # K; 1 with alpha = 0 takes the likeliest next token
    alpha: float = 0.6  # the larger, the longer are texts; 0 compares probabilities as they are
    penalty: Callable[[Any, float], Any] = gnmt  # (length with the end token, alpha) -> what scores are divided by
    never: tuple[int, ...] = ()  # ids that are not written

    def __post_init__(self):
        if min(self.beams, self.length) < 1 or self.alpha < 0:
            raise ValueError(
                f"a search needs beams and length of at least 1 and alpha of at least 0, got beams={self.beams}, "
                f"length={self.length}, alpha={self.alpha}"
            )


@struct.dataclass
class Found:
    tokens: jax.Array  # [B K N] int32, best first; pad_id after the end
    lengths: jax.Array  # [B K] int32, the end token included
    scores: jax.Array  # [B K] log-probability / penalty; -inf where there was no further text


@struct.dataclass
class State:
    """What one step hands to the next."""

    step: jax.Array  # [] int32, tokens written
    tokens: jax.Array  # [B K N] int32 of the texts that are written on
    scores: jax.Array  # [B K] their log-probabilities, -inf where there is no such text
    last: jax.Array  # [B K] int32 their last tokens
    cache: Any
    found: Found


def search(step: Callable, cache: Any, first: jax.Array, options: Search, *, end_id: int, pad_id: int) -> Found:
    """step(tokens [B K], cache) -> (logits [B K, V], cache): rows and their beams are one axis.

    cache: has `rows(order)`, which goes on with these of its B K rows. first [B K] int: the start token of each.
    """
    beams, length = options.beams, options.length
    tokens = jnp.full((first.size // beams, beams, length), pad_id, jnp.int32)
    nothing = jnp.full(tokens.shape[:2], -jnp.inf)
    # All beams of a row start alike, so all but one are left out.
    scores = nothing.at[:, 0].set(0.0)
    found = Found(tokens, jnp.zeros(nothing.shape, jnp.int32), nothing)

    def goes_on(state: State) -> jax.Array:
        highest = state.scores.max(1) / options.penalty(length, options.alpha)  # scores only fall, penalties only grow
        return (state.step < length) & (highest > state.found.scores.min(1)).any()

    def body(state: State) -> State:
        logits, cache = step(state.last.ravel(), state.cache)
        return continued(state.replace(cache=cache), logits, options, end_id)

    state = State(jnp.int32(0), tokens, scores, first.reshape(nothing.shape).astype(jnp.int32), cache, found)
    return jax.lax.while_loop(goes_on, body, state).found


def continued(state: State, logits: jax.Array, options: Search, end_id: int) -> State:
    """One token more in each text; logits [B K, V]."""
    (batch, beams), size = state.scores.shape, logits.shape[-1]
    if size < 2:
        raise ValueError(f"a search needs at least 2 ids to choose from, got {size}")
    chances = jax.nn.log_softmax(logits.astype(jnp.float32)).at[:, jnp.asarray(options.never, jnp.int32)].set(-jnp.inf)
    total = state.scores[..., None] + rearrange(chances, "(b k) v -> b k v", k=beams)
    scores, flat = jax.lax.top_k(rearrange(total, "b k v -> b (k v)"), 2 * beams)  # [B 2K]
    parent, token = flat // size, (flat % size).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.tokens, parent[..., None], axis=1)
    tokens = jax.lax.dynamic_update_slice(tokens, token[..., None], (0, 0, state.step))

    length = state.step + 1
    ends = (token == end_id) | (length == options.length)
    counts = ends & (jnp.arange(2 * beams) < beams)
    finished = jnp.where(counts, scores / options.penalty(length, options.alpha), -jnp.inf)
    new = Found(tokens, jnp.full(token.shape, length), finished)
    found = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.found, new)
    found = taken(found, jax.lax.top_k(found.scores, beams)[1])

    # No beam has more than one continuation that ends, so K of the 2 K go on.
    scores, best = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), beams)
    tokens, token, parent = taken((tokens, token, parent), best)
    rows = (jnp.arange(batch)[:, None] * beams + parent).ravel()
    return State(length, tokens, scores, token, state.cache.rows(rows), found)


def taken(tree: Any, which: jax.Array) -> Any:
    """[B M ...] -> [B K ...], the entries `which` [B K] of each row."""

    def one(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, jnp.expand_dims(which, range(2, x.ndim)), axis=1)

    return jax.tree.map(one, tree)
