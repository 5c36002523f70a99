"""A recurrence over a long axis, a chunk at a time: of the states in between, one for each chunk is kept."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan(
    body: Callable[[Any, Any], tuple[Any, jax.Array]], state: Any, inputs: Any, chunk: int
) -> tuple[jax.Array, Any]:
    """body(state, inputs [B Q ...]) -> (state, outputs [B Q ...]), along inputs [B L ...] -> outputs [B L ...], state.

    The backward pass runs `body` once more for each chunk, so that it needs the memory of one. The last chunk is filled
    up with zeros: for them `body` must leave the state as it is.
    """
    length = jax.tree.leaves(inputs)[0].shape[1]
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def split(x: jax.Array) -> jax.Array:  # [B L ...] -> [count B Q ...]
        x = jnp.pad(x, ((0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    # The loop already keeps the compiler from merging the two passes.
    body = jax.checkpoint(body, prevent_cse=False)
    state, outputs = jax.lax.scan(body, state, jax.tree.map(split, inputs))
    outputs = jnp.moveaxis(outputs, 0, 1)
    return outputs.reshape(outputs.shape[0], count * chunk, *outputs.shape[3:])[:, :length], state


def starts(segments: jax.Array) -> jax.Array:
    """segments [B L] int, neighbours of one number are a text -> bool [B L], True at the first token of each but the
    first."""
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
