"""How far a set of generated pictures is from a set of real ones, by what a judge sees of them, and by pixels.

    frechet     |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): Heusel et al. 2017, arXiv:1706.08500, eq. 6
    kernel      MMD^2 with the kernel (x . y / D + 1)^3, unbiased: Binkowski et al. 2018, arXiv:1801.01401, section 4
    neighbours  precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al.
                2020, arXiv:2002.09797)
    nearest     the training picture that a picture is nearest to in pixels: is it a copy?

N real and M generated rows, D features. All is NumPy in float64, a block of rows at a time, so that 1,500 pictures
against 12,000 fit in memory.

What they are worth. `frechet` is above 0 for two samples of one distribution, by about (D^2 + 5 D) / (2 N) near the
identity: only numbers of one N and one judge compare, beside what real pictures score. `kernel` has no such bias and
may be negative. Precision lets much pass that is no picture; recall and coverage see what is missing. None sees wrong
labels, and none sees copies.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

ROWS = 512  # that are compared with all others at once


# --- distances of distributions


class Moments(NamedTuple):
    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D D], of N - 1


def moments(x: np.ndarray) -> Moments:
    """Features [N D], N at least 2."""
    x = _rows(x)
    return Moments(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet(a: Moments, b: Moments) -> float:
    """The squared distance of two Gaussians. Symmetric products throughout, whose roots are real, so it is finite for
    singular covariances too (N < D)."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of one judge have one width, got {a.mean.shape[0]} and {b.mean.shape[0]}")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(_above_zero(values))) @ vectors.T
    between = np.sqrt(_above_zero(np.linalg.eigvalsh(root @ b.covariance @ root))).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * between
    return max(float(distance), 0.0)


def frechet_of(x: np.ndarray, y: np.ndarray) -> float:
    """Of features [N D] and [M D]."""
    return frechet(moments(x), moments(y))


def _above_zero(values: np.ndarray) -> np.ndarray:
    """Eigenvalues of what has none below 0. The root of what rounding leaves of a zero would be far from zero."""
    return np.where(values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps, values, 0.0)


class Kernel(NamedTuple):
    mean: float
    deviation: float  # of the subsets


def kernel(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, *, subsets: int = 50, size: int = 1_000) -> Kernel:
    """[N D], [M D]: the mean over subsets of `size` rows of each (at most N and M), drawn without replacement: what is
    published. `kernel_once` of all rows is what this comes to with ever more subsets."""
    x, y = _rows(x), _rows(y)
    size = min(size, len(x), len(y))
    drawn = [
        kernel_once(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return Kernel(float(np.mean(drawn)), float(np.std(drawn)))


def kernel_once(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of [n D] and [m D]; a row is not compared with itself."""

    def within(z: np.ndarray) -> float:
        k = (z @ z.T / z.shape[1] + 1) ** 3
        return (k.sum() - np.trace(k)) / (len(z) * (len(z) - 1))

    return float(within(x) + within(y) - 2 * np.mean((x @ y.T / x.shape[1] + 1) ** 3))


# --- neighbours


class Neighbours(NamedTuple):
    precision: float  # share of generated rows that lie in the ball of any real row
    recall: float  # share of real rows that lie in the ball of any generated row
    density: float  # real balls that a generated row lies in, over k; may be above 1
    coverage: float  # share of real rows whose ball holds a generated row


def neighbours(real: np.ndarray, made: np.ndarray, k: int = 5) -> Neighbours:
    """Features [N D] and [M D]; take M = N. A row's ball reaches to its k-th neighbour in its own set, and holds what
    is strictly nearer, as in the authors' package `prdc`."""
    real, made = _rows(real), _rows(made)
    if min(len(real), len(made)) <= k:
        raise ValueError(f"k={k} neighbours need more than {k} rows in each set, got {len(real)} and {len(made)}")
    real_radius, made_radius = radii(real, k), radii(made, k)
    inside = np.zeros(len(made))  # real balls that a generated row lies in
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, apart in _blocks(real, made):  # [n M]
        ball = apart < real_radius[rows, None]
        inside += ball.sum(0)
        covered[rows] = ball.any(1)
        recalled[rows] = (apart < made_radius).any(1)
    return Neighbours(
        float(np.mean(inside > 0)), float(recalled.mean()), float(inside.mean() / k), float(covered.mean())
    )


def coverage(made: np.ndarray, real: np.ndarray) -> float:
    return neighbours(real, made).coverage


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """[N D] -> [N] squared distance to the k-th nearest other row."""
    # The row itself, at distance 0, is one of the k + 1.
    return np.concatenate([np.partition(apart, k, axis=1)[:, k] for _, apart in _blocks(x, x)])


def _blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances [n M] of some rows of x to all of y."""
    squares = (y**2).sum(1)
    for first in range(0, len(x), ROWS):
        rows = slice(first, min(first + ROWS, len(x)))
        length = (x[rows] ** 2).sum(1)[:, None] + squares
        apart = length - 2 * x[rows] @ y.T
        # Equal rows are at 0, and not at what rounding leaves: whether 0 < 0 must not depend on it.
        yield rows, np.where(apart > 1e-12 * length, apart, 0.0)


# --- copies


class Nearest(NamedTuple):
    row: np.ndarray  # [N] of the training pictures
    distance: np.ndarray  # [N] root of the mean squared difference of values in [0, 1]


def nearest(images: np.ndarray, train: np.ndarray, own: np.ndarray | None = None) -> Nearest:
    """uint8 [N H W 3], [M H W 3]; own [N]: the row of `train` that a picture is itself, and that does not count."""
    flat = rearrange(train, "m h w c -> m (h w c)").astype(np.float32)
    squares = np.einsum("mv,mv->m", flat, flat, dtype=np.float64)
    found = []
    for first in range(0, len(images), ROWS):
        some = rearrange(images[first : first + ROWS], "n h w c -> n (h w c)").astype(np.float32)
        apart = squares - 2 * (some @ flat.T)  # less |image|^2, the same for all
        if own is not None:
            apart[np.arange(len(some)), own[first : first + ROWS]] = np.inf
        found.append(apart.argmin(1))
    row = np.concatenate(found)
    # Float32 is good enough to choose by, not to subtract in.
    squared = (rearrange(images, "n h w c -> n (h w c)").astype(np.float64) - flat[row]) ** 2
    return Nearest(row, np.sqrt(squared.mean(1)) / 255)


def nearest_or_mirrored(images: np.ndarray, train: np.ndarray) -> Nearest:
    """`nearest`, where a picture may be mirrored: generators see both ways."""
    straight, mirrored = nearest(images, train), nearest(images[:, :, ::-1], train)
    nearer = mirrored.distance < straight.distance
    return Nearest(*(np.where(nearer, *both) for both in zip(mirrored, straight, strict=True)))


# --- how sure a number is


def deviation(
    metric: Callable[..., float], sets: Sequence[np.ndarray], rng: np.random.Generator, times: int = 5
) -> float:
    """The standard deviation of metric(*sets), by `times` random halves of each set's rows, without replacement.

    The variance over halves is that of the whole, (1 - 1/2) / (1/2) times (Efron and Tibshirani 1993, section 11.7).
    Rows drawn twice, as in the bootstrap proper, would be neighbours at distance 0.
    """
    halves = [[one[rng.permutation(len(one))[: len(one) // 2]] for one in sets] for _ in range(times)]
    return float(np.std([metric(*half) for half in halves], ddof=1))


def _rows(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be [N D] of at least 2 rows, got {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinite numbers: look at the pictures, or at what the judge was given")
    return x
