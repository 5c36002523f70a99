"""Residual codes against a plain account in NumPy, for any inner quantiser; what training does to each level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.quantizers import FSQ, Codebook, MovingCodebook
from mmjax.nn.residual import ResidualCodebook, started

Z = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
MOVING = ResidualCodebook(MovingCodebook(5, 4, 0.5, decay=0.8), 3, dropout=True)


def plain(z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Ids [... Q], their sum, and what is left before each level."""
    left, ids, total = z.astype(np.float64), [], 0
    residuals = []
    for level in codes.astype(np.float64):
        residuals.append(left)
        found = np.square(left[..., None, :] - level).sum(-1).argmin(-1)
        ids.append(found)
        total, left = total + level[found], left - level[found]
    return np.stack(ids, -1), total, residuals


def filled(levels: int, num_codes: int, rng: int = 1) -> dict:
    codes = np.random.default_rng(rng).normal(size=(levels, num_codes, 4)).astype(np.float32)
    count = np.random.default_rng(rng + 1).uniform(0.5, 2, (levels, num_codes)).astype(np.float32)
    return {"codes": codes, "count": count, "total": codes * count[..., None]}


def variables(state: dict) -> dict:
    return {"codebook": {"layers": {"state": state}}}


def test_codes_sums_loss_and_gradient_equal_the_plain_account():
    state = filled(3, 5)
    ids, total, residuals = plain(Z, state["codes"])
    weights = np.random.default_rng(3).normal(size=Z.shape).astype(np.float32)

    def run(z):
        out = MOVING.apply(variables(state), z)
        return jnp.sum(weights * out.latents) + out.loss, out

    slope, out = jax.jit(jax.grad(run, has_aux=True))(Z)
    np.testing.assert_array_equal(out.ids, ids)
    np.testing.assert_allclose(out.latents, total, rtol=1e-5, atol=1e-6)
    codes = [level[ids[..., i]] for i, level in enumerate(state["codes"])]
    loss = 0.5 * np.mean([np.mean(np.square(r - code)) for r, code in zip(residuals, codes, strict=True)])
    np.testing.assert_allclose(out.loss, loss, rtol=1e-5)
    # One straight-through at the end; what a level gave sends nothing, so each level's loss pulls at z alone.
    pull = np.mean([2 * (r - code) / Z.size for r, code in zip(residuals, codes, strict=True)], axis=0)
    np.testing.assert_allclose(slope, weights + 0.5 * pull, rtol=1e-4, atol=1e-6)
    found = MOVING.apply(variables(state), ids[..., :2], method="embed")
    np.testing.assert_allclose(found, codes[0] + codes[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_fewer_levels_are_the_first_ones():
    state = filled(3, 5)
    ids, _, residuals = plain(Z, state["codes"])
    out = MOVING.apply(variables(state), Z, levels=2)
    np.testing.assert_array_equal(out.ids, ids[..., :2])
    np.testing.assert_allclose(out.latents, Z - residuals[2], rtol=1e-5, atol=1e-6)
    for levels in (0, 4):
        with pytest.raises(ValueError, match=f"3 levels, so 1 to 3 may count, got {levels}"):
            MOVING.apply(variables(state), Z, levels=levels)
    with pytest.raises(ValueError, match="3 levels, so 1 to 3 may count, got 4"):
        MOVING.apply(variables(state), np.zeros((2, 4), np.int32), method="embed")


def test_levels_that_dropout_leaves_out_neither_sound_nor_learn():
    state = filled(3, 5)
    ids, _, residuals = plain(Z, state["codes"])
    residuals.append(None)

    @jax.jit
    def run(rng):
        return MOVING.apply(variables(state), Z, train=True, mutable=["codebook"], rngs={"codes": rng})

    seen = set()
    for seed in range(8):
        out, changed = run(jax.random.key(seed))
        moved = changed["codebook"]["layers"]["state"]
        first = sum(not np.array_equal(moved["codes"][i], state["codes"][i]) for i in range(3))
        seen.add(first)
        assert 1 <= first <= 3
        for name, old in state.items():
            np.testing.assert_array_equal(moved[name][first:], old[first:], err_msg=name)
        quantised = sum(level[ids[..., i]] for i, level in enumerate(state["codes"][:first]))
        np.testing.assert_allclose(out.latents, quantised, rtol=1e-5, atol=1e-6)
        losses = [np.mean(np.square(residuals[i] - state["codes"][i][ids[..., i]])) for i in range(first)]
        np.testing.assert_allclose(out.loss, 0.5 * np.mean(losses), rtol=1e-5)
        hits = np.bincount(ids[..., 0].ravel(), minlength=5)
        np.testing.assert_allclose(moved["count"][0], 0.8 * state["count"][0] + 0.2 * hits, rtol=1e-5)
    assert seen == {1, 2, 3}


@pytest.mark.slow
def test_k_means_starts_each_level_at_what_the_levels_before_leave():
    z = np.random.default_rng(4).normal(size=(64, 4)).astype(np.float32)
    state = jax.jit(lambda z: started(z, 3, 8, jax.random.key(0)))(z)
    assert {name: x.shape for name, x in state.items()} == {"codes": (3, 8, 4), "count": (3, 8), "total": (3, 8, 4)}
    left = [np.mean(np.square(r)) for r in plain(z, np.asarray(state["codes"]))[2]]
    assert left[0] > 1.5 * left[1] > 2 * left[2]
    with pytest.raises(ValueError, match="num_codes=65"):
        started(z, 1, 65, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("inner", [Codebook(5, 4), FSQ((5, 3, 3, 4))])
def test_any_quantiser_may_be_a_level(inner):
    model = ResidualCodebook(inner, 2)
    found = model.init(jax.random.key(0), Z)
    out = model.apply(found, Z)
    assert out.ids.shape == (3, 7, 2)
    assert (model.dim, model.num_codes) == (inner.dim, inner.num_codes)
    np.testing.assert_allclose(model.apply(found, out.ids, method="embed"), out.latents, atol=1e-6)
    if "params" in found:
        codes = found["params"]["layers"]["codes"]
        assert np.abs(codes[0] - codes[1]).max() > 0.01  # each level draws its own
        slopes = jax.grad(lambda p: model.apply({"params": p}, Z).loss)(found["params"])
        assert all(np.any(level) for level in slopes["layers"]["codes"])
