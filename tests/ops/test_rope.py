"""Rotary positions against complex numbers and the published formulas, in both layouts."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import rope

RNG = np.random.default_rng(0)
WIDTH, THETA = 8, 100.0
X = RNG.normal(size=(2, 5, 3, WIDTH)).astype(np.float32)
POSITIONS = np.array([[0, 1, 2, 3, 4], [7, 3, 50, 51, 900]])


def turned(x, positions):
    """The paper's equation 12 with complex numbers: [B T H D] whose neighbours are real and imaginary parts."""
    angles = positions[:, :, None, None] * THETA ** (-2 * np.arange(WIDTH // 2) / WIDTH)
    z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def test_neighbours_turn_as_complex_numbers():
    found = rope.rotation(POSITIONS, WIDTH, THETA, kind=rope.NeighbourRotation)(X)
    np.testing.assert_allclose(found, turned(X, POSITIONS), atol=2e-4)  # angles of 900 in float32


def test_halves_are_neighbours_in_another_order():
    halves = rope.rotation(POSITIONS, WIDTH, THETA)(rope.to_halves(X, WIDTH))
    np.testing.assert_allclose(halves, rope.to_halves(turned(X, POSITIONS), WIDTH), atol=2e-4)


def test_both_layouts_give_the_same_scores_from_permuted_kernels():
    kernels = RNG.normal(size=(2, 6, 3 * WIDTH)).astype(np.float32)
    x = RNG.normal(size=(1, 5, 6)).astype(np.float32)

    def scores(kernels, kind):
        rotate = rope.rotation(POSITIONS[:1], WIDTH, THETA, kind=kind)
        query, key = (rotate((x @ kernel).reshape(1, 5, 3, WIDTH)) for kernel in kernels)
        return np.einsum("bthd,bshd->bhts", query, key)

    neighbours = scores(kernels, rope.NeighbourRotation)
    np.testing.assert_allclose(scores(rope.to_halves(kernels, WIDTH), rope.Rotation), neighbours, atol=1e-4)
    assert np.abs(scores(kernels, rope.Rotation) - neighbours).max() > 0.1


def test_layouts_are_inverse_and_keep_heads_apart():
    kernel = np.arange(2 * 8).reshape(1, 16)
    np.testing.assert_array_equal(rope.to_halves(kernel, 8)[0, :8], [0, 2, 4, 6, 1, 3, 5, 7])
    np.testing.assert_array_equal(rope.to_neighbours(rope.to_halves(kernel, 8), 8), kernel)


def test_scores_depend_only_on_distance():
    query, key = X[:1, :1, :1], X[:1, 1:2, :1]
    score = lambda at, to: float(  # noqa: E731
        jnp.sum(rope.rotation(np.array([[at]]), WIDTH)(query) * rope.rotation(np.array([[to]]), WIDTH)(key))
    )
    assert score(3, 1) == pytest.approx(score(43, 41), rel=1e-5)
    assert score(3, 1) != pytest.approx(score(1, 3), rel=1e-2)


def test_linear_scaling_divides_positions():
    found = rope.rotation(POSITIONS * 3, WIDTH, THETA, rope.Linear(3.0))(X)
    np.testing.assert_allclose(found, rope.rotation(POSITIONS, WIDTH, THETA)(X), atol=1e-3)


def test_llama_3_keeps_fast_frequencies_and_divides_slow_ones():
    scaling = rope.Llama3(8.0, 1.0, 4.0, 8192)
    plain = rope.frequencies(128, 500_000.0)
    scaled = rope.frequencies(128, 500_000.0, scaling)
    waves = 2 * np.pi / plain
    for wave, before, after in zip(waves, plain, scaled, strict=True):  # meta-llama/llama-models, apply_scaling
        if wave < 8192 / 4:
            expected = before
        elif wave > 8192:
            expected = before / 8
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            expected = (1 - smooth) * before / 8 + smooth * before
        assert after == pytest.approx(expected, rel=1e-5)
    ratios = plain / scaled
    assert (ratios.min(), ratios.max()) == (1, 8)
    assert ((ratios > 1.01) & (ratios < 7.99)).sum() >= 3  # the mixture is looked at, too


def test_angles_are_float32_for_heads_of_bfloat16():
    """In bfloat16 the positions 1000 and 1001 are one."""
    x = jnp.ones((1, 2, 1, WIDTH), jnp.bfloat16)
    out = rope.rotation(np.array([[1000, 1001]]), WIDTH)(x)
    assert out.dtype == jnp.bfloat16
    assert np.abs(np.float32(out[0, 0] - out[0, 1])).max() > 0.5
