"""Farthest points, their neighbours and what these hold, for TPU (Pallas): one program a region.

    1  S times: the point that is farthest from all taken so far. Points lie along the lanes [1 N] and never leave VMEM;
       a step is a few operations on a row and two reductions over it, where separate operations would start a program.
    2  K times, for all anchors at once: the nearest point that is left, from the distances [S N].
    3  K times: rows of `values` by a product of ones and zeros [S N] with a tile of them [N C].

Grid: regions, tiles of channels; 1 and 2 run at the first tile, and later ones read the places that they wrote. These
are packed along the lanes, [S 128]: neighbours in the first K, the anchor in the next. Indices are float32 in the
kernel (exact below 2 ** 24), whose reductions over lanes every TPU has.

R regions, N points, S anchors, K neighbours, D channels, C of a tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
TILES = (512, 256, 128)  # of channels, largest first
ROOM = 10 * 2**20  # bytes of VMEM for the blocks, which are there twice; v5e gives a program 16 MB
FAR = 1e10


def neighbourhoods(points, values, start, *, count: int, k: int, interpret: bool = False):
    """points [R N 2], values [R N D], start [R] -> anchors [R S], neighbours [R S K] int32, values [R K S D]."""
    places, grouped = _grouped(points, values, start, count, k, interpret)
    return places[..., k], places[..., :k], grouped


def why_not(points: int, count: int, k: int) -> str:
    """What is too large for the kernel; empty where nothing is."""
    if k >= LANES:
        return f"k={k}, and at most {LANES - 1} fit in a row of lanes"
    if _bytes(_up(points, LANES), _up(count, SUBLANES), k, TILES[-1]) > ROOM:
        return f"{points} points and {count} x {k} neighbours do not fit in VMEM"
    return ""


def _up(size: int, to: int) -> int:
    return size + -size % to


def _bytes(points: int, count: int, k: int, tile: int) -> int:
    """Blocks of values and of the result, each twice, and the distances."""
    return 4 * (2 * tile * (points + k * count) + 3 * count * points)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _grouped(points, values, start, count, k, interpret):
    return _call(points, values, start, count, k, interpret)


def _save(points, values, start, count, k, interpret):
    places, grouped = _call(points, values, start, count, k, interpret)
    return (places, grouped), (points, places, start)


def _pull(count, k, interpret, saved, cotangents):
    """A neighbour's cotangents go back to its point: the transposed products, one neighbour of all anchors at once."""
    points, places, start = saved
    grouped = cotangents[1]

    def one(i, total):
        at = jax.lax.dynamic_index_in_dim(places, i, axis=2)  # [R S 1]
        ones = (at == jnp.arange(points.shape[1])).astype(grouped.dtype)
        part = jax.lax.dynamic_index_in_dim(grouped, i, axis=1, keepdims=False)
        return total + jnp.einsum(
            "rsn,rsd->rnd", ones, part, precision="highest", preferred_element_type=jnp.float32
        )  # fmt: skip

    total = jnp.zeros((*points.shape[:2], grouped.shape[-1]), jnp.float32)
    total = jax.lax.fori_loop(0, k, one, total).astype(grouped.dtype)
    return jnp.zeros_like(points), total, jnp.zeros(start.shape, jax.dtypes.float0)


_grouped.defvjp(_save, _pull)


def _call(points, values, start, count, k, interpret):
    """places [R S 128], with the anchor at lane k, and values [R K S D]."""
    (regions, length, width), (n, s) = values.shape, (_up(values.shape[1], LANES), _up(count, SUBLANES))
    tile = next((c for c in TILES if c <= _up(width, LANES) and _bytes(n, s, k, c) <= ROOM), TILES[-1])
    d = _up(width, tile)
    points = jnp.pad(points.swapaxes(1, 2), ((0, 0), (0, SUBLANES - 2), (0, n - length)))  # [R 8 N]: x, y, nothing
    values = jnp.pad(values, ((0, 0), (0, n - length), (0, d - width)))
    places, grouped = pl.pallas_call(
        functools.partial(_body, length=length, count=count, k=k),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(regions, d // tile),
            in_specs=[
                pl.BlockSpec((1, SUBLANES, n), lambda i, j, start: (i, 0, 0)),
                pl.BlockSpec((1, n, tile), lambda i, j, start: (i, 0, j)),
            ],
            out_specs=[
                pl.BlockSpec((1, s, LANES), lambda i, j, start: (i, 0, 0)),
                pl.BlockSpec((1, k, s, tile), lambda i, j, start: (i, 0, 0, j)),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((regions, s, LANES), jnp.int32),
            jax.ShapeDtypeStruct((regions, k, s, d), values.dtype),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=regions * s * n * (8 + 6 * k + 2 * k * d),
            bytes_accessed=values.dtype.itemsize * regions * d * (n + k * s),
            transcendentals=0,
        ),
        interpret=interpret,
    )(start, points, values)
    return places[:, :count], grouped[:, :, :count, :width]


def _first(hit, lane):  # [M N] bool -> [M 1] float32: the lowest lane
    return jnp.min(jnp.where(hit, lane, FAR), axis=1, keepdims=True)


def _body(start_ref, points_ref, values_ref, places_ref, grouped_ref, *, length: int, count: int, k: int):
    start = start_ref[pl.program_id(0)]

    @pl.when(pl.program_id(1) == 0)
    def _():
        places_ref[0] = _places(start, points_ref[0], places_ref.shape[1], length, count, k)

    places, values = places_ref[0].astype(jnp.float32), values_ref[0]
    column = jax.lax.broadcasted_iota(jnp.int32, places.shape, 1)
    lane = jax.lax.broadcasted_iota(jnp.int32, (places.shape[0], values.shape[0]), 1).astype(jnp.float32)
    # Ones and zeros are exact in bfloat16, but float32 values take all passes of a product.
    precision = jax.lax.Precision.HIGHEST if values.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def one(i, _):
        at = jnp.sum(jnp.where(column == i, places, 0.0), axis=1, keepdims=True)  # [S 1]
        ones = jnp.where(lane == at, 1.0, 0.0).astype(values.dtype)
        rows = jax.lax.dot_general(
            ones, values, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        )  # fmt: skip
        grouped_ref[0, pl.ds(i, 1)] = rows.astype(grouped_ref.dtype)[None]
        return 0

    jax.lax.fori_loop(0, k, one, 0)


def _places(start, points, s: int, length: int, count: int, k: int):
    """int32 [S 128] of a region's points [8 N]: its neighbours, then the anchor."""
    x, y = points[0:1], points[1:2]  # [1 N]
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1).astype(jnp.float32)
    row = jax.lax.broadcasted_iota(jnp.int32, (s, 1), 0)
    real = lane < length

    def farthest(i, carry):
        distance, current, anchors, ax, ay = carry  # [1 N], [1 1], three of [S 1]
        here = lane == current
        cx, cy = (jnp.sum(jnp.where(here, one, 0.0), axis=1, keepdims=True) for one in (x, y))
        anchors, ax, ay = (jnp.where(row == i, new, old) for new, old in ((current, anchors), (cx, ax), (cy, ay)))
        distance = jnp.minimum(distance, (x - cx) ** 2 + (y - cy) ** 2)
        return distance, _first(distance == jnp.max(distance, axis=1, keepdims=True), lane), anchors, ax, ay

    nothing = jnp.zeros((s, 1), jnp.float32)
    first = jnp.full((1, 1), start, jnp.int32).astype(jnp.float32)
    carry = jnp.where(real, FAR, -1.0), first, nothing, nothing, nothing
    _, _, anchors, ax, ay = jax.lax.fori_loop(0, count, farthest, carry)

    lanes = jnp.broadcast_to(lane, (s, lane.shape[1]))
    column = jax.lax.broadcasted_iota(jnp.int32, (s, LANES), 1)

    def nearest(i, carry):
        distance, places = carry  # [S N], [S 128]
        at = _first(distance == jnp.min(distance, axis=1, keepdims=True), lanes)
        return jnp.where(lanes == at, 2 * FAR, distance), jnp.where(column == i, at, places)

    distance = jnp.where(real, (ax - x) ** 2 + (ay - y) ** 2, FAR)
    places = jnp.where(column == k, anchors, 0.0)
    return jax.lax.fori_loop(0, k, nearest, (distance, places))[1].astype(jnp.int32)
