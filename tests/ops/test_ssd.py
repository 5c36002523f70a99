"""SSD: NumPy against the reference, the reference against the chunked form, whatever the chunk; gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops.selective_scan import selective_scan
from mmjax.ops.ssd import ssd


def draw(batch=2, length=23, heads=6, width=4, groups=2, size=5, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    delta, A = np.log1p(np.exp(normal(batch, length, heads))), -np.exp(normal(heads))
    B, C = normal(batch, length, groups, size), normal(batch, length, groups, size)
    options = {"initial": normal(batch, heads, width, size), "resets": rng.random((batch, length)) < 0.15}
    return (normal(batch, length, heads, width), delta, A, B, C), options


def by_hand(x, delta, A, B, C, initial, resets):
    state, y, share = np.float64(initial), np.zeros(x.shape), x.shape[2] // B.shape[2]
    for b, t, h in np.ndindex(x.shape[:3]):
        before = np.zeros_like(state[b, h]) if resets[b, t] else state[b, h]
        d = np.float64(delta[b, t, h])
        state[b, h] = np.exp(d * A[h]) * before + d * np.outer(x[b, t, h], B[b, t, h // share])
        y[b, t, h] = state[b, h] @ C[b, t, h // share]
    return y, state


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.sampled_from([(2, 1), (4, 2), (3, 3)]), st.integers(0, 99))
def test_the_reference_is_the_recurrence_written_out(length, heads, seed):
    arrays, options = draw(2, length, heads[0], 3, heads[1], seed=seed)
    found = ssd(*arrays, **options, implementation="reference")
    for a, b in zip(found, by_hand(*arrays, **options), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_numbers_by_hand():
    delta = jax.nn.softplus(jnp.array([0, 0.5, -0.5]) + 0.1)[None, :, None]
    x = jnp.array([1, 2, -1.0])[None, :, None, None]
    B, C = np.array([[1, 0.5], [0.2, -0.3], [0.7, 0.1]]), np.array([[1, 1], [0.5, 2], [-1, 0.4]])
    y, state = ssd(x, delta, jnp.array([-1.0]), B[None, :, None], C[None, :, None])
    np.testing.assert_allclose(y[0, :, 0, 0], [1.11659499, -0.64182956, -0.18526768], rtol=1e-5)
    np.testing.assert_allclose(state[0, 0, 0], [0.04725902, -0.34502167], rtol=1e-5)


@pytest.fixture(scope="module")
def given_and_wanted():
    arrays, options = draw()
    return arrays, options, both(arrays, options, implementation="reference")


def both(arrays, options, **how):
    """Output, last state, and what their random cotangents pull back."""
    rng, resets = np.random.default_rng(9), options["resets"]
    cotangents = tuple(rng.normal(size=x.shape).astype(np.float32) for x in (arrays[0], options["initial"]))

    @jax.jit
    def inner(*given):
        run = lambda *given: ssd(*given[:5], initial=given[5], resets=resets, **how)  # noqa: E731
        out, pull = jax.vjp(run, *given)
        return *out, *pull(cotangents)

    return inner(*arrays, options["initial"])


@pytest.mark.parametrize("chunk", [1, 3, 23, 256])
def test_no_chunk_changes_the_result_or_a_gradient(given_and_wanted, chunk):
    arrays, options, wanted = given_and_wanted
    names = ("y", "last", "x", "delta", "A", "B", "C", "initial")
    for name, a, b in zip(names, both(arrays, options, chunk=chunk), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(), err_msg=name)


def test_with_heads_of_one_channel_it_is_mambas_scan():
    (x, delta, A, B, C), _ = draw(heads=6, width=1, groups=1)
    y, state = ssd(x, delta, A, B, C, chunk=8)
    wanted, last = selective_scan(x[..., 0], delta, np.tile(A[:, None], (1, 5)), B[:, :, 0], C[:, :, 0])
    np.testing.assert_allclose(y[..., 0], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state[:, :, 0], last, rtol=1e-4, atol=1e-5)


def test_what_is_forgotten_completely_leaves_no_nan():
    """exp(-delta A) overflows where exp of a sum's parts is taken apart, and gives gradients of inf * 0."""
    (x, delta, A, B, C), _ = draw(length=40)
    loss = lambda x, delta, A, B, C: (ssd(x, delta, A, B, C, chunk=16)[0] ** 2).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4)))(x, delta * 100, A, B, C)
    assert all(np.isfinite(one).all() for one in gradients)
    assert np.abs(gradients[0]).max() > 0


def test_in_bfloat16_decays_and_sums_stay_float32():
    (x, delta, A, B, C), _ = draw(length=200)
    low = [one.astype(jnp.bfloat16) for one in (x, B, C)]
    y, state = ssd(low[0], delta, A, *low[1:])
    assert (y.dtype, state.dtype) == (jnp.float32, jnp.float32)
    wanted = ssd(x, delta, A, B, C)[0]
    assert np.abs(y - wanted).max() < 0.02 * np.abs(wanted).max()


def test_wrong_shapes_and_names_are_refused():
    (x, delta, A, B, C), options = draw()
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        ssd(x, delta, A, B, C, implementation="pallas")
    with pytest.raises(ValueError, match="with G dividing H, got .2, 23, 6, 4. and .2, 23, 4, 5."):
        ssd(x, delta, A, B.repeat(2, axis=2), C)
    with pytest.raises(ValueError, match="A .H. must be .6,."):
        ssd(x, delta, A[1:], B, C)
    with pytest.raises(ValueError, match="initial .B H P N. must be .2, 6, 4, 5."):
        ssd(x, delta, A, B, C, initial=options["initial"][:, 1:])
