"""Causal depthwise convolution: each channel on its own, each token with the few before it.

    y[t] = bias + sum over k of kernel[k] * x[t - (K - 1) + k]          the last tap is for the token itself

B batch, L length, E channels, K taps. As K shifted products: with few taps that is one pass over memory, and a grouped
convolution is slow on CPU and TPU.
"""

import jax
import jax.numpy as jnp


def causal_conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    before: jax.Array | None = None,
    resets: jax.Array | None = None,
) -> jax.Array:
    """x [B L E], kernel [K E], bias [E] -> [B L E].

    before: [B K-1 E], the tokens in front of the first; zeros where None. resets: bool [B L], True where a new text
    begins, which sees nothing of what stands before it.
    """
    taps, length = kernel.shape[0], x.shape[1]
    if kernel.shape[1:] != x.shape[2:] or bias.shape != x.shape[2:]:
        raise ValueError(f"x {x.shape} [B L E] needs kernel [K E] and bias [E], got {kernel.shape} and {bias.shape}")
    padded = with_history(x, before, taps)
    texts = None
    if resets is not None:  # [B K-1+L], the number of the text that each token belongs to
        texts = jnp.pad(jnp.cumsum(resets, axis=1), ((0, 0), (taps - 1, 0)))
    y = bias
    for k in range(taps):
        shifted = padded[:, k : k + length]
        if texts is not None:
            shifted = jnp.where((texts[:, k : k + length] == texts[:, taps - 1 :])[..., None], shifted, 0)
        y = y + kernel[k] * shifted
    return y


def with_history(x: jax.Array, before: jax.Array | None, taps: int) -> jax.Array:
    """[B K-1+L E]: the inputs [B L E] behind what came before them."""
    if before is None:
        return jnp.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
    return jnp.concatenate([before.astype(x.dtype), x], axis=1)


def last(x: jax.Array, before: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """What `before` is for the tokens that follow x [B L E]: [B K-1 E].

    lengths: [B] int, how many tokens of each row count; the rest is padding at its end. None: all.
    """
    padded = with_history(x, before, before.shape[1] + 1)
    if lengths is None:
        return padded[:, x.shape[1] :]
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, before.shape[1]))(padded, lengths)
