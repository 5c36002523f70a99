"""The numbers of minyoungg/platonic-rep (at dcd76ba), quirk by quirk; `platonic` says what is meant.

    prepare     one bound for outliers from the whole tensor (a list: from each layer), or the mean of bounds of rows
    metrics     `lcs_knn` is a length from 0 to k; CKA and CKNNA have 1e-6 under the fraction, so that a side and itself
                score a little less than 1
    best        a search over layers begins at 0: if no pair scores more, the score is 0 and there is no pair
    half        features rounded to bfloat16 before rows are given length 1, and so are inner products: the default of
                `platonic.Alignment`. Most neighbours then have equals; here the lower row comes first, there any

There, too: `measure_alignment` hands (y, x) to the search, so its pairs are (layer of y, layer of x), and `cycle_knn`,
which is not symmetric, has its sides swapped; a set of models against itself is measured one way only, though `cknna`
is not quite symmetric either. Not here: SVCCA's noise and random singular vectors (this one gives what
they scatter around), and `cknna` with `topk=None`, `distance_agnostic` or `unbiased=False`, which fail or count each
row as its own neighbour. Ties in float32 go to the lower row; there to any.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evals import platonic

EPSILON = 1e-6


def prepare(features: Any, share: float = platonic.CLAMP, *, exact: bool = True) -> list[jax.Array]:
    """As `platonic.prepare`. exact=False: what `measure_alignment` does unless told --precise."""
    if exact or share == 1:
        return platonic.prepare(features, share)
    layers = platonic.layers_of(features)
    if isinstance(features, list | tuple):
        layers = [clamp_by_rows(one, share) for one in layers]
    else:
        layers = list(np.moveaxis(clamp_by_rows(np.stack(layers, axis=1), share), 1, 0))
    return [platonic.unit(jnp.asarray(one)) for one in layers]


def clamp_by_rows(x: np.ndarray, share: float) -> np.ndarray:
    """[N ...] -> [N ...]: the bound is the mean over rows of the quantile of their absolute values."""
    bound = np.quantile(np.abs(x).reshape(len(x), -1), share, axis=1).mean().astype(np.float32)
    return np.clip(x, -bound, bound)


def half(features: Any, share: float = platonic.CLAMP) -> list[jax.Array]:
    """-> bfloat16 rows of length 1 up to rounding, for metrics of neighbours."""
    layers = platonic.layers_of(features)
    if isinstance(features, list | tuple):
        layers = [platonic.clamp(one, share) for one in layers]
    else:
        layers = list(platonic.clamp(np.stack(layers), share))
    layers = [jnp.asarray(one).astype(jnp.bfloat16) for one in layers]
    lengths = [jnp.linalg.norm(one.astype(jnp.float32), axis=-1, keepdims=True) for one in layers]
    return [one / jnp.maximum(length, 1e-12).astype(one.dtype) for one, length in zip(layers, lengths, strict=True)]


def alignment(a: platonic.Kernel, b: platonic.Kernel) -> jax.Array:
    cross = platonic.hsic.of_centred(a.entries, b.entries)
    return platonic.hsic.HSIC(cross, a.norm, b.norm).ratio(EPSILON)


def local_alignment(a: platonic.Neighbours, b: platonic.Neighbours) -> jax.Array:
    return platonic.local_hsic(a, b).ratio(EPSILON)


def length_in_order(a: platonic.Neighbours, b: platonic.Neighbours) -> jax.Array:
    return platonic.in_order(a, b) * a.indices.shape[1]


QUIRKS = {
    platonic.alignment: alignment,
    platonic.local_alignment: local_alignment,
    platonic.in_order: length_in_order,
}


def metrics(k: int = 10, dim: int = 10) -> tuple[platonic.Metric, ...]:
    """As `platonic.metrics`, by the same names."""
    return tuple(
        dataclasses.replace(
            metric,
            compare=QUIRKS.get(metric.compare, metric.compare),
            largest=float(k) if metric.compare is platonic.in_order else 1.0,
        )
        for metric in platonic.metrics(k, dim)
    )


def best(scores: np.ndarray) -> platonic.Best:
    """[L M] -> the first pair above 0 that no other exceeds."""
    found = platonic.best(scores)
    return found if found.score > 0 else platonic.Best(0.0, None)
