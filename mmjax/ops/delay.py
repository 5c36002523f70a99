"""Several streams of codes in one sequence: which code of which codebook stands at which step.

    parallel   [B T Q]      all codes of a frame at once: a model of T steps that must guess them independently
    flatten    [B T Q]      one code a step: T Q steps, and each code knows all before it
    delay      [B T+D Q]    codebook q comes d_q steps late: T + D steps, D the largest, and a code of a frame knows
                            those of the codebooks that come earlier

Source: Copet et al. 2023, arXiv:2306.05284 (MusicGen), section 2.2 and figure 1: delays 0, 1 ... Q-1. Defossez et al.
2024, arXiv:2410.00037 (Moshi), section 3.4.4: `moshi` delays. B batch, T frames, Q codebooks, S = T + D steps.

Where a stream has no code, at its start and its end, stands `pad`, an id that no code has (K in MusicGen). A model
shifts what it is given by one step as for text; it is no part of a pattern.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def musicgen(codebooks: int) -> tuple[int, ...]:
    """Each codebook one step behind the one before it."""
    return tuple(range(codebooks))


def moshi(codebooks: int, *, streams: int = 1, text: bool = False, acoustic: int = 1) -> tuple[int, ...]:
    """Of each speaker's Q codebooks the first, semantic, at once and the others `acoustic` steps later; text in front
    at once too. Moshi has text and two speakers of 8 codebooks: moshi(8, streams=2, text=True)."""
    return (0,) * text + (0, *[acoustic] * (codebooks - 1)) * streams


def delayed(codes: jax.Array, delays: Sequence[int], pad: int) -> jax.Array:
    """codes [B T Q] -> [B S Q]: step t of codebook q holds frame t - d_q, or `pad` where there is none."""
    frames = codes.shape[1]
    index = np.arange(steps(frames, _checked(codes, delays)))[:, None] - np.asarray(delays)
    picked = jnp.take_along_axis(jnp.asarray(codes), np.clip(index, 0, frames - 1)[None], axis=1)
    return jnp.where(counts(frames, delays), picked, pad)


def undelayed(codes: jax.Array, delays: Sequence[int]) -> jax.Array:
    """The inverse of `delayed`: [B S Q] -> [B T Q]."""
    frames = codes.shape[1] - max(_checked(codes, delays))
    if frames < 1:
        raise ValueError(f"delays up to {max(delays)} need more steps than that, got {codes.shape[1]}")
    index = np.arange(frames)[:, None] + np.asarray(delays)
    return jnp.take_along_axis(jnp.asarray(codes), index[None], axis=1)


def steps(frames: int, delays: Sequence[int]) -> int:
    """S."""
    return frames + max(delays)


def counts(frames: int, delays: Sequence[int]) -> np.ndarray:
    """bool [S Q], True where a step holds a code: what a loss counts, and what a sampler is asked for. Elsewhere a
    sampler writes `pad`."""
    frame = np.arange(steps(frames, delays))[:, None] - np.asarray(delays)
    return (frame >= 0) & (frame < frames)


def flattened(codes: jax.Array, num_codes: int | None = None) -> jax.Array:
    """[B T Q] -> [B T*Q], frame by frame. num_codes: K, where all codebooks share one vocabulary, in which code k of
    codebook q is q K + k; None: ids stay as they are."""
    codes = jnp.asarray(codes)
    if num_codes is not None:
        codes = codes + num_codes * jnp.arange(codes.shape[-1], dtype=codes.dtype)
    return codes.reshape(codes.shape[0], -1)


def unflattened(codes: jax.Array, codebooks: int, num_codes: int | None = None) -> jax.Array:
    """The inverse of `flattened`: [B T*Q] -> [B T Q]."""
    batch, length = codes.shape
    if length % codebooks:
        raise ValueError(f"codes must be whole frames of {codebooks} codebooks, got {length} codes")
    codes = jnp.asarray(codes).reshape(batch, -1, codebooks)
    return codes if num_codes is None else codes - num_codes * jnp.arange(codebooks, dtype=codes.dtype)


def _checked(codes: jax.Array, delays: Sequence[int]) -> Sequence[int]:
    if codes.ndim != 3 or codes.shape[-1] != len(delays) or min(delays) < 0:
        raise ValueError(
            f"codes must be [B T Q] and delays Q numbers, none below 0, got codes {list(codes.shape)} and delays "
            f"{list(delays)}"
        )
    return delays
