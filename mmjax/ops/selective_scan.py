"""The selective scan of Mamba (S6): a linear recurrence whose coefficients depend on the token.

Source: Gu and Dao 2023, arXiv:2312.00752, section 3.2. For each channel e, with a state h of N numbers:

    h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] x[t]          y[t] = C[t] . h[t]

B batch, L length, E channels, N state. B is discretised by Euler's rule, as all implementations do, and not by the
zero-order hold of the paper's equation 4. All sums are float32.

    reference     a loop over time in plain autodiff, which keeps all states [B L E N]; the specification
    chunked       the same loop; keeps a state for each chunk and computes the others again
    associative   keeps as little; inside a chunk, log2(Q) parallel steps instead of Q
    pallas        TPU: the state stays in VMEM, forwards and backwards (ops/kernels/selective_scan.py)

With `implementation=None` the choice falls by the platform that the program is lowered for: pallas on TPU, associative
on GPU, where a loop over time would start a kernel for each token, and chunked for all else.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.ops import choice, chunks, sharding

CHUNK = {"chunked": 64, "associative": 64}  # Q


def selective_scan(
    x: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    initial: jax.Array | None = None,
    resets: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """x, delta [B L E], A [E N], B and C [B L N] -> y [B L E] and the last state [B E N], both float32.

    delta must be positive, A negative. A token with delta 0 leaves the state as it is.
    initial: [B E N], the state before the first token; zeros where None. resets: bool [B L], True where a new text
    begins with a state of zeros. A named `implementation` that cannot do this is an error.
    """
    _check(x, delta, A, B, C, initial, resets)
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation must be None or one of {list(IMPLEMENTATIONS)}, got {implementation!r}")
    x, delta, A, B, C = (one.astype(jnp.float32) for one in (x, delta, A, B, C))
    begins = jnp.zeros(x.shape[:2]) if resets is None else resets.astype(jnp.float32)  # 1 where a text begins
    initial = jnp.zeros((x.shape[0], *A.shape)) if initial is None else initial.astype(jnp.float32)
    if implementation is None and x.shape[1] == 1:  # decoding
        state, y = step(A, initial, tuple(one[:, 0] for one in (x, delta, B, C, begins)))
        return y[:, None], state
    if implementation is not None:
        return IMPLEMENTATIONS[implementation](x, delta, A, B, C, begins, initial)
    choice.say(f"selective_scan {x.shape}: pallas on tpu, associative on cuda, chunked elsewhere")
    return jax.lax.platform_dependent(
        x, delta, A, B, C, begins, initial, tpu=pallas, cuda=associative, default=chunked
    )  # fmt: skip


def step(A: jax.Array, state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """One token of each row: state [B E N], (x [B E], delta [B E], B [B N], C [B N], begins [B]) -> state, y [B E]."""
    x, delta, B, C, begins = token
    decay = jnp.exp(delta[..., None] * A) * (1 - begins)[:, None, None]
    state = decay * state + (delta * x)[..., None] * B[:, None]
    return state, jnp.einsum("ben,bn->be", state, C, precision="highest")


def _over_time(A: jax.Array, state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """state, each input [B Q ...] -> state, y [B Q E]."""
    first = tuple(jnp.moveaxis(one, 1, 0) for one in inputs)
    state, y = jax.lax.scan(functools.partial(step, A), state, first)
    return state, jnp.moveaxis(y, 0, 1)


def reference(x, delta, A, B, C, begins, initial):
    """The specification."""
    state, y = _over_time(A, initial, (x, delta, B, C, begins))
    return y, state


def chunked(x, delta, A, B, C, begins, initial):
    """Token after token, with memory for the states of one chunk."""
    return chunks.scan(functools.partial(_over_time, A), initial, (x, delta, B, C, begins), CHUNK["chunked"])


def associative(x, delta, A, B, C, begins, initial):
    """(a1, b1) then (a2, b2) is (a2 a1, a2 b1 + b2): all states of a chunk at once, then on from the last."""

    def body(state, part):
        x, delta, B, C, begins = part
        decay = jnp.exp(delta[..., None] * A) * (1 - begins)[..., None, None]  # [B Q E N]
        enters = (delta * x)[..., None] * B[:, :, None]
        combine = lambda first, then: (then[0] * first[0], then[0] * first[1] + then[1])  # noqa: E731
        decay, states = jax.lax.associative_scan(combine, (decay, enters), axis=1)
        states = states + decay * state[:, None]
        return states[:, -1], jnp.einsum("bqen,bqn->bqe", states, C, precision="highest")

    return chunks.scan(body, initial, (x, delta, B, C, begins), CHUNK["associative"])


def pallas(x, delta, A, B, C, begins, initial, interpret: bool = False):
    """The TPU kernel on each device's part: rows split over BATCH and channels over TENSOR, as far as they divide;
    `interpret` runs it on any platform, slowly."""
    from mmjax.ops.kernels import selective_scan as kernel  # imports Pallas, which takes a while

    run = functools.partial(kernel.selective_scan, interpret=interpret)
    names = sharding.axes(*jax.sharding.get_abstract_mesh().axis_names)
    if not names:
        return run(x, delta, A, B, C, begins, initial)
    rows, channels = sharding.axes(*sharding.BATCH), sharding.axes(sharding.TENSOR)
    rows = rows if x.shape[0] % sharding.shards(*rows) == 0 else ()
    channels = channels if x.shape[2] % sharding.shards(*channels) == 0 else ()
    b, e = rows or None, channels or None
    whole, shared, state = PartitionSpec(b, None, e), PartitionSpec(b), PartitionSpec(b, e)
    return jax.shard_map(
        run,
        in_specs=(whole, whole, PartitionSpec(e), shared, shared, shared, state),
        out_specs=(whole, state),
        axis_names=set(names),
        check_vma=False,  # kernels do not say over which axes their results vary
    )(x, delta, A, B, C, begins, initial)


IMPLEMENTATIONS: dict[str, Callable] = {
    "reference": reference,
    "chunked": chunked,
    "associative": associative,
    "pallas": pallas,
}


def _check(x, delta, A, B, C, initial, resets) -> None:
    if x.ndim != 3 or delta.shape != x.shape:
        raise ValueError(f"x and delta must be [B L E], got {x.shape} and {delta.shape}")
    (batch, length, channels), size = x.shape, A.shape[-1]
    wanted = {
        "A [E N]": (A, (channels, size)),
        "B [B L N]": (B, (batch, length, size)),
        "C [B L N]": (C, (batch, length, size)),
        "initial [B E N]": (initial, (batch, channels, size)),
        "resets [B L]": (resets, (batch, length)),
    }
    for name, (found, shape) in wanted.items():
        if found is not None and found.shape != shape:
            raise ValueError(f"{name} must be {shape} for x {x.shape} and A {A.shape}, got {found.shape}")
