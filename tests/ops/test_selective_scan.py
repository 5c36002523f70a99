"""The selective scan: NumPy against the reference, the reference against every form, gradients too, and on a mesh.

The TPU kernel runs in interpret mode.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import chunks
from mmjax.ops import selective_scan as module
from mmjax.ops.selective_scan import selective_scan

FORMS = {
    "chunked": module.chunked,
    "associative": module.associative,
    "pallas": functools.partial(module.pallas, interpret=True),
}
NAMES = ("y", "last", "x", "delta", "A", "B", "C", "initial")


def draw(batch=2, length=150, channels=130, size=5, seed=0):
    """x, delta, A, B, C, resets, initial."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    delta, A = np.log1p(np.exp(normal(batch, length, channels) - 1)), -np.exp(normal(channels, size))
    B, C = normal(batch, length, size), normal(batch, length, size)
    return normal(batch, length, channels), delta, A, B, C, rng.random((batch, length)) < 0.03, normal(
        batch, channels, size
    )  # fmt: skip


def by_hand(x, delta, A, B, C, resets, initial):
    """One number after another, in float64."""
    h, y = np.float64(initial), np.zeros(x.shape)
    for t in range(x.shape[1]):
        h = np.where(resets[:, t, None, None], 0, h)
        h = np.exp(delta[:, t, :, None] * np.float64(A)) * h + (delta * x)[:, t, :, None] * B[:, t, None]
        y[:, t] = (h * C[:, t, None]).sum(-1)
    return y, h


def both(run, x, delta, A, B, C, resets, initial):
    """Output, last state, and what their random cotangents pull back."""
    rng = np.random.default_rng(9)
    cotangents = tuple(rng.normal(size=shape).astype(np.float32) for shape in (x.shape, initial.shape))

    @jax.jit
    def inner(x, delta, A, B, C, initial):
        begins = jnp.asarray(resets, jnp.float32)
        out, pull = jax.vjp(lambda x, delta, A, B, C, h: run(x, delta, A, B, C, begins, h), x, delta, A, B, C, initial)
        return *out, *pull(cotangents)

    return dict(zip(NAMES, inner(x, delta, A, B, C, initial), strict=True))


def assert_same(found, wanted):
    for name, one in wanted.items():
        # Sums over up to 300 tokens in another order.
        np.testing.assert_allclose(found[name], one, rtol=1e-5, atol=1e-5 * np.abs(one).max(), err_msg=name)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_the_reference_is_the_recurrence_written_out(length, channels, size, seed):
    given = draw(2, length, channels, size, seed)
    x, delta, A, B, C, resets, initial = given
    found = selective_scan(x, delta, A, B, C, initial=initial, resets=resets, implementation="reference")
    for a, b in zip(found, by_hand(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_b_is_discretised_by_eulers_rule():
    """Numbers by hand; the paper's zero-order hold would give others."""
    raw = np.array([0, 0.5, -0.5], np.float32) + 0.1
    x, z = np.array([1, 2, -1.0], np.float32), np.array([0.3, -0.2, 1.0])
    B, C = np.array([[1, 0.5], [0.2, -0.3], [0.7, 0.1]]), np.array([[1, 1], [0.5, 2], [-1, 0.4]])
    rows = (x[None, :, None], jax.nn.softplus(raw)[None, :, None], np.array([[-1.0, -2.0]]), B[None], C[None])
    y, last = selective_scan(*rows)
    np.testing.assert_allclose(y[0, :, 0], [1.11659499, -0.81213578, -0.15032674], rtol=1e-5)
    np.testing.assert_allclose(last[0, 0], [0.04725902, -0.25766932], rtol=1e-5)
    gated = (y[0, :, 0] + 0.5 * x) * jax.nn.silu(z)
    np.testing.assert_allclose(gated, [0.27859227, -0.01691402, -0.47542694], rtol=1e-5)


@pytest.fixture(scope="module", params=[(2, 150, 130, 5), (1, 300, 24, 16)], ids=str)
def given_and_wanted(request):
    given = draw(*request.param)
    return given, both(module.reference, *given)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_its_gradients_equal_the_reference(given_and_wanted, form):
    given, wanted = given_and_wanted
    assert_same(both(FORMS[form], *given), wanted)


def test_the_kernel_works_through_several_tiles_of_channels(monkeypatch):
    from mmjax.ops.kernels import selective_scan as kernel

    monkeypatch.setattr(kernel, "CHANNELS", 128)
    given = draw(2, 140, 300, 3)
    assert_same(both(FORMS["pallas"], *given), both(module.reference, *given))


def test_a_text_read_in_two_parts_is_the_text(given_and_wanted):
    (x, delta, A, B, C, resets, initial), _ = given_and_wanted
    whole, last = selective_scan(x, delta, A, B, C, initial=initial, resets=resets)
    cut, found, state = 67, [], initial
    for part in (slice(0, cut), slice(cut, cut + 1), slice(cut + 1, None)):
        rows = [one[:, part] for one in (x, delta, B, C, resets)]
        y, state = selective_scan(*rows[:2], A, *rows[2:4], initial=state, resets=rows[4])
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-5)


def test_a_reset_is_the_beginning_of_a_text():
    x, delta, A, B, C, _, _ = draw(1, 90, 6)
    resets = np.arange(90)[None] == 40
    for form in ("reference", "chunked", "associative"):
        whole = selective_scan(x, delta, A, B, C, resets=resets, implementation=form)[0]
        second = selective_scan(x[:, 40:], delta[:, 40:], A, B[:, 40:], C[:, 40:], implementation=form)[0]
        np.testing.assert_allclose(whole[:, 40:], second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["chunked", pytest.param("pallas", marks=pytest.mark.slow)])
def test_rows_and_channels_split_over_a_mesh_change_nothing(form):
    x, delta, A, B, C, resets, initial = draw(4, 140, 256, 8)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows, channels = ("data", "fsdp"), "tensor"
    specs = [(rows, None, channels)] * 2 + [(channels,), (rows,), (rows,), (rows,), (rows, channels)]
    placed = [
        jax.device_put(one, NamedSharding(mesh, PartitionSpec(*spec)))
        for one, spec in zip((x, delta, A, B, C, resets, initial), specs, strict=True)
    ]

    def loss(x, delta, A, B, C, resets, initial):
        y, last = FORMS[form](x, delta, A, B, C, 1.0 * resets, initial)
        return jnp.sum(jnp.sin(y)) + jnp.sum(last**2)

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4, 6)))
    wanted = run(x, delta, A, B, C, resets, initial)
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4, 6)))(*placed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_only_a_state_for_each_chunk_is_kept():
    x, delta, A, B, C, _, _ = draw(1, 4096, 32, 16)
    states = x.size * 16 * 4  # bytes of [B L E N]
    temporary = {}
    for form in ("reference", "chunked", "associative"):
        loss = lambda *given, form=form: selective_scan(*given, implementation=form)[0].sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(x, delta, A, B, C).compile()
        temporary[form] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary["reference"] > states
    assert temporary["chunked"] < states / 3
    assert temporary["associative"] < states / 2


def test_chunks_are_cut_filled_up_and_joined_again():
    x = jnp.arange(7.0)[None]
    body = lambda total, part: (total + part.sum(1), jnp.cumsum(part, 1) + total[:, None])  # noqa: E731
    for chunk in (1, 3, 7, 100):
        y, total = chunks.scan(body, jnp.zeros(1), x, chunk)
        np.testing.assert_array_equal(y[0], np.cumsum(np.arange(7.0)))
        np.testing.assert_array_equal(total, [21.0])


def test_wrong_shapes_and_names_are_refused():
    x, delta, A, B, C, resets, initial = draw(2, 4, 6, 3)
    for bad, message in (
        ({"implementation": "cuda"}, "implementation must be None or one of"),
        ({"initial": initial[:1]}, "initial .B E N. must be .2, 6, 3."),
        ({"resets": resets[:, 1:]}, "resets .B L. must be .2, 4."),
    ):
        with pytest.raises(ValueError, match=message):
            selective_scan(x, delta, A, B, C, **bad)
    with pytest.raises(ValueError, match="B .B L N. must be .2, 4, 3."):
        selective_scan(x, delta, A, B.swapaxes(1, 2), C)
    with pytest.raises(ValueError, match="x and delta must be"):
        selective_scan(x, delta[:1], A, B, C)
