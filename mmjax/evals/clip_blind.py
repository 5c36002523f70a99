"""CLIP-blind pairs: pictures that CLIP takes for the same, and an encoder that learned without words does not.

Source: Tong et al. 2024, arXiv:2401.06209, section 2: cosine above 0.95 in CLIP and below 0.6 in DINOv2. The original
does not publish how it searched.

    seen [N D], other [N E] of the same N pictures -unit rows, blocks of the upper triangle-> pairs i < j with
        cosine(seen) > above and cosine(other) < below, both strict, the widest gap between the two cosines first

0.95 and 0.6 belong to encoders of hundreds of millions of pictures; in the cosines of small ones they may mean nothing.
`quantiles` therefore gives the thresholds that a share of all pairs lies above and below: "nearer than all but 1 % in
one, further than the median in the other".

Cosines are float32 and never N x N: bfloat16 has steps of 0.004 at 0.95, which would decide about pairs. As published,
near copies are not sorted out; `groups` may leave out pairs that show the same thing. N pictures, D E widths, P pairs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.evals import features
from mmjax.models import features as mof
from mmjax.ops import images as image_ops
from mmjax.report import pictures

BLOCK = 2048  # rows and columns that are compared at once: 16 MB of cosines a side
SHOWN = 24  # pairs of a picture
HALF = 16  # bits of a float32


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Cosines, both strict. The defaults are the published ones."""

    above: float = 0.95  # in the encoder that is blind
    below: float = 0.6  # in the other one


PUBLISHED = Thresholds()


class BlindPairs(NamedTuple):
    rows: np.ndarray  # [P 2] int, first < second; the widest gap between the cosines first, then by row
    cosines: np.ndarray  # [P 2] float32, in the blind encoder and in the other
    thresholds: Thresholds
    found: int  # pairs that pass; P is less where there was a limit
    pictures: int  # that are in one of them
    compared: int  # pairs that were looked at
    vectors: tuple[str, str]  # what was compared

    def __str__(self) -> str:
        (seen, other), (above, below) = self.vectors, dataclasses.astuple(self.thresholds)
        return (
            f"{self.found:,} of {self.compared:,} pairs, with {self.pictures:,} pictures, have a cosine above "
            f"{above:.3f} in {seen} and below {below:.3f} in {other}"
        )


# Which vector of an encoder: (model, images) -> [B D], for `vectors_of`


def embedding(model: nn.Module, images: jax.Array) -> jax.Array:
    """What the model itself calls the image's embedding: of CLIP after the projection, of DINO the class token."""
    return model.encode_image(images)


def class_token(model: nn.Module, images: jax.Array) -> jax.Array:
    """Of the last layer, after the norm and before a projection."""
    return mof.tower_of(model)(image_ops.to_float(images, *mof.colours_of(model))).pooler_output


def patch_mean(model: nn.Module, images: jax.Array) -> jax.Array:
    """The mean of the patches after the last block, before its norm."""
    return mof.patches(model, images).mean(1)


def vectors_of(model: nn.Module, variables: Any, images: np.ndarray, vector: Callable = embedding) -> np.ndarray:
    """images [N H W 3] uint8, or float already normalised -> [N D] float32."""
    return features.encode(model, variables, {"images": images}, vector)


# The search


def mine(
    seen: np.ndarray,
    other: np.ndarray,
    thresholds: Thresholds = PUBLISHED,
    *,
    limit: int | None = None,
    groups: np.ndarray | None = None,
    vectors: tuple[str, str] = ("one encoder", "the other"),
    block: int = BLOCK,
) -> BlindPairs:
    """seen [N D] of the encoder that may be blind, other [N E] of the one that it is compared with; of any length.

    limit: how many pairs are kept; all are counted. groups: [N] int, pairs of the same group are left out.
    vectors: names for the report of what was taken of either encoder.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all pairs, got {limit}")
    sides, groups = _checked(seen, other, groups)
    kept, found, compared, touched = [], 0, 0, np.zeros(len(groups), bool)
    for first, second, cosines, admitted in _blocks(sides, groups, block):
        blind = admitted & (cosines[0] > np.float32(thresholds.above)) & (cosines[1] < np.float32(thresholds.below))
        compared += int(admitted.sum())
        i, j = np.nonzero(blind)
        found += len(i)
        touched[i + first] = touched[j + second] = True
        kept.append(_Found(np.stack([i + first, j + second], 1), np.stack([one[i, j] for one in cosines], 1)))
        if limit is not None and sum(len(one.rows) for one in kept) > limit + block:
            kept = [_best(kept, limit)]
    best = _best(kept, limit)
    return BlindPairs(best.rows, best.cosines, thresholds, found, int(touched.sum()), compared, vectors)


def quantiles(
    seen: np.ndarray,
    other: np.ndarray,
    above: float,
    below: float,
    *,
    groups: np.ndarray | None = None,
    block: int = BLOCK,
) -> Thresholds:
    """The `above` quantile of all pairs' cosines in `seen`, and the `below` quantile in `other`, for `mine`.

    Each is a cosine that occurs: the smallest that at least this share of the pairs does not exceed. Found exactly in
    two passes over the blocks, by the upper and then by the lower half of the numbers' bits.
    """
    for name, share in (("above", above), ("below", below)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be a share of the pairs, above 0 and at most 1, got {share}")
    sides, groups = _checked(seen, other, groups)
    upper = np.zeros((2, 2**HALF), np.int64)
    for _, _, cosines, admitted in _blocks(sides, groups, block):
        upper += [np.bincount(_ordered(one[admitted]) >> HALF, minlength=2**HALF) for one in cosines]
    count = int(upper[0].sum())
    if not count:
        raise ValueError("no pair is left to take quantiles of: all pictures are of one group")
    # Rounded first: 0.99 * 300 is a hair above 297.
    ranks = [max(int(np.ceil(round(share * count, 6))), 1) for share in (above, below)]
    heads = [int(np.searchsorted(np.cumsum(one), rank)) for one, rank in zip(upper, ranks, strict=True)]
    ranks = [rank - int(one[:head].sum()) for one, rank, head in zip(upper, ranks, heads, strict=True)]
    lower = np.zeros((2, 2**HALF), np.int64)
    for _, _, cosines, admitted in _blocks(sides, groups, block):
        for side, head in enumerate(heads):
            bits = _ordered(cosines[side][admitted])
            lower[side] += np.bincount(bits[bits >> HALF == head] & (2**HALF - 1), minlength=2**HALF)
    tails = [int(np.searchsorted(np.cumsum(one), rank)) for one, rank in zip(lower, ranks, strict=True)]
    return Thresholds(*(_cosine((head << HALF) | tail) for head, tail in zip(heads, tails, strict=True)))


class _Found(NamedTuple):
    rows: np.ndarray  # [P 2]
    cosines: np.ndarray  # [P 2]


def _best(parts: Sequence[_Found], limit: int | None) -> _Found:
    """The widest gaps first; of equal ones the lower rows."""
    rows, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
    gap = cosines[:, 0].astype(np.float64) - cosines[:, 1]
    order = np.lexsort((rows[:, 1], rows[:, 0], -gap))[:limit]
    return _Found(rows[order], cosines[order])


def _checked(seen: Any, other: Any, groups: Any) -> tuple[list[jax.Array], np.ndarray]:
    """Rows of length 1, and a group for each; a group of its own where none are given."""
    sides = [np.asarray(one).astype(np.float32) for one in (seen, other)]
    if any(one.ndim != 2 for one in sides) or len(sides[0]) != len(sides[1]) or len(sides[0]) < 2:
        shapes = " and ".join(str(list(one.shape)) for one in sides)
        raise ValueError(f"seen and other must be [N D] and [N E] of the same N pictures, at least two, got {shapes}")
    for name, one in zip(("seen", "other"), sides, strict=True):
        length = np.linalg.norm(one, axis=1)
        bad = np.flatnonzero(~np.isfinite(length) | (length == 0))
        if len(bad):
            raise ValueError(
                f"{name}: {len(bad)} of {len(one)} rows are zero or not finite and have no direction, the first is row "
                f"{bad[0]}"
            )
    groups = np.arange(len(sides[0])) if groups is None else np.asarray(groups)
    if groups.shape != (len(sides[0]),):
        raise ValueError(f"groups must be [{len(sides[0])}], one for each picture, got {list(groups.shape)}")
    return [jnp.asarray(features.unit(one)) for one in sides], groups


def _blocks(
    sides: list[jax.Array], groups: np.ndarray, block: int
) -> Iterator[tuple[int, int, list[np.ndarray], np.ndarray]]:
    """First row, first column, cosines of both sides [b b], and which of them are pairs to look at [b b] bool."""
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    count = len(groups)
    block = min(block, count)
    padded = [jnp.pad(one, ((0, -count % block), (0, 0))) for one in sides]  # all blocks of one size: one compile
    for first in range(0, count, block):
        for second in range(first, count, block):
            cosines = [np.asarray(_cosines(one, first, second, block)) for one in padded]
            i, j = first + np.arange(block)[:, None], second + np.arange(block)
            within = (i < j) & (j < count)
            same = groups[np.minimum(i, count - 1)] == groups[np.minimum(j, count - 1)]
            yield first, second, cosines, within & ~same


@partial(jax.jit, static_argnames="block")
def _cosines(x: jax.Array, first: int, second: int, block: int) -> jax.Array:
    rows, columns = (jax.lax.dynamic_slice_in_dim(x, start, block) for start in (first, second))
    return jnp.einsum("nd,md->nm", rows, columns, precision="highest")


def _ordered(cosines: np.ndarray) -> np.ndarray:
    """float32 -> uint32 in the same order: of negative numbers all bits are turned, of others the sign's."""
    bits = (cosines + np.float32(0)).view(np.uint32)  # -0 becomes 0, its equal
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def _cosine(bits: int) -> float:
    """The inverse of `_ordered`."""
    bits = np.uint32(bits)
    return float(np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits).astype(np.uint32).view(np.float32))


# A picture for the report


def gallery(pairs: BlindPairs, images: np.ndarray) -> np.ndarray:
    """images [N H W 3] uint8 -> [h w 3]: the most blind pairs, each under its two cosines."""
    if not len(pairs.rows):
        return pictures.captioned(np.full((1, 600, 3), 255, np.uint8), "No pair is CLIP-blind at these thresholds.")
    rows = []
    for pair, cosines in zip(pairs.rows[:SHOWN], pairs.cosines, strict=False):
        text = " / ".join(f"{cosine:.2f}" for cosine in cosines)
        rows.append(pictures.Row(text, images[pair], np.zeros(2, bool)))
    columns = min(len(rows), 4)
    sheet = pictures.gallery(rows, columns)
    return pictures.captioned(sheet, f"Cosine in {pairs.vectors[0]} / in {pairs.vectors[1]}.")
