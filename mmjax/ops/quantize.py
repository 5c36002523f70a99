"""Vectors to codes and back: by the nearest of a codebook, or by rounding, where the codes are points of a grid.

    nearest, lookup                 z [... D], codes [K D] -> ids [...] -> quantised [... D]
    straight_through, rotated       forward the quantised vectors, backward to z
    commitment_loss, codebook_loss  van den Oord et al. 2017, arXiv:1711.00937, eq. 3, third and second term
    begin, moved, revived           a codebook that follows its vectors as moving averages, without any gradient
    fsq, fsq_ids, fsq_codes         each number rounded to one of a few levels: Mentzer et al. 2023, arXiv:2309.15505
    signs, sign_ids, sign_codes     each number rounded to -1 or 1: Yu et al. 2023, arXiv:2310.05737 (LFQ)
    usage                           how many of the codes are in use

D width, K codes, N vectors: the product of the leading axes. What is decided or averaged is float32, and products are
exact to it: in bfloat16, in which accelerators multiply by default, other codes are the nearest.
Codes of unit length (Yu et al. 2022, arXiv:2110.04627) are the same functions on `unit(z)` and `unit(codes)`: of these
the nearest by distance is the nearest by angle.

Of the N x K distances there is never more than a block of codes in memory. Blocks are of codes and not of vectors, so
that each device of a mesh keeps the vectors that it has, and looks through the codebook. Sums over vectors are over the
GLOBAL batch; they are products, not scattered additions, which GPUs do in another order every time.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmjax.ops import sharding

CELLS = 2**24  # distances of a block on one device: 64 MB
State = dict[str, jax.Array]  # "codes" [K D], and what they are made of: "count" [K], "total" [K D]


def unit(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """[... D] -> float32 of length 1; what is shorter than epsilon stays shorter than 1."""
    x = x.astype(jnp.float32)
    # Of the sum and not of its root, whose slope at zero is infinite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), epsilon**2))


def nearest(z: jax.Array, codes: jax.Array, *, block: int | None = None) -> jax.Array:
    """z [... D], codes [K D] -> int32 [...], the id of the code at the least Euclidean distance; of equals the lowest.

    block: codes that are looked at together; None: as many as CELLS allows. Sends no gradient. NaN or infinite vectors
    have no nearest code: an error where values are known, id 0 under jit.
    """
    if codes.ndim != 2 or z.shape[-1:] != codes.shape[1:] or not codes.shape[0]:
        raise ValueError(
            f"z must be [... D] and codes [K D] of the same D, got {list(z.shape)} and {list(codes.shape)}"
        )
    for name, x in (("z", z), ("codes", codes)):
        if _known(x) and not np.isfinite(np.asarray(x, np.float32)).all():
            raise ValueError(f"{name} holds NaN or infinite numbers; look for the step that made them, or a lower rate")
    z, codes = (jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (z, codes))

    def distances(squares: jax.Array, codes: jax.Array) -> jax.Array:  # less |z|^2, the same for all codes
        return squares - 2 * jnp.einsum("...d,kd->...k", z, codes, precision="highest")

    def step(best: tuple, block: tuple) -> tuple[tuple, None]:
        first, *rest = block
        apart = distances(*rest)
        ids, least = jnp.argmin(apart, -1).astype(jnp.int32), apart.min(-1)
        nearer = least < best[0]  # of equals, the earlier block's stays
        return (jnp.where(nearer, least, best[0]), jnp.where(nearer, first + ids, best[1])), None

    squares, count = jnp.sum(codes**2, -1), codes.shape[0]
    block = block or _block(z.size // z.shape[-1], count)
    if block >= count:
        return jnp.argmin(distances(squares, codes), -1).astype(jnp.int32)
    none = (jnp.full(z.shape[:-1], jnp.inf), jnp.zeros(z.shape[:-1], jnp.int32))
    blocks = (_blocks(jnp.arange(count, dtype=jnp.int32), block, 0)[:, 0], _blocks(squares, block, jnp.inf))
    return jax.lax.scan(step, none, (*blocks, _blocks(codes, block, 0)))[0][1]


def lookup(codes: jax.Array, ids: jax.Array) -> jax.Array:
    """codes [K D], ids int [...] in [0, K) -> [... D]. Others are an error where values are known, NaN under jit."""
    _check_ids(ids, codes.shape[0])
    return codes.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def straight_through(z: jax.Array, quantised: jax.Array) -> jax.Array:
    """[... D] twice -> the value of `quantised`, up to a rounding, and the gradient of z."""
    return z + jax.lax.stop_gradient(quantised - z)


def rotated(z: jax.Array, quantised: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """The value of `quantised`, up to rounding; the gradient turns with the rotation, and scales with the lengths, that
    take z there: Fifty et al. 2024, arXiv:2410.06424, section 4.2."""
    lengths = [jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), epsilon) for x in (z, quantised)]
    start, end = z / lengths[0], quantised / lengths[1]
    between, scale = unit(start + end, epsilon), lengths[1] / lengths[0]
    start, end, between, scale = jax.lax.stop_gradient((start, end, between, scale))

    def along(direction: jax.Array) -> jax.Array:
        return jnp.sum(z * direction, -1, keepdims=True)

    return (z - 2 * along(between) * between + 2 * along(start) * end) * scale


def commitment_loss(z: jax.Array, quantised: jax.Array) -> jax.Array:
    """Mean square over ALL elements, channels too; pulls z to its code."""
    return jnp.mean(jnp.square(z.astype(jnp.float32) - jax.lax.stop_gradient(quantised)))


def codebook_loss(z: jax.Array, quantised: jax.Array) -> jax.Array:
    """The same number; pulls codes to what chose them."""
    return jnp.mean(jnp.square(quantised - jax.lax.stop_gradient(z.astype(jnp.float32))))


def usage(ids: jax.Array, num_codes: int) -> dict[str, jax.Array]:
    """ids [...] -> "perplexity", 1 if all are the same and K if all codes come equally often, and "codes_used", the
    share of codes that come at all. Of a batch: neither can say more than its number of vectors allows."""
    share = jnp.bincount(ids.ravel(), length=num_codes) / ids.size
    return {"perplexity": jnp.exp(jax.scipy.special.entr(share).sum()), "codes_used": jnp.mean(share > 0)}


# --- a codebook of moving averages: appendix A.1 of van den Oord et al.


def begin(codes: jax.Array) -> State:
    """[K D] -> each code as if one vector had chosen it so far, which it equals."""
    # Three arrays: a step that is given its state away (donated) may not hold one twice.
    codes = jnp.asarray(codes, jnp.float32)
    return {"codes": codes, "count": jnp.ones(codes.shape[0]), "total": jnp.array(codes)}


def tally(z: jax.Array, ids: jax.Array, num_codes: int, *, block: int | None = None) -> tuple[jax.Array, jax.Array]:
    """z [... D], ids [...] -> how many vectors of the global batch chose each code [K], and their sums [K D]."""
    z, ids = jax.lax.stop_gradient(z.astype(jnp.float32)).reshape(-1, z.shape[-1]), ids.reshape(-1)

    def of(some: jax.Array) -> tuple[jax.Array, jax.Array]:  # ids of codes [k]
        chosen = (ids[:, None] == some).astype(jnp.float32)
        return chosen.sum(0), jnp.einsum("nk,nd->kd", chosen, z, precision="highest")

    everything, block = jnp.arange(num_codes), block or _block(ids.size, num_codes)
    if block >= num_codes:
        return of(everything)
    count, total = jax.lax.map(of, _blocks(everything, block, -1))
    return rearrange(count, "b k -> (b k)")[:num_codes], rearrange(total, "b k d -> (b k) d")[:num_codes]


def moved(state: State, z: jax.Array, ids: jax.Array, decay: float, *, epsilon: float = 1e-5) -> State:
    """The next state: eqs. 6-8 of appendix A.1, over the global batch, whose z [... D] chose ids [...].

    Counts are smoothed (Laplace), so that what nothing chooses fades without a division by zero. As in
    vector-quantize-pytorch, counts begin at 1 and averages are not corrected for their start, as Adam's are.
    """
    found = tally(z, ids, state["codes"].shape[0])
    count, total = (
        decay * old + (1 - decay) * new for old, new in zip((state["count"], state["total"]), found, strict=True)
    )
    everything = count.sum()
    smooth = (count + epsilon) / (everything + count.shape[0] * epsilon) * everything
    return {"codes": total / smooth[:, None], "count": count, "total": total}


def revived(state: State, z: jax.Array, rng: jax.Array, threshold: float) -> State:
    """Codes whose count is below `threshold` start again where a vector of the batch z [... D] is.

    threshold: vectors of the global batch that choose a code in a mean step. Which vectors is drawn from `rng` among
    those of the global batch, none twice, so all devices find the same; with fewer vectors than dead codes, the rest
    waits for the next step.
    """
    z = jax.lax.stop_gradient(z.astype(jnp.float32)).reshape(-1, z.shape[-1])
    dead = state["count"] < threshold
    place = jnp.cumsum(dead) - 1  # among the dead
    drawn = jax.random.permutation(rng, z.shape[0])[: dead.shape[0]]
    vectors = z[drawn[jnp.minimum(place, drawn.shape[0] - 1)]]  # [K D]
    dead = dead & (place < drawn.shape[0])

    def instead(new: Any, old: jax.Array) -> jax.Array:
        return jnp.where(dead.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    new = {"codes": vectors, "count": threshold, "total": threshold * vectors}
    return {name: instead(new[name], state[name]) for name in new}


def kmeans(z: jax.Array, num_codes: int, rng: jax.Array, *, steps: int = 20) -> jax.Array:
    """z [N D], N at least K -> [K D], means of what is nearest to them: Lloyd 1982, doi 10.1109/TIT.1982.1056489. A
    good place for codes to begin. Starts at vectors drawn from `rng`; a mean that nothing is nearest to is drawn again.
    """
    z = jnp.asarray(z, jnp.float32)
    if z.ndim != 2 or z.shape[0] < num_codes:
        raise ValueError(f"k-means needs vectors [N D] with N at least num_codes={num_codes}, got {list(z.shape)}")

    def drawn(rng: jax.Array) -> jax.Array:
        return z[jax.random.choice(rng, z.shape[0], (num_codes,), replace=False)]

    def step(codes: jax.Array, rng: jax.Array) -> tuple[jax.Array, None]:
        count, total = tally(z, nearest(z, codes), num_codes)
        return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], drawn(rng)), None

    first, rest = jax.random.split(rng)
    return jax.lax.scan(step, drawn(first), jax.random.split(rest, steps))[0]


# --- finite scalar quantisation: no codebook, nothing to learn, nothing that dies


def fsq(z: jax.Array, levels: Sequence[int], *, epsilon: float = 1e-3) -> jax.Array:
    """z [... D], the number of levels of each of the D -> float32 [... D] in [-1, 1], multiples of 1 / (L // 2), with
    the gradient of what was rounded.

    As vector-quantize-pytorch; the authors' code has 1 - epsilon, and tan where tanh has to be undone.
    """
    _check_levels(levels, z.shape[-1])
    levels, even = np.asarray(levels), np.asarray(levels) % 2 == 0
    half, offset = np.float32((levels - 1) * (1 + epsilon) / 2), np.where(even, np.float32(0.5), np.float32(0))
    bounded = jnp.tanh(z.astype(jnp.float32) + np.arctanh(offset / half)) * half - offset
    return straight_through(bounded, jnp.round(bounded)) / (levels // 2).astype(np.float32)


def fsq_ids(quantised: jax.Array, levels: Sequence[int]) -> jax.Array:
    """What `fsq` gave [... D] -> int32 [...] in [0, product of levels); the first number counts fastest."""
    half = np.asarray(levels) // 2
    digits = jnp.round(quantised * half.astype(np.float32)).astype(jnp.int32) + half
    return jnp.sum(digits * _basis(levels), -1, dtype=jnp.int32)


def fsq_codes(ids: jax.Array, levels: Sequence[int]) -> jax.Array:
    """The inverse of fsq_ids."""
    _check_ids(ids, math.prod(levels))
    levels = np.asarray(levels)
    digits = ids[..., None] // _basis(levels) % levels
    return (digits - levels // 2).astype(jnp.float32) / (levels // 2).astype(np.float32)


# --- signs


def signs(z: jax.Array) -> jax.Array:
    """[... D] -> float32 [... D] of -1 and 1 with the gradient of z; 0 becomes -1."""
    return straight_through(z.astype(jnp.float32), jnp.where(z > 0, 1.0, -1.0))


def sign_ids(z: jax.Array) -> jax.Array:
    """[... D], D at most 31 -> int32 [...] in [0, 2^D); the first number is the highest bit."""
    return jnp.sum((z > 0) * _bits(z.shape[-1]), -1, dtype=jnp.int32)


def sign_codes(ids: jax.Array, dim: int) -> jax.Array:
    """The inverse of sign_ids: [...] -> [... dim]."""
    _check_ids(ids, 2**dim)
    return jnp.where(ids[..., None] & _bits(dim), 1.0, -1.0)


def sign_entropies(z: jax.Array, *, sharpness: float = 100.0, block: int | None = None) -> tuple[jax.Array, jax.Array]:
    """z [... D] -> the mean entropy of a vector's choice among the 2^D codes, and the entropy of the mean choice, over
    the global batch. LFQ wants the first to be low and the second high (eq. 5).

    A choice is softmax(2 sharpness z . code). Bits are independent, so the first needs no codebook. The second does,
    and goes through it in blocks, which the backward pass computes once more.
    """
    logits = 4 * sharpness * z.astype(jnp.float32).reshape(-1, z.shape[-1])  # of 1 against -1
    rest, count = jax.nn.softplus(logits), 2 ** z.shape[-1]
    each = jnp.sum(rest - logits * jax.nn.sigmoid(logits), -1)

    @jax.checkpoint
    def of(ids: jax.Array) -> jax.Array:  # [k] -> the mean probability of each code
        ones = (ids[:, None] & _bits(z.shape[-1]) > 0).astype(jnp.float32)
        log = jnp.einsum("nd,kd->nk", logits, ones, precision="highest") - rest.sum(-1)[:, None]
        return jnp.exp(log).mean(0)

    everything, block = jnp.arange(count), block or _block(logits.shape[0], count)
    mean = of(everything) if block >= count else jax.lax.map(of, _blocks(everything, block, 0)).reshape(-1)[:count]
    return each.mean(), -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)))  # 0 log 0 would send NaN back


# --- helpers


def _basis(levels: Sequence[int]) -> np.ndarray:
    return np.concatenate([[1], np.cumprod(levels)[:-1]]).astype(np.int32)


def _bits(dim: int) -> np.ndarray:
    if not 1 <= dim <= 31:
        raise ValueError(f"ids are int32, so signs must be of 1 to 31 numbers, got {dim}")
    return 2 ** np.arange(dim - 1, -1, -1, dtype=np.int32)


def _block(vectors: int, codes: int) -> int:
    return max(1, min(codes, CELLS * sharding.shards(*sharding.BATCH) // max(vectors, 1)))


def _blocks(x: jax.Array, size: int, fill: Any) -> jax.Array:
    """[K ...] -> [blocks size ...], filled up with `fill`."""
    x = jnp.pad(x, ((0, -x.shape[0] % size), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)
    return rearrange(x, "(b s) ... -> b s ...", s=size)


def _known(x: Any) -> bool:
    """Whether its values can be looked at here."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def _check_ids(ids: Any, count: int) -> None:
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"ids of codes must be whole numbers, got {ids.dtype}")
    if not _known(ids) or not ids.size:
        return
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= count:
        raise ValueError(f"ids must be in [0, {count}), got {least} to {most}; were they made with another codebook?")


def _check_levels(levels: Sequence[int], dim: int) -> None:
    if len(levels) != dim or min(levels, default=0) < 3 or math.prod(levels) >= 2**31:
        raise ValueError(
            f"levels must be {dim} numbers, one for each of z's last axis, all at least 3 (for 2 take `signs`), with a "
            f"product below 2^31, got {list(levels)}"
        )
