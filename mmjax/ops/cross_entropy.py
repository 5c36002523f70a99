"""Cross entropy of next tokens, without the table of logits where that would be large.

    softmax_cross_entropy   logits [... V] -> [...]: the specification
    linear_nll              the same of hidden @ head, [... D] and [D V] -> [...]; the log-probabilities of a text
    linear_cross_entropy    its weighted mean

N tokens, D width, V vocabulary. 4 x 2,048 tokens of a vocabulary of 128k are 4 GB of logits, and as much again for
their gradient. `linear_nll` makes the logits of a few rows at a time and keeps only each row's log-sum-exp; the
backward pass makes them again, for a few ids at a time (Wijmans et al. 2024, arXiv:2411.09009; attention does the same,
Dao et al. 2022, arXiv:2205.14135): one more product, and memory that no longer grows with N x V. On a mesh each device
works on its own rows with its slice of the vocabulary; the head's gradient is summed over devices once, at the end.

Label smoothing e is PyTorch's: the target is (1 - e) on the label and e / V on every id, the label's too.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.ops import choice, sharding

IGNORED = -100  # a label that doesn't count
CHUNK = 2**26  # logits that one device makes at a time: 256 MB in float32


def next_tokens(
    input_ids: jax.Array, attention_mask: jax.Array | None = None, segments: jax.Array | None = None
) -> jax.Array:
    """Labels [B T] of a text: at each position the id that follows, IGNORED where none does.

    attention_mask: bool [B T], False for padding. segments: int [B T], the document each token belongs to; the last
    token of one does not predict the first of the next.
    """
    follows = jnp.arange(input_ids.shape[1]) < input_ids.shape[1] - 1
    if attention_mask is not None:
        follows = follows & attention_mask & jnp.roll(attention_mask, -1, axis=1)
    if segments is not None:
        follows = follows & (segments == jnp.roll(segments, -1, axis=1))
    return jnp.where(follows, jnp.roll(input_ids, -1, axis=1), IGNORED)


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """logits [... V], labels [...] int -> float32 [...]; 0 where the label is IGNORED."""
    logits = logits.astype(jnp.float32)  # bfloat16's log-probabilities are off by more than 1 %
    right = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    target = (1 - label_smoothing) * right + label_smoothing * logits.mean(-1)
    return jnp.where(labels == IGNORED, 0.0, jax.nn.logsumexp(logits, axis=-1) - target)


def linear_cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    implementation: str | None = None,
) -> jax.Array:
    """Mean of `linear_nll` over the labels that count, or with weights [...] sum(w nll) / sum(w) over these -> []."""
    losses = linear_nll(hidden, head, labels, label_smoothing=label_smoothing, implementation=implementation)
    counts = (labels != IGNORED) if weights is None else jnp.where(labels == IGNORED, 0, weights)
    counts = counts.astype(jnp.float32)
    total = counts.sum()
    return (counts * losses).sum() / jnp.where(total == 0, 1, total)  # nothing counts: 0, and not 0 / 0


def linear_nll(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    implementation: str | None = None,
) -> jax.Array:
    """-log p(label) under softmax(hidden @ head): [... D], [D V], int [...] -> float32 [...]; 0 where IGNORED.

    Products are made in hidden's type and summed in float32. Divide `hidden` by a temperature to score with it.
    implementation: "reference" makes all logits at once, "chunked" a few rows at a time; None takes the first where
    the logits of one device are no more than a chunk. Gradients of "chunked" are first-order and reverse-mode.
    """
    if hidden.ndim < 2 or hidden.shape[:-1] != labels.shape or head.ndim != 2 or head.shape[0] != hidden.shape[-1]:
        raise ValueError(
            f"hidden must be [... D], head [D V] and labels [...], got {hidden.shape}, {head.shape} and {labels.shape}"
        )
    head = head.astype(hidden.dtype)
    rows, vocabulary = _split(labels.size, head.shape[1])
    if implementation is None:
        local = labels.size // sharding.shards(*rows) * (head.shape[1] // sharding.shards(*vocabulary))
        implementation = "reference" if local <= CHUNK else "chunked"
        choice.say(f"cross entropy of {labels.size} rows and {head.shape[1]} ids: {implementation}")
    if implementation == "reference":
        return softmax_cross_entropy(_dot(hidden, head), labels, label_smoothing=label_smoothing)
    if implementation != "chunked":
        raise ValueError(f"implementation must be None, 'reference' or 'chunked', got {implementation!r}")
    return _chunked(hidden.reshape(-1, hidden.shape[-1]), head, labels.ravel(), label_smoothing).reshape(labels.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(hidden, head, labels, smoothing):  # [N D], [D V], [N] -> [N]
    return _forward(hidden, head, labels, smoothing)[0]


def _forward(hidden, head, labels, smoothing):
    rows, vocabulary = _split(*labels.shape, head.shape[1])

    def local(hidden, head, labels):
        first, size = _slice_of(vocabulary, head)

        def one(chunk):  # [C D], [C] -> [C], [C]
            hidden, labels = chunk
            logits = _dot(hidden, head)
            highest = _over(vocabulary, jax.lax.pmax, logits.max(-1))
            total = highest + jnp.log(_over(vocabulary, jax.lax.psum, jnp.exp(logits - highest[:, None]).sum(-1)))
            mine = (labels >= first) & (labels < first + head.shape[1])
            right = jnp.take_along_axis(logits, jnp.where(mine, labels - first, 0)[:, None], -1)[:, 0]
            target = (1 - smoothing) * jnp.where(mine, right, 0)
            if smoothing:
                target = target + smoothing / size * logits.sum(-1)
            return total, jnp.where(labels == IGNORED, 0.0, total - _over(vocabulary, jax.lax.psum, target))

        total, losses = jax.lax.map(one, _chunks(head.shape[1], hidden, labels))
        return total.ravel()[: labels.size], losses.ravel()[: labels.size]

    total, losses = _on_each(local, (rows, vocabulary), (PartitionSpec(rows),) * 2)(hidden, head, labels)
    return losses, (hidden, head, labels, total)


def _backward(smoothing, residuals, cotangent):
    hidden, head, labels, total = residuals
    rows, vocabulary = _split(*labels.shape, head.shape[1])

    def local(hidden, head, labels, total, cotangent):
        first, size = _slice_of(vocabulary, head)
        weight = jnp.where(labels == IGNORED, 0, cotangent)[:, None]
        count = math.ceil(labels.size * head.shape[1] / CHUNK)
        width = math.ceil(head.shape[1] / count)

        def one(i, sums):  # all rows, some ids: their columns of the head's gradient are then done
            by_hidden, by_head = sums
            start = jnp.minimum(i * width, head.shape[1] - width)  # the last slice may begin inside of the one before
            columns = jax.lax.dynamic_slice_in_dim(head, start, width, 1)
            ids = first + start + jnp.arange(width)
            slope = jnp.exp(_dot(hidden, columns) - total[:, None])
            slope = slope - (1 - smoothing) * (ids == labels[:, None]) - smoothing / size
            slope = (slope * weight).astype(hidden.dtype)
            done = _dot(hidden.T, slope).astype(head.dtype)
            fresh = jnp.where(ids - first >= i * width, slope, 0)
            return by_hidden + _dot(fresh, columns.T), jax.lax.dynamic_update_slice_in_dim(by_head, done, start, 1)

        zero = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(head)
        by_hidden, by_head = jax.lax.fori_loop(0, count, one, zero)
        by_hidden = _over(vocabulary, jax.lax.psum, by_hidden)
        return by_hidden.astype(hidden.dtype), _over(rows, jax.lax.psum, by_head)

    outs = PartitionSpec(rows), PartitionSpec(None, vocabulary)
    by_hidden, by_head = _on_each(local, (rows, vocabulary), outs)(hidden, head, labels, total, cotangent)
    return by_hidden, by_head, None


_chunked.defvjp(_forward, _backward)


def _split(tokens: int, vocab_size: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes that the rows and the vocabulary are split over; none where they don't divide."""
    rows, vocabulary = sharding.axes(*sharding.BATCH), sharding.axes(sharding.TENSOR)
    return (
        rows if tokens % sharding.shards(*rows) == 0 else (),
        vocabulary if vocab_size % sharding.shards(*vocabulary) == 0 else (),
    )


def _on_each(run, axes, out_specs):
    """`run` on every device's rows, slice of the head (the second argument) and per-row values."""
    rows, vocabulary = axes
    names = sharding.axes(*jax.sharding.get_abstract_mesh().axis_names)
    if not names:
        return run

    def call(hidden, head, *of_rows):
        in_specs = (PartitionSpec(rows), PartitionSpec(None, vocabulary), *[PartitionSpec(rows)] * len(of_rows))
        each = jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, axis_names=set(names), check_vma=False)
        return each(hidden, head, *of_rows)

    return call


def _slice_of(vocabulary: tuple[str, ...], head: jax.Array):
    """The first id of this device's slice of the vocabulary, and the size of all of it."""
    if not vocabulary:
        return 0, head.shape[1]
    return jax.lax.axis_index(vocabulary) * head.shape[1], jax.lax.axis_size(vocabulary) * head.shape[1]


def _over(names: tuple[str, ...], collective, x: jax.Array) -> jax.Array:
    return collective(x, names) if names else x


def _chunks(vocab_size: int, hidden, labels):
    """Rows [N ...] -> [K C ...], K as few as CHUNK allows; the rows that fill the last one are IGNORED."""
    tokens = labels.shape[0]
    count = math.ceil(tokens * vocab_size / CHUNK)
    size = math.ceil(tokens / count)

    def cut(x, fill):
        x = jnp.pad(x, [(0, count * size - tokens)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return x.reshape(count, size, *x.shape[1:])

    return cut(hidden, 0), cut(labels, IGNORED)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:  # [... K], [K M] -> float32 [... M]
    if x.ndim > 2 and sharding.shards(sharding.SEQUENCE) == 1:  # 3 x faster on CPU, see nn.linear
        return _dot(x.reshape(-1, x.shape[-1]), y).reshape(*x.shape[:-1], y.shape[-1])
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
