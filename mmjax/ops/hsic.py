"""HSIC: do two kernels call the same pairs of rows alike? The stuff that CKA is made of.

Sources: Gretton et al. 2005 (biased, without its 1/(N-1)^2, as Kornblith et al. 2019, arXiv:1905.00414, leave it out);
Song et al. 2012, JMLR 13, eq. 5 (unbiased); the form by centred kernels is Szekely and Rizzo 2014, arXiv:1310.2926.

    biased     sum_ij of K' o L',  K' = H K H, H = 1 - 1/N
    unbiased   sum_ij of K' o L' / (N (N-3)),  K' without its diagonal, centred so that every row sums to 0

    definition(K, L)       from two N x N kernels, as the sources write it; they need not be symmetric
    centred(K)             the K' above: two of them and a sum give HSIC, and permuting rows is indexing
    linear(x, y)           from features with the kernel x x^T; D x E products, no N x N
    streamed(x, y, ...)    any kernel, ROWS x N of it at a time; N x N is never held

N rows, D E widths. Both sums are differences of large numbers where rows share a large mean; here every kernel is
centred before anything is multiplied, so float32 is enough.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

ROWS = 1024  # of a kernel that `streamed` holds at a time
LEAST = 4  # rows that the unbiased estimate needs

Kernel = Callable[[jax.Array, jax.Array], jax.Array]  # [n D], [m D] -> [n m]


class HSIC(NamedTuple):
    """Of two kernels, and of each with itself."""

    cross: jax.Array  # []
    first: jax.Array  # []
    second: jax.Array  # []

    def ratio(self, epsilon: float = 0.0) -> jax.Array:
        """CKA: Kornblith et al. 2019, eq. 4. 0 / 0 where one kernel is constant."""
        return self.cross / (jnp.sqrt(self.first * self.second) + epsilon)


def definition(K: jax.Array, L: jax.Array, *, unbiased: bool) -> jax.Array:  # [N N], [N N] -> []
    n = K.shape[0]
    if not unbiased:
        H = jnp.eye(n) - 1 / n
        return jnp.einsum("ij,jk,kl,li->", K, H, L, H, precision="highest")
    K, L = (jnp.where(jnp.eye(n, dtype=bool), 0, x) for x in (K, L))
    trace, middle = jnp.sum(K * L.T), jnp.vdot(K.sum(0), L.sum(1))
    return (trace + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * middle / (n - 2)) / (n * (n - 3))


def centred(K: jax.Array, *, unbiased: bool) -> jax.Array:
    """K [N N] symmetric -> K' [N N], scaled so that sum(K' o L') is HSIC."""
    n = K.shape[0]
    if not unbiased:
        mean = K.mean(0)
        return K - mean - mean[:, None] + mean.mean()
    own = jnp.eye(n, dtype=bool)
    K = jnp.where(own, 0, K - K.mean())  # a constant changes nothing but rounding
    total = K.sum(0)
    K = K - (total + total[:, None]) / (n - 2) + total.sum() / ((n - 1) * (n - 2))
    return jnp.where(own, 0, K) * (n * (n - 3)) ** -0.5


def of_centred(K: jax.Array, L: jax.Array) -> jax.Array:  # [N N], [N N] -> []
    return jnp.einsum("ij,ij->", K, L, precision="highest")


def inner_product(x: jax.Array, y: jax.Array) -> jax.Array:  # [n D], [m D] -> [n m]
    return jnp.einsum("nd,md->nm", x, y, precision="highest")


def gaussian(x: jax.Array, y: jax.Array, sigma: float = 1.0) -> jax.Array:  # [n D], [m D] -> [n m]
    """exp(-|x - y|^2 / (2 sigma^2))."""
    square = jnp.sum(x**2, -1)[:, None] + jnp.sum(y**2, -1) - 2 * inner_product(x, y)
    return jnp.exp(-jnp.maximum(square, 0) / (2 * sigma**2))


@partial(jax.jit, static_argnames="unbiased")
def linear(x: jax.Array, y: jax.Array, *, unbiased: bool) -> HSIC:
    """x [N D], y [N E]."""
    n = x.shape[0]
    x, y = x - x.mean(0), y - y.mean(0)

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        square = jnp.sum(jnp.einsum("nd,ne->de", x, y, precision="highest") ** 2)
        if not unbiased:
            return square
        # Centred rows sum to 0, so without its diagonal a kernel's row sums to minus that diagonal.
        d, e = jnp.sum(x**2, -1), jnp.sum(y**2, -1)
        rest = d.sum() * e.sum() / ((n - 1) * (n - 2)) - jnp.vdot(d, e) * (1 + 2 / (n - 2))
        return (square + rest) / (n * (n - 3))

    return HSIC(one(x, y), one(x, x), one(y, y))


@partial(jax.jit, static_argnames=("kernel", "unbiased", "rows"))
def streamed(x: jax.Array, y: jax.Array, kernel: Kernel, *, unbiased: bool, rows: int = ROWS) -> HSIC:
    """x [N D], y [N E]. Each block of either kernel is computed twice: for the means of its rows, then to be summed."""
    n = x.shape[0]
    rows = min(rows, n)
    # A constant taken off every entry changes no HSIC, and keeps the means of rows small.
    offset = [kernel(z[:1], z[-1:])[0, 0] for z in (x, y)]

    def blocks(z: jax.Array) -> jax.Array:  # [N ...] -> [b rows ...]
        return rearrange(jnp.pad(z, ((0, -n % rows), *[(0, 0)] * (z.ndim - 1))), "(b r) ... -> b r ...", r=rows)

    at = blocks(jnp.arange(n))
    counts = blocks(jnp.ones(n, bool))

    def entries(z: jax.Array, offset: jax.Array, block: jax.Array, at: jax.Array) -> jax.Array:  # -> [rows N]
        K = kernel(block, z) - offset
        return jnp.where(at[:, None] == jnp.arange(n), 0, K) if unbiased else K

    def row_sums(z: jax.Array, offset: jax.Array) -> jax.Array:  # [N]
        sums = jax.lax.map(lambda one: entries(z, offset, *one).sum(-1), (blocks(z), at))
        return sums.ravel()[:n]

    near, far = (n - 2, (n - 1) * (n - 2)) if unbiased else (n, n * n)
    sums = [row_sums(z, c) for z, c in zip((x, y), offset, strict=True)]

    def step(total: HSIC, block: tuple) -> tuple[HSIC, None]:
        at, counts, *parts = block
        K, L = (
            entries(z, c, part, at) - (own[:, None] + s) / near + s.sum() / far
            for z, c, s, (part, own) in zip((x, y), offset, sums, parts, strict=True)
        )
        use = counts[:, None] & (at[:, None] != jnp.arange(n)) if unbiased else counts[:, None]
        added = HSIC(*(jnp.sum(one, where=use) for one in (K * L, K * K, L * L)))
        return jax.tree.map(jnp.add, total, added), None

    start = HSIC(*jnp.zeros(3))
    parts = [(blocks(z), blocks(s)) for z, s in zip((x, y), sums, strict=True)]
    total, _ = jax.lax.scan(step, start, (at, counts, *parts))
    return jax.tree.map(lambda one: one / (n * (n - 3)), total) if unbiased else total
