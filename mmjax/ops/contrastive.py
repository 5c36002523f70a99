"""Contrastive losses over the global batch: CLIP's softmax and SigLIP's sigmoid.

    clip_loss     Radford et al. 2021 (arXiv:2103.00020, figure 3): mean of the cross entropies of rows and of columns
    siglip_loss   Zhai et al. 2023 (arXiv:2303.15343, algorithm 1): -1/N sum_ij log sigmoid(z_ij logit_ij)

N rows of the global batch, E width; logit_ij = scale * image_i . text_j (+ bias). Row i and row j are positives of each
other where labels[i] == labels[j]; without labels only i == j. CLIP's target is uniform over a row's positives.

    reference   the N x N matrix, cut by GSPMD as it sees fit; the specification
    gather      each device holds its own rows and a copy of all others, and works through them in tiles
    ring        each device holds its own rows and one other device's, which travel around; for a huge N

`gather` and `ring` differ only in how the others come by. Both meet each pair twice, as a row and as a
column, so that nothing but embeddings travels, and write the gradient by hand: differentiating through a ring would
keep every block that came by. They differentiate once, in reverse mode. Products are exact to float32 whatever the
platform's default, since a scale of 100 turns bfloat16's rounding of a cosine into 0.2; bfloat16 embeddings stay cheap.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.ops import choice, sharding

TILE = 2**21  # logits that `gather` makes at a time: 8 MB
RING_FROM = 2**18  # global batch from which a copy of all rows (0.6 GB at E = 1,152 in bfloat16) costs too much


def clip_loss(
    image_embeds: jax.Array,
    text_embeds: jax.Array,
    logit_scale: jax.Array,
    *,
    labels: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """L2-normalised embeds [N E], the factor of the cosines (already exponentiated), int labels [N] -> mean loss []."""
    return _loss(_CLIP, image_embeds, text_embeds, logit_scale, jnp.zeros(()), labels, implementation)


def siglip_loss(
    image_embeds: jax.Array,
    text_embeds: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    *,
    labels: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """L2-normalised embeds [N E], factor (already exponentiated) and bias of the logits, int labels [N] -> loss []:
    summed over texts, mean over images."""
    return _loss(_SIGLIP, image_embeds, text_embeds, logit_scale, logit_bias, labels, implementation)


class _Side(NamedTuple):
    """One tower's rows, with what the other tower has to know of them."""

    embeds: jax.Array  # [n E]
    labels: jax.Array  # [n]
    total: jax.Array | None = None  # [n] CLIP: log-sum-exp of the row's logits over the whole batch
    positives: jax.Array | None = None  # [n] CLIP: how many rows of the whole batch carry its label


class _Kind(NamedTuple):
    """What tells the two losses apart."""

    reference: Callable  # logits [N N], positive [N N] -> loss
    measure: Callable  # this device's images and texts, to_logits, sweep -> sum of losses, both sides with statistics
    slope: Callable  # logits [n m], row side, column side -> N x derivative of the loss by the logits [n m]


def _loss(kind, images, texts, scale, bias, labels, implementation):
    _check(images, texts, labels)
    scale, bias = jnp.reshape(scale, ()).astype(jnp.float32), jnp.reshape(bias, ()).astype(jnp.float32)
    labels = jnp.arange(images.shape[0]) if labels is None else labels
    shards = sharding.shards(*sharding.BATCH)
    if implementation is None:
        implementation = "ring" if images.shape[0] >= RING_FROM else "gather"
        if shards == 1 or images.shape[0] % shards:
            implementation = "reference"
        choice.say(f"contrastive loss of {images.shape} over {shards} batch shards: {implementation}")
    if implementation == "reference":
        return kind.reference(scale * _dot(images, texts) + bias, labels[:, None] == labels)
    if implementation not in _SWEEPS:
        raise ValueError(f"implementation must be None, 'reference' or one of {list(_SWEEPS)}, got {implementation!r}")
    if not sharding.axes(*sharding.BATCH) or images.shape[0] % shards:
        raise ValueError(
            f"implementation={implementation!r} needs a mesh (jax.set_mesh) with an axis of {sharding.BATCH} and a "
            f"batch that divides over its {shards} batch shards, got a batch of {images.shape[0]}"
        )
    return _by_hand(kind, implementation, images, texts, scale, bias, labels)


# The losses


def _clip_reference(logits, positive):
    target = positive / positive.sum(-1)  # rows and columns have the same: `positive` is symmetric
    rows = jax.nn.logsumexp(logits, axis=-1) - (target * logits).sum(-1)
    columns = jax.nn.logsumexp(logits, axis=0) - (target * logits).sum(0)
    return (rows + columns).mean() / 2


def _clip_measure(images, texts, to_logits, sweep):
    def totals(rows, others):
        def step(carry, block):
            highest, total, correct, positives = carry
            logits, positive = to_logits(rows.embeds, block.embeds), _positive(rows, block)
            higher = jnp.maximum(highest, logits.max(-1))
            total = total * jnp.exp(highest - higher) + jnp.exp(logits - higher[:, None]).sum(-1)
            correct = correct + jnp.where(positive, logits, 0).sum(-1)
            return higher, total, correct, positives + positive.sum(-1)

        zero = jnp.zeros(rows.labels.shape)
        highest, total, correct, positives = sweep(step, (zero - jnp.inf, zero, zero, zero), others)
        return rows._replace(total=highest + jnp.log(total), positives=positives), correct / positives

    texts, by_text = totals(texts, images)
    # One sweep after the other, here and below, or `gather` would hold copies of all images and all texts at once.
    texts, images = jax.lax.optimization_barrier((texts, images))
    images, by_image = totals(images, texts)
    return (images.total - by_image + texts.total - by_text).sum() / 2, images, texts


def _clip_slope(logits, rows, columns):
    softmax = jnp.exp(logits - rows.total[:, None]) + jnp.exp(logits - columns.total)
    return softmax / 2 - _positive(rows, columns) / rows.positives[:, None]


def _siglip_reference(logits, positive):
    return jax.nn.softplus(jnp.where(positive, -logits, logits)).sum(-1).mean()


def _siglip_measure(images, texts, to_logits, sweep):
    def step(total, block):
        logits = to_logits(images.embeds, block.embeds)
        return total + jax.nn.softplus(jnp.where(_positive(images, block), -logits, logits)).sum(-1)

    return sweep(step, jnp.zeros(images.labels.shape), texts).sum(), images, texts


def _siglip_slope(logits, rows, columns):
    return jnp.where(_positive(rows, columns), -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))


_CLIP = _Kind(_clip_reference, _clip_measure, _clip_slope)
_SIGLIP = _Kind(_siglip_reference, _siglip_measure, _siglip_slope)


# How the rows of all devices come by: carry = step(carry, block) for blocks that together are every row of the batch


def _gather(step: Callable, carry, side: _Side, names: tuple[str, ...]):
    """Tiles of a copy of all rows."""
    shards, rows = jax.lax.axis_size(names), side.labels.size
    together = max(k for k in range(1, shards + 1) if shards % k == 0 and (k == 1 or k * rows**2 <= TILE))
    everything = jax.lax.all_gather(side, names, tiled=True)
    tiles = jax.tree.map(lambda x: x.reshape(shards // together, together * rows, *x.shape[1:]), everything)
    return jax.lax.scan(lambda carry, tile: (step(carry, tile), None), carry, tiles)[0]


def _ring(step: Callable, carry, side: _Side, names: tuple[str, ...]):
    """Each device's rows in turn, handed on from neighbour to neighbour while they are worked on."""
    shards = jax.lax.axis_size(names)
    neighbours = [(i, (i + 1) % shards) for i in range(shards)]

    def body(state, _):
        carry, block = state
        coming = jax.lax.ppermute(block, names, neighbours)
        return (step(carry, block), coming), None

    (carry, last), _ = jax.lax.scan(body, (carry, side), length=shards - 1)
    return step(carry, last)


_SWEEPS = {"gather": _gather, "ring": _ring}


# Value and gradient, each device on its own rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_hand(kind, implementation, images, texts, scale, bias, labels):
    return _forward(kind, implementation, images, texts, scale, bias, labels)[0]


def _forward(kind, implementation, images, texts, scale, bias, labels):
    rows, names = PartitionSpec(sharding.axes(*sharding.BATCH)), sharding.axes(*sharding.BATCH)

    def local(images, texts, scale, bias, labels):
        sweep = lambda step, carry, side: _SWEEPS[implementation](step, carry, side, names)  # noqa: E731
        to_logits = lambda x, y: scale * _dot(x, y) + bias  # noqa: E731
        total, images, texts = kind.measure(_Side(images, labels), _Side(texts, labels), to_logits, sweep)
        return jax.lax.optimization_barrier((jax.lax.psum(total, names), images, texts))  # see _clip_measure

    placed = (rows, rows, PartitionSpec(), PartitionSpec(), rows)
    total, *sides = _on_each(local, placed, (PartitionSpec(), rows, rows))(images, texts, scale, bias, labels)
    return total / images.shape[0], (*sides, scale, bias)


def _backward(kind, implementation, residuals, cotangent):
    rows, names = PartitionSpec(sharding.axes(*sharding.BATCH)), sharding.axes(*sharding.BATCH)

    def local(images, texts, scale, bias):
        def pull(own, others):  # N x derivative by own.embeds / scale, by scale, by bias
            def step(carry, block):
                cosines = _dot(own.embeds, block.embeds)
                slope = kind.slope(scale * cosines + bias, own, block)
                by_own = _mix(slope.astype(block.embeds.dtype), block.embeds)
                return jax.tree.map(jnp.add, carry, (by_own, (slope * cosines).sum(-1), slope.sum(-1)))

            zero = jnp.zeros(own.labels.shape)
            start = (jnp.zeros(own.embeds.shape), zero, zero)
            return _SWEEPS[implementation](step, start, others, names)

        by_images, by_scale, by_bias = pull(images, texts)
        by_images, images, texts = jax.lax.optimization_barrier((by_images, images, texts))
        by_texts, _, _ = pull(texts, images)
        return by_images * scale, by_texts * scale, jax.lax.psum((by_scale.sum(), by_bias.sum()), names)

    images, texts, scale, bias = residuals
    placed = (rows, rows, PartitionSpec(), PartitionSpec())
    by_images, by_texts, (by_scale, by_bias) = _on_each(local, placed, (rows, rows, PartitionSpec()))(*residuals)
    mean = cotangent / images.labels.size
    by_images, by_texts = (x * mean for x in (by_images, by_texts))
    return (
        by_images.astype(images.embeds.dtype),
        by_texts.astype(texts.embeds.dtype),
        by_scale * mean,
        by_bias * mean,
        None,  # labels
    )


_by_hand.defvjp(_forward, _backward)


def _on_each(run: Callable, in_specs, out_specs) -> Callable:
    names = sharding.axes(*jax.sharding.get_abstract_mesh().axis_names)
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, axis_names=set(names), check_vma=False)


def _positive(rows: _Side, columns: _Side) -> jax.Array:
    return rows.labels[:, None] == columns.labels  # [n m]


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:  # [n E], [m E] -> float32 [n m]
    return jnp.einsum("ne,me->nm", x, y, precision="highest", preferred_element_type=jnp.float32)


def _mix(weights: jax.Array, y: jax.Array) -> jax.Array:  # [n m], [m E] -> float32 [n E]
    return jnp.einsum("nm,me->ne", weights, y, precision="highest", preferred_element_type=jnp.float32)


def _check(images: jax.Array, texts: jax.Array, labels: jax.Array | None) -> None:
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(f"image and text embeds must both be [N E], got {images.shape} and {texts.shape}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be [N] = ({images.shape[0]},), one for each pair, got {labels.shape}")
