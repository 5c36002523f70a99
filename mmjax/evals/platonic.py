"""How alike are two representations of the same things? The metrics of the Platonic Representation Hypothesis.

Source: Huh et al. 2024, arXiv:2405.07987, section 2 and its appendices on metrics; what they leave open from
minyoungg/platonic-rep, whose quirks `platonic_official` keeps. CKA: Kornblith et al. 2019, arXiv:1905.00414. SVCCA:
Raghu et al. 2017, arXiv:1706.05806.

    layers [N D], [N L D] or L x [N D] -clamp, length 1-> L x [N D] -view-> neighbours | kernel | directions
    views of both sides -compare-> a score for each pair of layers [L M] -> the best pair

    mutual_knn         how many of a row's k nearest are the same on both sides
    cycle_knn          do I get back to a row by its neighbours on one side and theirs on the other? not symmetric
    lcs_knn            as mutual_knn, and in the same order, maybe with gaps
    edit_distance_knn  as mutual_knn, and at the same places
    cka                do all pairs of rows have like cosines, or Gaussians of distances (sigma)? high for wide random
                       features; `unbiased` is 0 on average there
    cknna              unbiased CKA that counts only pairs that are near on both sides; swapped sides differ a little
    svcca              do the directions of most variance correlate?

All are at most 1, and 1 for a side and itself (but cycle_knn: a row that none of its neighbours has as a neighbour is
not come back to). They do not change if a side is rotated or its rows are scaled together (SVCCA sees columns, which a
rotation mixes). What independent sides score depends on N, k and widths, so that a score means nothing alone:
`platonic_null` says what chance gives. N rows, the same on both sides, D E widths, L M layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import hsic, neighbours
from mmjax.ops.neighbours import Neighbours

CLAMP = 0.95  # of the absolute values stay as they are: a few huge entries would decide every cosine

# From features to rows that can be compared


def layers_of(features: Any) -> list[np.ndarray]:
    """[N D], [N L D] or a list of [N D] of any widths -> float32 list of [N D]."""
    if isinstance(features, list | tuple):
        found = [np.asarray(one) for one in features]
    else:
        array = np.asarray(features)
        found = list(np.moveaxis(array, 1, 0)) if array.ndim == 3 else [array]
    wrong = [list(one.shape) for one in found if one.ndim != 2 or one.shape[0] != found[0].shape[0]]
    if wrong or not found:
        raise ValueError(f"features must be [N D], [N L D] or a list of [N D] of one N, got {wrong or 'an empty list'}")
    for number, one in enumerate(found):
        if not np.isfinite(one.astype(np.float32)).all():
            bad = int((~np.isfinite(one.astype(np.float32)).all(axis=1)).sum())
            raise ValueError(f"layer {number} of the features has {bad} rows with numbers that are not finite")
    return [np.asarray(one, np.float32) for one in found]


def clamp(x: np.ndarray, share: float) -> np.ndarray:
    """[...] -> [...]: absolute values above the `share` quantile of them all are cut to it. 1 leaves all."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of values that are not clamped must be above 0 and at most 1, got {share}")
    if share == 1:
        return x
    place = int(share * x.size)
    bound = np.partition(np.abs(x), place, axis=None)[place]
    return np.clip(x, -bound, bound)


def unit(x: jax.Array) -> jax.Array:  # [... D] -> [... D] of length 1; rows of zeros stay
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def prepare(features: Any, share: float = CLAMP) -> list[jax.Array]:
    """Outliers are cut, then rows are given length 1. [N L D] has one bound for all layers, a list one for each."""
    layers = layers_of(features)
    if not isinstance(features, list | tuple):
        layers = list(clamp(np.stack(layers), share))
    else:
        layers = [clamp(one, share) for one in layers]
    return [unit(jnp.asarray(one)) for one in layers]


# Views: what of a side's features [N D] is compared. Each is permuted by an order [N] of its rows


class Kernel(NamedTuple):
    entries: jax.Array  # [N N] centred
    norm: jax.Array  # [] HSIC with itself

    def permuted(self, order: jax.Array) -> "Kernel":
        return Kernel(self.entries[order][:, order], self.norm)


class Directions(NamedTuple):
    vectors: jax.Array  # [N dim] orthonormal columns

    def permuted(self, order: jax.Array) -> "Directions":
        return Directions(self.vectors[order])


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The k nearest of each row; never an N x N matrix where N is large."""

    k: int

    def __call__(self, x: jax.Array) -> Neighbours:
        return neighbours.nearest(x, self.k)


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Every row with every other: N x N."""

    sigma: float | None = None  # of a Gaussian of the distance; None: the inner product
    unbiased: bool = False

    def __call__(self, x: jax.Array) -> Kernel:
        _check_rows(x, hsic.LEAST)
        entries = hsic.centred(kernel_of(self.sigma)(x, x), unbiased=self.unbiased)
        return Kernel(entries, hsic.of_centred(entries, entries))


@dataclasses.dataclass(frozen=True)
class Principal:
    """Left singular vectors of the `dim` largest singular values of the columns, each scaled to deviation 1."""

    dim: int

    def __call__(self, x: jax.Array) -> Directions:
        if not 1 <= self.dim <= min(x.shape[0] - 1, x.shape[1]):
            raise ValueError(f"dim must be from 1 to the lesser of N - 1 and D, got {self.dim} for {list(x.shape)}")
        x = x - x.mean(0)
        x = x / (jnp.std(x, axis=0, ddof=1) + 1e-8)
        return Directions(jnp.linalg.svd(x, full_matrices=False)[0][:, : self.dim])


def kernel_of(sigma: float | None) -> hsic.Kernel:
    return hsic.inner_product if sigma is None else _gaussian(sigma)


@functools.cache  # the same object each time, so that nothing compiles twice
def _gaussian(sigma: float) -> hsic.Kernel:
    return partial(hsic.gaussian, sigma=sigma)


# Comparing views of two sides


def shared(a: Neighbours, b: Neighbours) -> jax.Array:
    return neighbours.overlap(a.indices, b.indices).mean()


def cycles(a: Neighbours, b: Neighbours) -> jax.Array:
    return neighbours.returns(a.indices, b.indices).mean()


def in_order(a: Neighbours, b: Neighbours) -> jax.Array:
    return neighbours.common_order(a.indices, b.indices).mean() / a.indices.shape[1]


def in_place(a: Neighbours, b: Neighbours) -> jax.Array:
    return 1 - neighbours.edits(a.indices, b.indices).mean() / a.indices.shape[1]


def local_alignment(a: Neighbours, b: Neighbours) -> jax.Array:
    return local_hsic(a, b).ratio()


def local_hsic(a: Neighbours, b: Neighbours) -> hsic.HSIC:
    _check_rows(a.indices, hsic.LEAST)
    return hsic.HSIC(*(neighbours.local_hsic(*pair) for pair in ((a, b), (a, a), (b, b))))


def alignment(a: Kernel, b: Kernel) -> jax.Array:
    return hsic.HSIC(hsic.of_centred(a.entries, b.entries), a.norm, b.norm).ratio()


def correlation(a: Directions, b: Directions) -> jax.Array:
    """Columns are orthonormal with mean 0, so the canonical correlations are singular values of their products."""
    products = jnp.einsum("nd,ne->de", a.vectors, b.vectors, precision="highest")
    return jnp.linalg.svd(products, compute_uv=False).mean()


# The metrics on features x [N D], y [N E] whose rows have length 1 (see `prepare`) -> []


def mutual_knn(x: jax.Array, y: jax.Array, k: int = 10) -> jax.Array:
    """The share of a row's k nearest that are the same on both sides. Independent sides: k / (N - 1) on average."""
    return _score(Nearest(k), shared, x, y)


def cycle_knn(x: jax.Array, y: jax.Array, k: int = 10) -> jax.Array:
    """The share of rows that are among the x-neighbours of one of their y-neighbours."""
    return _score(Nearest(k), cycles, x, y)


def lcs_knn(x: jax.Array, y: jax.Array, k: int = 10) -> jax.Array:
    """The longest common subsequence of the two lists of neighbours, as a share of k."""
    return _score(Nearest(k), in_order, x, y)


def edit_distance_knn(x: jax.Array, y: jax.Array, k: int = 10) -> jax.Array:
    """1 - Levenshtein's distance of the two lists of neighbours / k."""
    return _score(Nearest(k), in_place, x, y)


def cknna(x: jax.Array, y: jax.Array, k: int = 10) -> jax.Array:
    """Unbiased CKA of pairs that are near on both sides; k at least 2, and with k = N - 1 it is the unbiased CKA."""
    if k < 2:
        raise ValueError(f"CKNNA needs k of at least 2, got {k}")
    return _score(Nearest(k), local_alignment, x, y)


def cka(x: jax.Array, y: jax.Array, *, sigma: float | None = None, unbiased: bool = False) -> jax.Array:
    """sigma: of a Gaussian of the distance; None: cosines. Never holds an N x N matrix where N is large."""
    x, y = _checked(x, y)
    _check_rows(x, hsic.LEAST)
    return cka_parts(x, y, sigma, unbiased).ratio()


def cka_parts(x: jax.Array, y: jax.Array, sigma: float | None, unbiased: bool) -> hsic.HSIC:
    small = max(x.shape[1], y.shape[1]) <= x.shape[0]  # D x E is less than N x N
    if sigma is None and small:
        return hsic.linear(x, y, unbiased=unbiased)
    return hsic.streamed(x, y, kernel_of(sigma), unbiased=unbiased)


def svcca(x: jax.Array, y: jax.Array, dim: int = 10) -> jax.Array:
    """Mean canonical correlation of the first `dim` singular directions."""
    return _score(Principal(dim), correlation, x, y)


def _score(view: Callable, compare: Callable, x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = _checked(x, y)
    return _compare(compare, _view(view, x), _view(view, y))


@partial(jax.jit, static_argnames="view")
def _view(view: Callable, x: jax.Array) -> Any:
    return view(x)


@partial(jax.jit, static_argnames="compare")
def _compare(compare: Callable, a: Any, b: Any) -> jax.Array:
    return compare(a, b)


def _checked(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must be [N D] and [N E] of the same N, got {list(x.shape)} and {list(y.shape)}")
    return x, y


def _check_rows(x: jax.Array, least: int) -> None:
    if x.shape[0] < least:
        raise ValueError(f"at least {least} rows are needed, got {x.shape[0]}")


# Metrics as values, for tables, searches over layers and nulls


@dataclasses.dataclass(frozen=True)
class Metric:
    name: str
    view: Callable  # [N D] -> a view; metrics of one view share it
    compare: Callable  # views of two sides -> []
    largest: float = 1.0  # what a side scores with itself

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return _score(self.view, self.compare, x, y)


def metrics(k: int = 10, dim: int = 10) -> tuple[Metric, ...]:
    near = Nearest(k)
    return (
        Metric(f"mutual_knn@{k}", near, shared),
        Metric(f"cycle_knn@{k}", near, cycles),
        Metric(f"lcs_knn@{k}", near, in_order),
        Metric(f"edit_distance_knn@{k}", near, in_place),
        Metric(f"cknna@{k}", near, local_alignment),
        Metric("unbiased_cka", Similarity(unbiased=True), alignment),
        Metric("cka", Similarity(), alignment),
        Metric("rbf_cka", Similarity(sigma=1.0), alignment),
        Metric(f"svcca@{dim}", Principal(dim), correlation),
    )


def views(view: Callable, layers: Sequence[jax.Array]) -> Any:
    """L x [N D] -> the view of each, stacked along a new first axis [L ...]."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *(_view(view, one) for one in layers))


@partial(jax.jit, static_argnames="compare")
def pairs(compare: Callable, a: Any, b: Any) -> jax.Array:
    """Stacked views of L and M layers -> [L M]."""
    return jax.vmap(lambda one: jax.vmap(lambda other: compare(one, other))(b))(a)


class Best(NamedTuple):
    score: float
    pair: tuple[int, int] | None  # (layer of x, layer of y), from 0


def best(scores: np.ndarray) -> Best:
    """[L M] -> the highest, the first of equals in the order of rows."""
    place = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return Best(float(scores[place]), (int(place[0]), int(place[1])))


def layer_scores(metric: Metric, x: Sequence[jax.Array], y: Sequence[jax.Array]) -> np.ndarray:
    """L x [N D] and M x [N E] of rows of length 1 -> [L M]; `best` finds the pair that the paper reports."""
    _checked(x[0], y[0])
    return np.asarray(pairs(metric.compare, views(metric.view, x), views(metric.view, y)))
