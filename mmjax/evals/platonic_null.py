"""What would chance give? Nulls, p-values and intervals for the metrics of `platonic`.

Source: Groeger, Wen and Brbic 2026, arXiv:2602.14486, algorithms 1 and 2 (calibrated-similarity on PyPI). Scores of
independent sides grow with widths, with k / N and with the number of layers that are searched; permuting the rows of
one side keeps all that and takes away what the sides have in common.

    orders [K N] -rows of y permuted, the same in all its layers-> scores of each pair of layers -aggregate-> null [K]

    p           (1 + how many of the null reach the score) / (K + 1)
    threshold   the score that chance exceeds with probability alpha
    calibrated  0 at the threshold, 1 at the metric's largest score

Nothing is computed again for a permutation but indices: neighbours get other numbers, kernels are read in another
order. A permutation exchanges rows freely, which is right for rows drawn independently; for several captions of one
picture, or frames of one film, pass orders that move them together.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evals import platonic
from mmjax.evals.platonic import Best, Metric
from mmjax.ops import hsic

INFLATED = 0.1  # biased CKA that independent features must be expected to reach before `warnings` speaks
LARGEST_KERNEL = 16384  # rows up to which an N x N matrix is made: 1 GB


class Calibrated(NamedTuple):
    """One metric of two sides."""

    metric: Metric
    scores: np.ndarray  # [L M] of the pairs of layers
    score: float  # what is reported: the aggregate of them
    pair: tuple[int, int] | None  # the layers of the highest score
    null: np.ndarray  # [K] the aggregate of each permutation
    threshold: float
    p: float
    calibrated: float

    @property
    def last(self) -> float:
        """The score of the last layers, which no search has chosen."""
        return float(self.scores[-1, -1])


@partial(jax.jit, static_argnames=("count", "permutations"))
def orders(rng: jax.Array, count: int, permutations: int) -> jax.Array:
    """-> int32 [K N], every row a random order of all N."""
    rows = jnp.arange(count, dtype=jnp.int32)
    return jax.lax.map(lambda key: jax.random.permutation(key, rows), jax.random.split(rng, permutations))


@partial(jax.jit, static_argnames=("compare", "aggregate"))
def null_scores(compare: Callable, a: Any, b: Any, orders: jax.Array, aggregate: Callable = jnp.max) -> jax.Array:
    """Stacked views of both sides, orders [K N] -> [K]."""

    def one(order: jax.Array) -> jax.Array:
        moved = jax.vmap(lambda view: view.permuted(order))(b)
        return aggregate(platonic.pairs(compare, a, moved))

    return jax.lax.map(one, orders)


def p_value(score: float, null: np.ndarray) -> float:
    """Never 0: the order that was observed is one of those that chance could have given. NaN is never below."""
    return float((1 + np.sum(~(null < score))) / (len(null) + 1))


def threshold(score: float, null: np.ndarray, alpha: float) -> float:
    """The 1 - alpha quantile, as an order statistic of the null and the score together."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    together = np.sort(np.append(null, np.asarray(score, null.dtype)))
    place = int(np.ceil((1 - alpha) * len(together))) - 1
    return float(together[min(max(place, 0), len(together) - 1)])


def above(score: float, threshold: float, largest: float) -> float:
    return float(np.clip((score - threshold) / max(largest - threshold, 1e-12), 0, 1))


def measure(
    metrics: Iterable[Metric], x: Sequence[jax.Array], y: Sequence[jax.Array], orders: jax.Array, *,
    alpha: float = 0.05, aggregate: Callable = jnp.max, best: Callable[[np.ndarray], Best] = platonic.best,
) -> list[Calibrated]:  # fmt: skip
    """Each metric of two sides, L x [N D] and M x [N E] from `platonic.prepare`, with the null of its aggregate.

    aggregate: of the scores of all pairs of layers [L M] -> []; the maximum is what the paper reports. orders: [K N].
    """
    count = len(x[0])
    if any(one.shape[0] != count for one in (*x, *y)) or orders.ndim != 2 or orders.shape[1] != count:
        rows = sorted({one.shape[0] for one in (*x, *y)})
        raise ValueError(f"both sides and the orders must be of the same rows, got {rows} and {list(orders.shape)}")
    sides, found = {}, []
    for metric in metrics:
        if isinstance(metric.view, platonic.Similarity) and count > LARGEST_KERNEL:
            raise ValueError(
                f"{metric.name} needs all {count} x {count} similarities for its null; at most {LARGEST_KERNEL} rows "
                "fit: leave it out, or take fewer rows (platonic.cka alone needs no such matrix)"
            )
        if metric.view not in sides:
            sides = {metric.view: [platonic.views(metric.view, side) for side in (x, y)]}  # only one is kept: N x N
        found.append(_calibrate(metric, *sides[metric.view], orders, alpha, aggregate, best))
        _check_scores(found[-1], x, y)
    return found


def _calibrate(metric: Metric, a: Any, b: Any, orders, alpha: float, aggregate: Callable, best: Callable) -> Calibrated:
    # What was observed goes through the same program as the null, or equal scores would differ by rounding.
    observed = jnp.arange(orders.shape[1], dtype=orders.dtype)[None]
    score, *null = np.asarray(null_scores(metric.compare, a, b, jnp.concatenate([observed, orders]), aggregate))
    null = np.array(null, np.float32)
    scores = np.asarray(platonic.pairs(metric.compare, a, b))
    bound, p = threshold(score, null, alpha), p_value(score, null)
    found = best(scores)
    score = found.score if aggregate is jnp.max else float(score)
    return Calibrated(metric, scores, score, found.pair, null, bound, p, above(score, bound, metric.largest))


def _check_scores(found: Calibrated, x: Sequence[jax.Array], y: Sequence[jax.Array]) -> None:
    bad = np.argwhere(~np.isfinite(found.scores))
    if not len(bad):
        return
    sides = (("x", x), ("y", y))
    alike = [
        f"layer {i} of {name}" for name, side in sides for i, one in enumerate(side) if bool((one == one[0]).all())
    ]
    why = f"all rows are alike in {', '.join(alike)}" if alike else "a score of a side with itself is not above 0"
    raise ValueError(
        f"{found.metric.name} is not a number for layer {bad[0][0]} of x and layer {bad[0][1]} of y: {why}; leave such "
        "layers out, or the metric"
    )


# How sure is the score itself?


@partial(jax.jit, static_argnames=("view", "compare"))
def _scores_of_rows(view: Callable, compare: Callable, x: jax.Array, y: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.lax.map(lambda chosen: compare(view(x[chosen]), view(y[chosen])), rows)  # [R m] -> [R]


def interval(
    metric: Metric, x: jax.Array, y: jax.Array, rng: jax.Array, *, draws: int = 100, level: float = 0.95
) -> tuple[float, float]:
    """Where the score of other N rows of the same kind would lie: x [N D], y [N E] of one pair of layers.

    Half of the rows are drawn `draws` times without replacement, and the spread of these scores is put around that of
    all rows. A bootstrap would draw rows twice, and a row's nearest neighbour would be its own copy. N / 2 drawn from N
    scatter as N from a large population do; for metrics of neighbours, whose k is a larger share of the half, the
    interval was 1.3 to 1.9 times too wide in simulations.
    """
    if draws < 2 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 2 and level between 0 and 1, got {draws} and {level}")
    count = x.shape[0]
    halves = orders(rng, count, draws)[:, : count // 2]
    drawn = np.asarray(_scores_of_rows(metric.view, metric.compare, x, y, halves))
    low, high = np.quantile(drawn - drawn.mean(), [(1 - level) / 2, (1 + level) / 2])
    score = float(metric(x, y))
    return score + float(low), min(score + float(high), metric.largest)


# When are there too few rows?


@jax.jit
def expected_cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over all orders of biased linear CKA, x [N D], y [N E]: tr(K') tr(L') / ((N - 1) |K'| |L'|) -> [].

    About D / (D + N) for independent Gaussian features of width D on both sides.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    parts = hsic.linear(x, y, unbiased=False)
    return jnp.sum(x**2) * jnp.sum(y**2) / ((x.shape[0] - 1) * jnp.sqrt(parts.first * parts.second))


def warnings(x: Sequence[jax.Array], y: Sequence[jax.Array], k: int) -> list[str]:
    """What a reader of the scores must know, in sentences; prepared layers of both sides."""
    said, count = [], x[0].shape[0]
    widths = max(one.shape[1] for one in x), max(one.shape[1] for one in y)
    chance = float(expected_cka(x[-1], y[-1]))
    if chance > INFLATED:
        said.append(
            f"{count} rows are few for widths {widths[0]} and {widths[1]}: between the last layers cka is {chance:.2f} "
            "by chance alone; compare with the null, or read unbiased_cka"
        )
    if k / (count - 1) > INFLATED:
        said.append(
            f"k = {k} is {k / (count - 1):.0%} of {count} rows: neighbours are shared by chance that often; "
            "take more rows or a smaller k"
        )
    pairs = len(x) * len(y)
    if pairs > 1:
        said.append(
            f"scores are the best of {pairs} pairs of layers; the null searches the same pairs, `last` searches none"
        )
    return said
