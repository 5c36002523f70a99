"""ViTDet's parts against plain accounts; the whole of it stands beside the original in test_sam.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import vitdet

TINY = vitdet.ViTDetConfig(24, 4, width=8, depth=5, num_heads=2, hidden=12, window=4, global_layers=(2, 4))


def test_layers_that_are_alike_stand_together():
    assert TINY.runs == ((0, 2, 4), (2, 1, None), (3, 1, 4), (4, 1, None))
    assert [run.depth for run in vitdet.ViTDetConfig().runs] == [2, 1] * 4
    assert [run.first for run in dataclasses.replace(TINY, global_layers=(0,)).runs] == [0, 1]


def test_windows_are_cut_row_by_row_and_filled_up_with_zeros():
    x = np.arange(2 * 5 * 3 * 1).reshape(2, 5, 3, 1) + 1
    windows = np.asarray(vitdet.into_windows(x, 2))
    assert windows.shape == (2 * 3 * 2, 2, 2, 1)
    np.testing.assert_array_equal(windows[1, ..., 0], [[3, 0], [6, 0]])  # to the right of the first
    np.testing.assert_array_equal(windows[4, ..., 0], [[13, 14], [0, 0]])  # the lowest row
    np.testing.assert_array_equal(vitdet.from_windows(windows, 5, 3), x)


@pytest.mark.parametrize("side", [1, 3])
def test_relative_attention_is_softmax_with_both_tables_added(side):
    rng = np.random.default_rng(side)
    q, k, v = rng.normal(size=(3, 2, side, side, 2, 5)).astype(np.float32)
    rows, columns = rng.normal(size=(2, 2 * side - 1, 5)).astype(np.float32)
    expected = np.zeros_like(q, np.float64)
    for b, i, j, h in np.ndindex(*q.shape[:4]):
        scores = np.array(
            [
                [
                    q[b, i, j, h] @ k[b, u, w, h] / np.sqrt(5)
                    + q[b, i, j, h] @ (rows[i - u + side - 1] + columns[j - w + side - 1])
                    for w in range(side)
                ]
                for u in range(side)
            ]
        )
        weights = np.exp(scores - scores.max())
        expected[b, i, j, h] = np.einsum("uw,uwe->e", weights / weights.sum(), v[b, :, :, h])
    np.testing.assert_allclose(vitdet.relative_attention(q, k, v, rows, columns), expected, atol=2e-6)


@pytest.mark.parametrize("window", [4, None])
def test_what_a_layer_looks_at(window):
    """A patch reaches its window or, where there is none, all."""
    attention = vitdet.RelativeAttention(2, 6, window)
    x = np.random.default_rng(0).normal(size=(1, 36, 8)).astype(np.float32)
    other = x.copy()
    other[0, 0] += 1

    @jax.jit
    def change(x, other):
        first, params = attention.init_with_output(jax.random.key(0), x)
        return jnp.abs(attention.apply(params, other) - first).max(-1).reshape(6, 6)

    wanted = np.zeros((6, 6), bool)
    wanted[:window, :window] = True
    np.testing.assert_array_equal(change(x, other) > 0, wanted)


def test_branches_are_left_out_in_training():
    model = vitdet.ViTDet(dataclasses.replace(TINY, drop_path=0.5, depth=2, global_layers=(0, 1)), 4)
    images = np.random.default_rng(0).normal(size=(3, 24, 24, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), images)  # compiles in half the time
    train = jax.jit(lambda rng: model.apply(variables, images, train=True, rngs={"drop_path": rng}))
    first, second = (train(jax.random.key(n)) for n in range(2))
    assert jnp.abs(first - second).max() > 1e-3
