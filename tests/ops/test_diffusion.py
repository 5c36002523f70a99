"""Noise and the ways back from it: tables and steps against improved-diffusion's code as DiT keeps it (stored,
tests/goldens/make_diffusion.py), then Gaussian data, for which every step is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import diffusion

GOLDEN = Path(__file__).parents[1] / "goldens" / "diffusion.npz"
BETAS = {"linear": diffusion.linear_betas, "cosine": diffusion.cosine_betas}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.mark.parametrize("name", BETAS)
def test_tables_equal_the_originals_in_float64(golden, name):
    betas = BETAS[name]()
    chain = diffusion.chain(betas)
    np.testing.assert_allclose(betas, golden[f"tables/{name}/betas"], rtol=1e-12)
    np.testing.assert_allclose(chain.kept, golden[f"tables/{name}/kept"], rtol=1e-10)
    # The differences of nearly equal numbers cost digits.
    np.testing.assert_allclose(
        chain.posterior_log_variance, golden[f"tables/{name}/posterior_log_variance"], rtol=1e-10
    )


def test_published_numbers_of_the_cosine():
    betas = diffusion.cosine_betas()
    kept = diffusion.chain(betas).kept
    np.testing.assert_allclose(betas[[0, 998, 999]], [4.1284225e-05, 0.7499994, 0.999], rtol=1e-6)
    np.testing.assert_allclose(kept[[0, 499, 998, 999]], [0.9999587, 0.4938436, 2.42877e-06, 2.42877e-09], rtol=2e-6)


@pytest.mark.parametrize("count", [7, 10, 64, 100, 250])
def test_steps_left_out_equal_the_originals(golden, count):
    chain = diffusion.chain(diffusion.cosine_betas(), count)
    np.testing.assert_array_equal(chain.timesteps, golden[f"spaced/{count}/timesteps"])
    np.testing.assert_allclose(chain.betas, golden[f"spaced/{count}/betas"], rtol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 1001])
def test_a_chain_of_no_steps_is_refused(count):
    with pytest.raises(ValueError, match="between 2 and all 1000"):
        diffusion.chain(diffusion.cosine_betas(), count)


def test_noise_keeps_the_share_that_the_table_says_and_gives_the_data_back():
    chain = diffusion.chain(diffusion.linear_betas())
    x, noise = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    t = jnp.array([0, 400, 999])
    x_t = diffusion.noised(chain, x, noise, t)
    for i, kept in enumerate(chain.kept[np.array(t)]):
        np.testing.assert_allclose(x_t[i], kept**0.5 * x[i] + (1 - kept) ** 0.5 * noise[i], atol=1e-6)
    np.testing.assert_allclose(diffusion.data_from(chain, x_t, noise, t)[:2], x[:2], atol=1e-5)


def test_the_learned_variance_lies_between_its_bounds_and_only_the_bound_trains_it():
    chain = diffusion.chain(diffusion.cosine_betas(50))
    rng = np.random.default_rng(1)
    x, noise, guess = rng.normal(size=(3, 4, 6)).astype(np.float32)
    t = jnp.array([0, 1, 30, 49])
    step = jax.jit(lambda output: diffusion.learned_range(chain, output, diffusion.noised(chain, x, noise, t), t))
    for place, table in ((1.0, np.log(chain.betas)), (-1.0, chain.posterior_log_variance)):
        found = step(np.concatenate([guess, np.full_like(x, place)], axis=-1)).log_variance
        np.testing.assert_allclose(found, np.broadcast_to(table[np.array(t)][:, None], x.shape), rtol=1e-6)

    def parts(output: jax.Array) -> jax.Array:  # [2]
        return jnp.stack(diffusion.hybrid_loss(chain, output, x, noise, t)).sum(1)

    of_error, of_bound = jax.jit(jax.jacrev(parts))(np.concatenate([guess, 0.3 * noise], axis=-1))
    assert np.all(of_error[:, 6:] == 0)
    assert np.all(of_error[:, :6] != 0)
    assert np.all(of_bound[:, :6] == 0)
    assert np.all(of_bound[:, 6:] != 0)


def test_where_the_noise_is_known_the_bound_is_least_at_the_posteriors_variance():
    """KL is 0 there; at t = 0, a likelihood takes its place, which KL would not equal."""
    chain = diffusion.chain(diffusion.cosine_betas(50))
    x, noise = np.random.default_rng(2).normal(size=(2, 4, 6)).astype(np.float32)
    output, t = np.concatenate([noise, -np.ones_like(x)], axis=-1), jnp.array([0, 1, 25, 40])
    error, bound = jax.jit(lambda output: diffusion.hybrid_loss(chain, output, x, noise, t))(output)
    np.testing.assert_allclose(error, 0, atol=1e-12)
    np.testing.assert_allclose(bound[1:], 0, atol=1e-5)
    assert bound[0] > 0.1


def test_a_network_that_gives_too_few_channels_is_told():
    chain = diffusion.chain(diffusion.linear_betas())
    with pytest.raises(ValueError, match="two channels for each of its input, got 3 for 3"):
        diffusion.learned_range(chain, jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.array([1, 2]))


MEAN, DEVIATION, ROWS = 2.0, 0.5, 20_000


def exact_noise(kept: jax.Array, x: jax.Array) -> jax.Array:
    """What a perfect network says where the data are N(MEAN, DEVIATION^2)."""
    variance = kept * DEVIATION**2 + 1 - kept
    return jnp.sqrt(1 - kept) * (x - jnp.sqrt(kept) * MEAN) / variance


@pytest.mark.parametrize("way", ["ancestral", "ddim", "ddim with noise"])
def test_a_perfect_network_draws_gaussian_data(way):
    chain = diffusion.chain(diffusion.cosine_betas(), 100)
    kept = jnp.asarray(np.interp(np.arange(1000), chain.timesteps, chain.kept), jnp.float32)
    denoise = lambda x, t: exact_noise(kept[t], x)  # noqa: E731
    start, noise = jax.random.normal(jax.random.key(0), (ROWS, 1)), diffusion.normal_noise(jax.random.key(1), (ROWS, 1))
    if way == "ancestral":
        x = diffusion.ancestral(chain, denoise, start, noise, reverse=diffusion.fixed_variance)
    else:
        x = diffusion.ddim(chain, denoise, start, noise, eta=float(way != "ddim"))
    np.testing.assert_allclose(x.mean(), MEAN, atol=0.02)
    np.testing.assert_allclose(x.std(), DEVIATION, atol=0.03)


def test_without_noise_ddim_needs_no_generator_and_with_it_says_so():
    chain = diffusion.chain(diffusion.linear_betas(), 10)
    with pytest.raises(ValueError, match="eta=1.0 draws noise"):
        diffusion.ddim(chain, lambda x, t: x, jnp.zeros(3), eta=1.0)


def exact_velocity(x: jax.Array, t: jax.Array) -> jax.Array:
    variance = t**2 * DEVIATION**2 + (1 - t) ** 2
    return MEAN + (t * DEVIATION**2 - (1 - t)) * (x - t * MEAN) / variance


def test_flows_lead_from_noise_to_data_and_heun_gets_there_in_fewer_steps():
    start = jax.random.normal(jax.random.key(0), (ROWS, 1))
    true = MEAN + DEVIATION * start  # of data in one dimension, the flow keeps the order of the points
    errors = {}
    for walk in (diffusion.euler, diffusion.heun):
        x = walk(exact_velocity, start, diffusion.flow_times(20))
        errors[walk.__name__] = float(jnp.abs(x - true).max())
    assert errors["heun"] < 0.02 < errors["euler"] < 0.2


def test_a_flow_is_straight_and_its_speed_is_the_target():
    x, noise = np.random.default_rng(3).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(diffusion.on_path(x, noise, jnp.array([0.0, 1.0, 0.25]))[0], noise[0])
    np.testing.assert_allclose(diffusion.on_path(x, noise, jnp.array([0.0, 1.0, 0.25]))[1], x[1], atol=1e-7)
    np.testing.assert_allclose(diffusion.flow_error(x - noise, x, noise, 1), 0)


def test_a_shift_spends_steps_near_noise():
    times = diffusion.flow_times(4, 3.0)
    np.testing.assert_allclose(times, [0, 1 - 0.9, 1 - 0.75, 1 - 0.5, 1])


def test_guidance_by_one_changes_nothing():
    conditional, unconditional = jnp.arange(3.0), jnp.ones(3)
    np.testing.assert_array_equal(diffusion.guided(conditional, unconditional, 1.0), conditional)
    np.testing.assert_array_equal(diffusion.guided(conditional, unconditional, 0.0), unconditional)
    np.testing.assert_array_equal(diffusion.guided(conditional, unconditional, 3.0), 3 * conditional - 2)
