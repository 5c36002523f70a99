"""Points on a picture: spread over a region, gathered into neighbourhoods, and what a map of features holds there.

    inside            a mask -> a fixed number of points inside of it (host)
    farthest_points   points -> some of them, each as far as possible from those before (Eldar et al. 1997)
    nearest_points    points -> the k nearest of each of some of them
    neighbourhoods    both, and what the neighbours hold: PointNet++'s grouping (Qi et al. 2017, arXiv:1706.02413)
    sample            a map and points -> what it holds there, between its cells

R rows (regions), N points, S anchors, K neighbours, D width, h w cells of a map. A point is (x, y) in [0, 1].

    xla      a loop for the anchors, a sorted list of distances, a gather
    pallas   TPU: one program a region, whose points stay in VMEM (ops/kernels/farthest_points.py)

With `implementation=None` neighbourhoods takes pallas on TPU where it fits, and xla elsewhere. Of equal distances the
lower index comes first. Distances are sums of squared differences, where others expand the square: on a pixel grid,
where many are equal but for rounding, others may choose other neighbours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import PartitionSpec

from mmjax.ops import choice, sharding

FAR = 1e10  # more than any squared distance
NOWHERE = -1.0  # a coordinate of what is no point: `sample` finds zeros there


class Neighbourhoods(NamedTuple):
    anchors: jax.Array  # [R S] int32, which points
    neighbours: jax.Array  # [R S K] int32, nearest first; the anchor is its own neighbour
    values: jax.Array  # [R K S D] what they hold


# On the host


def inside(mask: np.ndarray, count: int, rng: np.random.Generator, size: tuple[int, int] | None = None) -> np.ndarray:
    """mask [H W] bool -> float32 [count 2], pixels (x / W, y / H) where it is True.

    All of them, column after column, and further ones drawn with replacement where there are too few; a random choice
    without replacement where there are too many. size: (H, W) that the mask must have.
    """
    pixels = _pixels(mask, size)
    if len(pixels) > count:
        pixels = pixels[rng.permutation(len(pixels))[:count]]
    elif len(pixels) < count:
        pixels = np.concatenate([pixels, pixels[rng.integers(0, len(pixels), count - len(pixels))]])
    return pixels


def inside_once(
    mask: np.ndarray, count: int, rng: np.random.Generator, size: tuple[int, int] | None = None
) -> np.ndarray:
    """As `inside`, but each pixel at most once: rows that are left over are NOWHERE."""
    pixels = _pixels(mask, size)
    if len(pixels) > count:
        return pixels[rng.permutation(len(pixels))[:count]]
    return np.pad(pixels, ((0, count - len(pixels)), (0, 0)), constant_values=NOWHERE)


def _pixels(mask: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2 or (size is not None and mask.shape != tuple(size)):
        wanted = "[H W]" if size is None else f"{list(size)}, as the picture's (height, width)"
        raise ValueError(f"a mask must be {wanted}, got {list(mask.shape)}")
    columns, rows = np.nonzero(mask.T)
    if not len(columns):
        raise ValueError(f"the mask {list(mask.shape)} is empty: it has no pixel to take a point from")
    return np.stack([columns / mask.shape[1], rows / mask.shape[0]], axis=-1).astype(np.float32)


# Which points


def _squared(a: jax.Array, b: jax.Array) -> jax.Array:  # [... 2], [... 2] -> [...]
    return (a[..., 0] - b[..., 0]) ** 2 + (a[..., 1] - b[..., 1]) ** 2


def farthest_points(points: jax.Array, count: int, start: jax.Array) -> jax.Array:
    """points [R N 2], start [R] int, the first of each row -> [R count] int32.

    Where there are fewer different points than `count`, the lowest index follows again and again.
    """
    points = jnp.asarray(points, jnp.float32)
    rows = jnp.arange(points.shape[0])

    def body(i, carry):
        found, distance, current = carry
        found = found.at[:, i].set(current)
        distance = jnp.minimum(distance, _squared(points, points[rows, current][:, None]))
        return found, distance, jnp.argmax(distance, axis=1).astype(jnp.int32)

    found = jnp.zeros((points.shape[0], count), jnp.int32)
    distance = jnp.full(points.shape[:2], FAR)
    return jax.lax.fori_loop(0, count, body, (found, distance, start.astype(jnp.int32)))[0]


def nearest_points(points: jax.Array, queries: jax.Array, k: int) -> jax.Array:
    """points [R N 2], queries [R S 2] -> [R S k] int32, nearest first."""
    points, queries = points.astype(jnp.float32), queries.astype(jnp.float32)
    return jax.lax.top_k(-_squared(queries[:, :, None], points[:, None]), k)[1].astype(jnp.int32)


def take(values: jax.Array, indices: jax.Array) -> jax.Array:
    """values [R N D], indices [R ...] int -> [R ... D]."""
    flat = jnp.take_along_axis(values, indices.reshape(indices.shape[0], -1)[..., None], axis=1)
    return flat.reshape(*indices.shape, values.shape[-1])


def neighbourhoods(
    points: jax.Array,
    values: jax.Array,
    count: int,
    k: int,
    start: jax.Array,
    *,
    implementation: str | None = None,
) -> Neighbourhoods:
    """points [R N 2], values [R N D], start [R] int -> `count` anchors, the k nearest points of each, their values.

    Gradients flow into `values`, and none into `points`. A named implementation that cannot do this is an error.
    """
    _check(points, values, count, k, start)
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f"implementation must be None, 'xla' or 'pallas', got {implementation!r}")
    points, start = jax.lax.stop_gradient(points.astype(jnp.float32)), start.astype(jnp.int32)
    run = functools.partial(xla, count=count, k=k)
    if implementation == "xla":
        return run(points, values, start)
    why = why_not_pallas(values, count, k)
    if implementation == "pallas":
        if why:
            raise ValueError(f"pallas cannot make these neighbourhoods: {why}; leave implementation out")
        return pallas(points, values, start, count=count, k=k)
    if why:
        choice.say(f"neighbourhoods of {values.shape}: xla, as {why}")
        return run(points, values, start)
    choice.say(f"neighbourhoods of {values.shape}: pallas on tpu, xla elsewhere")
    return jax.lax.platform_dependent(
        points, values, start, tpu=functools.partial(pallas, count=count, k=k), default=run
    )


def xla(points: jax.Array, values: jax.Array, start: jax.Array, *, count: int, k: int) -> Neighbourhoods:
    anchors = farthest_points(points, count, start)
    neighbours = nearest_points(points, take(points, anchors), k)
    return Neighbourhoods(anchors, neighbours, take(values, rearrange(neighbours, "r s k -> r k s")))


def why_not_pallas(values: jax.Array, count: int, k: int) -> str:
    """Empty where the kernel can do it."""
    from mmjax.ops.kernels import farthest_points as kernel  # imports Pallas, which takes a while

    return kernel.why_not(values.shape[1], count, k)


def pallas(points, values, start, *, count: int, k: int, interpret: bool = False) -> Neighbourhoods:
    """The TPU kernel on each device's regions; `interpret` runs it on any platform, slowly."""
    from mmjax.ops.kernels import farthest_points as kernel

    run = functools.partial(kernel.neighbourhoods, count=count, k=k, interpret=interpret)
    names = sharding.axes(*jax.sharding.get_abstract_mesh().axis_names)
    if not names:
        return Neighbourhoods(*run(points, values, start))
    rows = sharding.axes(*sharding.BATCH)
    spec = PartitionSpec((rows if points.shape[0] % sharding.shards(*rows) == 0 else ()) or None)
    found = jax.shard_map(
        run,
        in_specs=(spec,) * 3,
        out_specs=(spec,) * 3,
        axis_names=set(names),
        check_vma=False,  # kernels do not say over which axes their results vary
    )(points, values, start)
    return Neighbourhoods(*found)


def _check(points, values, count, k, start) -> None:
    if points.ndim != 3 or points.shape[-1] != 2 or values.ndim != 3 or values.shape[:2] != points.shape[:2]:
        raise ValueError(f"points must be [R N 2] and values [R N D], got {points.shape} and {values.shape}")
    if start.shape != points.shape[:1]:
        raise ValueError(f"start must be [R] = {points.shape[:1]}, got {start.shape}")
    if count < 1 or not 1 <= k <= points.shape[1]:
        raise ValueError(f"count must be at least 1 and k from 1 to N={points.shape[1]}, got count={count}, k={k}")


# What a map holds at a point


def sample(maps: jax.Array, points: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """maps [B h w D], points [B N 2] -> [B N D] in float32, linear between cells.

    (0, 0) is the centre of the first cell and (1, 1) that of the last (align_corners=True); beyond the edge are zeros.
    "gather" reads four cells a point, "product" weighs all cells in a matrix product, which suits a TPU and makes the
    gradient a product too; None takes that on TPU.
    """
    if maps.ndim != 4 or points.ndim != 3 or points.shape[-1] != 2 or points.shape[0] != maps.shape[0]:
        raise ValueError(f"maps must be [B h w D] and points [B N 2], got {maps.shape} and {points.shape}")
    maps, points = maps.astype(jnp.float32), points.astype(jnp.float32)
    if implementation is None:
        return jax.lax.platform_dependent(maps, points, tpu=by_product, default=by_gather)
    if implementation not in ("gather", "product"):
        raise ValueError(f"implementation must be None, 'gather' or 'product', got {implementation!r}")
    return (by_gather if implementation == "gather" else by_product)(maps, points)


def by_gather(maps: jax.Array, points: jax.Array) -> jax.Array:
    """The specification."""
    height, width = maps.shape[1:3]
    x, y = points[..., 0] * (width - 1), points[..., 1] * (height - 1)
    left, top = jnp.floor(x), jnp.floor(y)
    flat, out = rearrange(maps, "b h w d -> b (h w) d"), 0.0
    for column in (left, left + 1):
        for row in (top, top + 1):
            there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = jnp.where(there, (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row)), 0)
            cell = jnp.where(there, row * width + column, 0).astype(jnp.int32)
            out = out + weight[..., None] * take(flat, cell)
    return out


def by_product(maps: jax.Array, points: jax.Array) -> jax.Array:
    """Weights of rows [B N h] and of columns [B N w] multiply to those of cells; one product with the map."""
    height, width = maps.shape[1:3]
    columns, rows = (_hats(points[..., i] * (size - 1), size) for i, size in enumerate((width, height)))
    # The product over rows first would leave [B N w D], which is much more than [B N h w].
    weights = jnp.einsum("bnh,bnw->bnhw", rows, columns)
    return jnp.einsum("bnhw,bhwd->bnd", weights, maps, precision="highest")


def _hats(at: jax.Array, size: int) -> jax.Array:  # [B N] -> [B N size]
    return jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(size)), 0)
