"""State space duality, the scan of Mamba-2: one decay a head, so that a chunk of the recurrence is three matmuls.

Source: Dao and Gu 2024, arXiv:2405.21060, section 6 and listing 1. For each head, with a state S of P x N numbers:

    S[t] = exp(delta[t] A) S[t-1] + delta[t] x[t] B[t]^T          y[t] = S[t] C[t]

B batch, L length, H heads, P width of a head, N state, G groups of heads that share B and C, Q chunk. Inside a chunk
this is attention with C as queries, B as keys, delta x as values, and the decay between two tokens as mask; from chunk
to chunk only S goes on. Decays and states are float32; the products take x's type and sum in float32.

    reference   a loop over time; the specification
    chunked     matmuls; keeps a state for each chunk and computes the rest again
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.ops import chunks

CHUNK = 128  # Q: the matrix unit's side on a TPU; the result does not depend on it


def ssd(
    x: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    initial: jax.Array | None = None,
    resets: jax.Array | None = None,
    implementation: str | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """x [B L H P], delta [B L H], A [H], B and C [B L G N] -> y [B L H P] and the last state [B H P N], both float32.

    delta must be positive, A negative. A token with delta 0 leaves the state as it is. Head h uses group h // (H / G).
    initial: [B H P N], the state before the first token; zeros where None. resets: bool [B L], True where a new text
    begins with a state of zeros.
    """
    _check(x, delta, A, B, C, initial, resets)
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation must be None or one of {list(IMPLEMENTATIONS)}, got {implementation!r}")
    if initial is None:
        initial = jnp.zeros((x.shape[0], *x.shape[2:], B.shape[-1]))
    grouped = lambda one: rearrange(one, "b (g r) p n -> b g r p n", g=B.shape[2])  # noqa: E731
    # A head's number is (group, place in it), so that B and C are not repeated.
    x = rearrange(x, "b l (g r) p -> b l g r p", g=B.shape[2])
    delta = rearrange(delta.astype(jnp.float32), "b l (g r) -> b l g r", g=B.shape[2])
    A = rearrange(A.astype(jnp.float32), "(g r) -> g r", g=B.shape[2])
    resets = jnp.zeros(x.shape[:2], bool) if resets is None else resets
    inputs, initial = (x, delta, B, C, resets), grouped(initial.astype(jnp.float32))
    if implementation is None:
        implementation = "reference" if x.shape[1] == 1 else "chunked"
    run = functools.partial(chunked, chunk=chunk) if implementation == "chunked" else reference
    y, state = run(A, initial, inputs)
    return rearrange(y, "b l g r p -> b l (g r) p"), rearrange(state, "b g r p n -> b (g r) p n")


def reference(A: jax.Array, initial: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """The specification, head by head as [G R]."""

    def step(state, token):
        x, delta, B, C, reset = token
        decay = jnp.exp(delta * A) * ~reset[:, None, None]  # [B G R]
        enters = jnp.einsum("bgrp,bgn->bgrpn", delta[..., None] * x, B)
        state = decay[..., None, None] * state + enters
        return state, jnp.einsum("bgrpn,bgn->bgrp", state, C.astype(jnp.float32), precision="highest")

    state, y = jax.lax.scan(step, initial, tuple(jnp.moveaxis(one, 1, 0) for one in inputs))
    return jnp.moveaxis(y, 0, 1), state


def chunked(A: jax.Array, initial: jax.Array, inputs: tuple[jax.Array, ...], chunk: int) -> tuple[jax.Array, jax.Array]:
    """Chunk after chunk."""
    return chunks.scan(functools.partial(one_chunk, A), initial, inputs, chunk)


def one_chunk(A: jax.Array, state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """state [B G R P N], x [B Q G R P], delta [B Q G R], B and C [B Q G N], resets [B Q] -> state, y [B Q G R P]."""
    x, delta, B, C, resets = inputs
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    total = jnp.cumsum(delta * A, axis=1)  # [B Q G R] log of the decay since before the chunk
    texts = jnp.cumsum(resets, axis=1)  # [B Q] how many texts have begun in the chunk
    entering = (delta[..., None] * x).astype(x.dtype)

    # Between tokens i and j of the chunk: exp of a difference, since exp(total) alone would underflow. Masked before
    # the exp, whose gradient would be inf * 0 where j comes after i.
    scores = product("bign,bjgn->bgij", C, B)
    between = rearrange(total, "b i g r -> b g r i 1") - rearrange(total, "b j g r -> b g r 1 j")
    sees = jnp.tril(texts[:, :, None] == texts[:, None])  # [B Q Q]
    weights = scores[:, :, None] * jnp.exp(jnp.where(sees[:, None, None], between, -jnp.inf))
    y = product("bgrij,bjgrp->bigrp", weights.astype(x.dtype), entering)

    # What the state brings from before the chunk, and the state after it.
    brought = jnp.exp(total) * (texts == 0)[..., None, None]  # [B Q G R]
    y = y + brought[..., None] * product("bgrpn,bign->bigrp", state.astype(x.dtype), C)
    left = jnp.exp(total[:, -1:] - total) * (texts == texts[:, -1:])[..., None, None]
    new = product("bjgrp,bjgn->bgrpn", (left[..., None] * entering).astype(x.dtype), B)
    return brought[:, -1, ..., None, None] * state + new, y


IMPLEMENTATIONS: dict[str, Callable] = {"reference": reference, "chunked": chunked}


def _check(x, delta, A, B, C, initial, resets) -> None:
    if x.ndim != 4 or B.ndim != 4 or x.shape[2] % B.shape[2]:
        raise ValueError(f"x must be [B L H P] and B [B L G N] with G dividing H, got {x.shape} and {B.shape}")
    batch, length, heads, width = x.shape
    wanted = {
        "delta [B L H]": (delta, (batch, length, heads)),
        "A [H]": (A, (heads,)),
        "B [B L G N]": (B, (batch, length, *B.shape[2:])),
        "C [B L G N]": (C, B.shape),
        "initial [B H P N]": (initial, (batch, heads, width, B.shape[3])),
        "resets [B L]": (resets, (batch, length)),
    }
    for name, (found, shape) in wanted.items():
        if found is not None and found.shape != shape:
            raise ValueError(f"{name} must be {shape} for x {x.shape} and B {B.shape}, got {found.shape}")
