"""The nearest rows of each row, and how alike two lists of them are.

    nearest    x [N D] -> for each row the k others of largest inner product, best first
    overlap, returns, common_order, edits    two lists [N k] of one N -> a number for each row
    local_hsic                               two lists with their products -> what CKNNA is made of

N rows, D width, k neighbours. Rows of length 1 are compared by cosine; nothing here normalises. Of equal products the
lower row comes first, whatever the block sizes. Products are exact to float32: in bfloat16, which is what accelerators
multiply in by default, neighbours change places.

    reference   the N x N products at once; the specification
    blocked     ROWS x COLUMNS products at a time, each row keeping its best k so far

`blocked` gives what `reference` gives as long as the two round a product alike; two products that differ by less than
rounding may change places.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.ops import choice

ROWS, COLUMNS = 1024, 8192  # a block: 32 MB of products
CELLS = 2**22  # comparisons of list entries that are held at a time


class Neighbours(NamedTuple):
    indices: jax.Array  # [N k] int32 rows, nearest first; never the row itself
    products: jax.Array  # [N k] their inner products

    def permuted(self, order: jax.Array) -> "Neighbours":
        """What `nearest(x[order], k)` gives; order [N] holds every row once. Equal products keep their old order."""
        place = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))
        return Neighbours(place[self.indices[order]].astype(jnp.int32), self.products[order])


def nearest(
    x: jax.Array, k: int, *, implementation: str | None = None, rows: int = ROWS, columns: int = COLUMNS
) -> Neighbours:
    """x [N D] float, 1 <= k < N. `rows` and `columns` are the block of `blocked`; products have the dtype of x."""
    x = jnp.asarray(x)
    if x.ndim != 2 or not 1 <= k < x.shape[0]:
        raise ValueError(f"x must be [N D] with more rows than k, and k at least 1, got {list(x.shape)} and k={k}")
    if implementation is None:
        implementation = "reference" if x.shape[0] <= 2 * rows else "blocked"
        choice.say(f"{k} nearest of {x.shape[0]} rows: {implementation}")
    if implementation == "reference":
        return _reference(x, k)
    if implementation != "blocked":
        raise ValueError(f"implementation must be None, 'reference' or 'blocked', got {implementation!r}")
    if rows < 1 or columns < 1:
        raise ValueError(f"a block must have at least one row and one column, got {rows} x {columns}")
    return _blocked(x, k, min(rows, x.shape[0]), min(columns, x.shape[0]))


@partial(jax.jit, static_argnames="k")
def _reference(x: jax.Array, k: int) -> Neighbours:
    products = jnp.where(jnp.eye(x.shape[0], dtype=bool), -jnp.inf, _dot(x, x))
    best, indices = jax.lax.top_k(products, k)
    return Neighbours(indices, best)


@partial(jax.jit, static_argnames=("k", "rows", "columns"))
def _blocked(x: jax.Array, k: int, rows: int, columns: int) -> Neighbours:
    count = x.shape[0]

    def blocks(size: int) -> tuple[jax.Array, jax.Array]:  # first row [b] of each block, and the block [b size D]
        padded = jnp.pad(x, ((0, -count % size), (0, 0)))
        return jnp.arange(0, padded.shape[0], size), rearrange(padded, "(b s) d -> b s d", s=size)

    def of_rows(block: tuple[jax.Array, jax.Array]) -> Neighbours:
        at, own = block[0] + jnp.arange(rows), block[1]

        def step(best: Neighbours, block: tuple[jax.Array, jax.Array]) -> tuple[Neighbours, None]:
            other = block[0] + jnp.arange(columns)
            products = jnp.where((other == at[:, None]) | (other >= count), -jnp.inf, _dot(own, block[1]))
            here, place = jax.lax.top_k(products, min(k, columns))
            # The best so far stand first, and have the lower rows: top_k takes the first of equals.
            products = jnp.concatenate([best.products, here], axis=1)
            indices = jnp.concatenate([best.indices, place + block[0]], axis=1)
            products, place = jax.lax.top_k(products, k)
            return Neighbours(jnp.take_along_axis(indices, place, axis=1), products), None

        none = Neighbours(jnp.zeros((rows, k), jnp.int32), jnp.full((rows, k), -jnp.inf, x.dtype))
        return jax.lax.scan(step, none, blocks(columns))[0]

    found = jax.lax.map(of_rows, blocks(rows))
    return jax.tree.map(lambda part: rearrange(part, "b s k -> (b s) k")[:count], found)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:  # [n D], [m D] -> [n m] in their dtype, summed in float32
    exact = jnp.einsum("nd,md->nm", x, y, precision="highest", preferred_element_type=jnp.float32)
    return exact.astype(x.dtype)


# Two lists of the same rows: a, b [N k] int -> [N] float32


@jax.jit
def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """The share of a row's neighbours that both lists hold, in whatever order."""
    return _each(lambda a, b: (a[:, None] == b).any(-1).mean(), a, b)


@jax.jit
def returns(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 where one of the row's neighbours in b has the row as its neighbour in a, else 0. Not symmetric."""
    a = jnp.asarray(a)
    return _each(lambda row, near: (a[near] == row).any().astype(jnp.float32), jnp.arange(b.shape[0]), b)


@jax.jit
def common_order(a: jax.Array, b: jax.Array) -> jax.Array:
    """Length of the longest sequence that comes in both lists, in this order but maybe with gaps."""

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        def step(best: jax.Array, entry: jax.Array) -> tuple[jax.Array, None]:  # best [k+1]: with b's first 0 ... k
            longer = jnp.maximum(best[1:], best[:-1] + (entry == b))
            return jax.lax.cummax(jnp.concatenate([best[:1], longer])), None

        return jax.lax.scan(step, jnp.zeros(b.shape[0] + 1), a)[0][-1]

    return _each(one, a, b)


@jax.jit
def edits(a: jax.Array, b: jax.Array) -> jax.Array:
    """How many entries must be put in, left out or replaced to make b of a (Levenshtein)."""
    steps = jnp.arange(b.shape[1] + 1, dtype=jnp.float32)

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        def step(least: jax.Array, entry: jax.Array) -> tuple[jax.Array, None]:  # least [k+1]: for b's first 0 ... k
            fewer = jnp.minimum(least[1:] + 1, least[:-1] + (entry != b))
            # Putting in costs 1 for each place to the right, so less the place it is a running minimum.
            return jax.lax.cummin(jnp.concatenate([least[:1] + 1, fewer]) - steps) + steps, None

        return jax.lax.scan(step, steps, a)[0][-1]

    return _each(one, a, b)


@jax.jit
def local_hsic(a: Neighbours, b: Neighbours) -> jax.Array:
    """HSIC (Song et al. 2012, eq. 5) of two kernels of inner products, each 0 but where both lists hold the pair -> [].

    The masked kernels are not symmetric: j may be near i, and i not near j. N at least 4.
    """
    count = a.indices.shape[0]

    def one(row: jax.Array, a_row: Neighbours, b_row: Neighbours) -> tuple[jax.Array, ...]:
        same = a_row.indices[:, None] == b_row.indices  # [k k]
        first = jnp.where(same.any(-1), a_row.products, 0)  # [k] of the kernel of a, at a's neighbours
        second = jnp.where(same, b_row.products, 0).sum(-1)  # [k] of the kernel of b, there
        # Does the neighbour have this row as its own, and what is the product of b as seen from there?
        near = a_row.indices
        back = jnp.where(b.indices[near] == row, b.products[near], 0).sum(-1)
        mutual = (a.indices[near] == row).any(-1)
        return first, second.sum(), jnp.where(mutual, first * back, 0).sum()

    first, second, both = _each(one, jnp.arange(count), a, b)
    columns = jnp.zeros(count).at[a.indices].add(first)
    totals = first.sum() * second.sum() / ((count - 1) * (count - 2)) - 2 * jnp.vdot(columns, second) / (count - 2)
    return (both.sum() + totals) / (count * (count - 3))


def _each(function, *lists):
    """`function` of the rows of `lists`, so many at a time that comparing each entry with each takes little memory."""
    k = jax.tree.leaves(lists)[-1].shape[1]
    return jax.lax.map(lambda rows: function(*rows), lists, batch_size=max(1, CELLS // k**2))
