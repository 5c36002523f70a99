"""Selective scan for TPU (Pallas): the state [N E] stays in VMEM for the whole length, forwards and backwards.

    h[t] = keep[t] exp(delta[t] A) h[t-1] + B[t] (delta[t] x[t])          y[t] = sum over n of C[t] h[t]

keep is 0 where a text begins, and 1 elsewhere.

Grid: rows, tiles of channels, tiles of time; the last one runs in order and hands the state on. Channels lie along the
lanes and the N numbers of a state along the sublanes, so a step is a few operations on full registers. B, C and begins
are packed as [rows of one array, time along the lanes]: as [L N 1] columns each number would take a register's row of
128. A step picks its column with a mask and a sum over lanes.

In HBM the backward pass finds the inputs and one state for each tile of time, [B L/128 N E] and never [B L N E]; it
makes the states of a tile again in VMEM and walks through them from the last to the first.

B rows, L length, E channels, N state. All float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
TIME = LANES  # a tile of time: its packed columns fill the lanes
CHANNELS = 512  # the largest tile of channels: the states of a tile of time then take 4 MB of VMEM at N = 16


def selective_scan(x, delta, A, B, C, begins, initial, *, interpret: bool = False):
    """x, delta [B L E], A [E N], B, C [B L N], begins [B L], initial [B E N] -> y [B L E], last state [B E N]."""
    length, channels, size = x.shape[1], *A.shape
    time, lanes, rows = -length % TIME, -channels % LANES, -size % SUBLANES
    x, delta = (jnp.pad(one, ((0, 0), (0, time), (0, lanes))) for one in (x, delta))  # delta 0: the state stays
    A = jnp.pad(A.T, ((0, rows), (0, lanes)))
    initial = jnp.pad(initial.swapaxes(1, 2), ((0, 0), (0, rows), (0, lanes)))
    B, C = (jnp.pad(one, ((0, 0), (0, time), (0, rows))) for one in (B, C))
    begins = jnp.pad(begins[..., None], ((0, 0), (0, time), (0, SUBLANES - 1)))
    packed = jnp.concatenate([B, C, begins], axis=-1).swapaxes(1, 2)  # [B 2N+8 L]
    y, last = _scan(x, delta, A, packed, initial, interpret)
    return y[:, :length, :channels], last[:, :size, :channels].swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _scan(x, delta, A, packed, initial, interpret):
    """x, delta [B L E], A [N E], packed [B 2N+8 L], initial [B N E], all padded -> y [B L E], last [B N E]."""
    y, last, _ = _forward(x, delta, A, packed, initial, interpret)
    return y, last


def _save(x, delta, A, packed, initial, interpret):
    y, last, starts = _forward(x, delta, A, packed, initial, interpret)
    return (y, last), (x, delta, A, packed, starts)


def _pull(interpret, saved, cotangents):
    return _backward(*saved, *cotangents, interpret)


_scan.defvjp(_save, _pull)


class _Tiles:
    """Block shapes of the arrays, over a grid of (rows, tiles of channels, tiles of time)."""

    def __init__(self, x: jax.Array, A: jax.Array, backwards: bool):
        self.batch, self.length, self.width = x.shape
        self.size = A.shape[0]
        self.channels = max(c for c in range(LANES, CHANNELS + 1, LANES) if self.width % c == 0)
        self.tiles = self.length // TIME
        self.grid = (self.batch, self.width // self.channels, self.tiles)
        self.now = (lambda k: self.tiles - 1 - k) if backwards else (lambda k: k)

    def tokens(self) -> pl.BlockSpec:  # of [B L E]
        return pl.BlockSpec((1, TIME, self.channels), lambda i, j, k: (i, self.now(k), j))

    def packed(self) -> pl.BlockSpec:  # of [B 2N+8 L]
        return pl.BlockSpec((1, 2 * self.size + SUBLANES, TIME), lambda i, j, k: (i, 0, self.now(k)))

    def shared(self) -> pl.BlockSpec:  # of [N E]
        return pl.BlockSpec((self.size, self.channels), lambda i, j, k: (0, j))

    def state(self) -> pl.BlockSpec:  # of [B N E]
        return pl.BlockSpec((1, self.size, self.channels), lambda i, j, k: (i, 0, j))

    def starts(self) -> pl.BlockSpec:  # of [B L/TIME N E]
        return pl.BlockSpec((1, 1, self.size, self.channels), lambda i, j, k: (i, self.now(k), 0, j))

    def parts(self) -> pl.BlockSpec:  # of [B E/channels 2N L]
        return pl.BlockSpec((1, 1, 2 * self.size, TIME), lambda i, j, k: (i, j, 0, self.now(k)))

    def cost(self, passes: int, arrays: int) -> pl.CostEstimate:
        """arrays: how many of [B L E] are read and written."""
        steps = self.batch * self.length * self.width
        return pl.CostEstimate(
            flops=6 * passes * steps * self.size, bytes_accessed=4 * arrays * steps, transcendentals=steps * self.size
        )


def _call(body, tiles: _Tiles, in_specs, out_specs, out_shape, scratch, cost, interpret):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in out_shape]
    return pl.pallas_call(
        functools.partial(body, size=tiles.size),
        grid=tiles.grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=cost,
        interpret=interpret,
    )


def _forward(x, delta, A, packed, initial, interpret):
    """y [B L E], the last state [B N E], and the state before each tile of time [B L/TIME N E]."""
    t = _Tiles(x, A, backwards=False)
    return _call(
        _forward_body, t,
        [t.tokens(), t.tokens(), t.shared(), t.packed(), t.state()],
        [t.tokens(), t.state(), t.starts()],
        [x.shape, initial.shape, (t.batch, t.tiles, t.size, t.width)],
        [(t.size, t.channels)],
        t.cost(passes=1, arrays=3), interpret,
    )(x, delta, A, packed, initial)  # fmt: skip


def _backward(x, delta, A, packed, starts, dy, dlast, interpret):
    """The cotangents of x, delta, A, packed and initial."""
    t = _Tiles(x, A, backwards=True)
    dx, ddelta, dA, parts, dinitial = _call(
        _backward_body, t,
        [t.tokens(), t.tokens(), t.shared(), t.packed(), t.starts(), t.tokens(), t.state()],
        [t.tokens(), t.tokens(), t.state(), t.parts(), t.state()],
        [x.shape, x.shape, dlast.shape, (t.batch, t.grid[1], 2 * t.size, t.length), dlast.shape],
        [(TIME, t.size, t.channels), (t.size, t.channels)],
        t.cost(passes=3, arrays=5), interpret,
    )(x, delta, A, packed, starts, dy, dlast)  # fmt: skip
    # Each tile of channels has its share of what B and C get, each row its share of A's. `begins` has no gradient.
    dpacked = jnp.pad(parts.sum(1), ((0, 0), (0, SUBLANES), (0, 0)))
    return dx, ddelta, dA.sum(0), dpacked, dinitial


def _column(packed, lane, t, size):
    """B [N 1], C [N 1] and keep [1 1] of token t, from [2N+8 TIME]."""
    column = jnp.sum(jnp.where(lane == t, packed, 0.0), axis=1, keepdims=True)
    return column[:size], column[size : 2 * size], 1 - column[2 * size : 2 * size + 1]


def _forward_body(x_ref, delta_ref, A_ref, packed_ref, initial_ref, y_ref, last_ref, starts_ref, state_ref, *, size):
    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = initial_ref[0]

    starts_ref[0, 0] = state_ref[...]
    A, packed = A_ref[...], packed_ref[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, packed.shape, 1)

    def eight(i, h):  # a register holds eight tokens of x
        at = pl.ds(pl.multiple_of(i * SUBLANES, SUBLANES), SUBLANES)
        x, delta, ys = x_ref[0, at, :], delta_ref[0, at, :], []
        for s in range(SUBLANES):
            b, c, keep = _column(packed, lane, i * SUBLANES + s, size)
            d = delta[s : s + 1]
            h = jnp.exp(d * A) * keep * h + b * (d * x[s : s + 1])
            ys.append(jnp.sum(h * c, axis=0, keepdims=True))
        y_ref[0, at, :] = jnp.concatenate(ys, axis=0)
        return h

    state_ref[...] = jax.lax.fori_loop(0, TIME // SUBLANES, eight, state_ref[...])
    last_ref[0] = state_ref[...]


def _backward_body(
    x_ref, delta_ref, A_ref, packed_ref, starts_ref, dy_ref, dlast_ref,
    dx_ref, ddelta_ref, dA_ref, parts_ref, dinitial_ref, states_ref, g_ref, *, size,
):  # fmt: skip
    @pl.when(pl.program_id(2) == 0)
    def _():
        g_ref[...] = dlast_ref[0]
        dA_ref[0] = jnp.zeros_like(dA_ref[0])

    A, packed = A_ref[...], packed_ref[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, packed.shape, 1)

    def again(i, h):  # the state BEFORE each token of the tile
        at = pl.ds(pl.multiple_of(i * SUBLANES, SUBLANES), SUBLANES)
        x, delta = x_ref[0, at, :], delta_ref[0, at, :]
        for s in range(SUBLANES):
            b, _, keep = _column(packed, lane, i * SUBLANES + s, size)
            states_ref[i * SUBLANES + s] = h
            d = delta[s : s + 1]
            h = jnp.exp(d * A) * keep * h + b * (d * x[s : s + 1])
        return h

    jax.lax.fori_loop(0, TIME // SUBLANES, again, starts_ref[0, 0])

    def eight(i, carry):
        g, dA, parts = carry  # g: cotangent of the state after the token
        i = TIME // SUBLANES - 1 - i
        at = pl.ds(pl.multiple_of(i * SUBLANES, SUBLANES), SUBLANES)
        x, delta, dy = x_ref[0, at, :], delta_ref[0, at, :], dy_ref[0, at, :]
        dxs, ddeltas = [None] * SUBLANES, [None] * SUBLANES
        for s in reversed(range(SUBLANES)):
            t = i * SUBLANES + s
            b, c, keep = _column(packed, lane, t, size)
            d, u, dy_t, before = delta[s : s + 1], x[s : s + 1], dy[s : s + 1], states_ref[t]
            decay = jnp.exp(d * A) * keep
            h = decay * before + b * (d * u)
            g = g + c * dy_t
            dB, dC = (jnp.sum(one, axis=1, keepdims=True) for one in (g * (d * u), h * dy_t))
            parts = jnp.where(lane[: 2 * size] == t, jnp.concatenate([dB, dC], axis=0), parts)
            entering = jnp.sum(g * b, axis=0, keepdims=True)  # of delta * x
            g = g * decay
            exponent = g * before  # of delta * A
            dxs[s] = entering * d
            ddeltas[s] = entering * u + jnp.sum(exponent * A, axis=0, keepdims=True)
            dA = dA + exponent * d
        dx_ref[0, at, :] = jnp.concatenate(dxs, axis=0)
        ddelta_ref[0, at, :] = jnp.concatenate(ddeltas, axis=0)
        return g, dA, parts

    zeros = jnp.zeros((2 * size, TIME), jnp.float32)
    g, dA, parts = jax.lax.fori_loop(0, TIME // SUBLANES, eight, (g_ref[...], dA_ref[0], zeros))
    g_ref[...], dA_ref[0], parts_ref[0, 0], dinitial_ref[0] = g, dA, parts, g
