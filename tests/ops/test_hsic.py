"""HSIC is the same by its definition, by centred kernels, from features and block by block."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import hsic

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 7)) + 2  # a large mean, as features of language models have
Y = np.tanh(X @ RNG.normal(size=(7, 5))) + 0.3 * RNG.normal(size=(23, 5)) + 1
KERNELS = {"linear": hsic.inner_product, "gaussian": partial(hsic.gaussian, sigma=1.5)}


def exact_kernel(name, z):
    if name == "linear":
        return z @ z.T
    return np.exp(-((z[:, None] - z) ** 2).sum(-1) / (2 * 1.5**2))


def exact(K, L, unbiased):
    """In float64: Gretton's trace; Song's U-statistic as the average over quadruples that it estimates."""
    n = len(K)
    if not unbiased:
        H = np.eye(n) - 1 / n
        return np.trace(K @ H @ L @ H)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    pairs = (K * L.T).sum() / (n * (n - 1))
    triples = ((K.sum(0) * L.sum(1)).sum() - (K * L.T).sum()) / (n * (n - 1) * (n - 2))
    quadruples = K.sum() * L.sum() - 4 * (K.sum(0) * L.sum(1)).sum() + 2 * (K * L.T).sum()
    return pairs - 2 * triples + quadruples / (n * (n - 1) * (n - 2) * (n - 3))


@pytest.fixture(params=["linear", "gaussian"])
def kernel(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["biased", "unbiased"])
def unbiased(request):
    return request.param


def wanted(kernel, unbiased):
    K, L = (exact_kernel(kernel, z) for z in (X, Y))
    return [exact(*pair, unbiased) for pair in ((K, L), (K, K), (L, L))]


def test_the_definition(kernel, unbiased):
    K, L = (jnp.asarray(exact_kernel(kernel, z), jnp.float32) for z in (X, Y))
    found = [hsic.definition(*pair, unbiased=unbiased) for pair in ((K, L), (K, K), (L, L))]
    np.testing.assert_allclose(found, wanted(kernel, unbiased), rtol=2e-3)  # not centred first: float32 shows


def test_the_definition_takes_kernels_that_are_not_symmetric():
    K, L = RNG.normal(size=(2, 9, 9))
    for unbiased in (False, True):
        found = hsic.definition(jnp.asarray(K, jnp.float32), jnp.asarray(L, jnp.float32), unbiased=unbiased)
        np.testing.assert_allclose(found, exact(K, L, unbiased), rtol=1e-4, atol=1e-6)


def test_centred_kernels_and_a_sum(kernel, unbiased):
    K, L = (hsic.centred(KERNELS[kernel](*2 * [jnp.asarray(z, jnp.float32)]), unbiased=unbiased) for z in (X, Y))
    found = [hsic.of_centred(*pair) for pair in ((K, L), (K, K), (L, L))]
    np.testing.assert_allclose(found, wanted(kernel, unbiased), rtol=1e-5)
    np.testing.assert_allclose(K.sum(0), 0, atol=1e-3)


def test_from_features(unbiased):
    found = hsic.linear(jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32), unbiased=unbiased)
    np.testing.assert_allclose(found, wanted("linear", unbiased), rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_blocks_of_any_size(kernel, unbiased, rows):
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    found = hsic.streamed(x, y, KERNELS[kernel], unbiased=unbiased, rows=rows)
    np.testing.assert_allclose(found, wanted(kernel, unbiased), rtol=1e-5)


def test_streaming_never_holds_a_kernel():
    x = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    compiled = hsic.streamed.lower(x, x, hsic.gaussian, unbiased=True, rows=64).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 4096 * 4 / 4


def test_the_gaussian_of_a_row_and_itself_is_one():
    z = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(jnp.diag(hsic.gaussian(z, z)), 1, rtol=1e-5)
    assert hsic.gaussian(z, z).max() <= 1


def test_independent_features_of_any_width_have_an_unbiased_ratio_around_zero():
    ratios = []
    for seed in range(20):
        x, y = jax.random.normal(jax.random.key(seed), (2, 32, 256))
        ratios.append(hsic.linear(x, y, unbiased=True).ratio())
    assert abs(np.mean(ratios)) < 0.02
    assert hsic.linear(x, y, unbiased=False).ratio() > 0.8


def test_epsilon_is_added_to_the_root():
    one = hsic.HSIC(jnp.float32(2), jnp.float32(4), jnp.float32(9))
    np.testing.assert_allclose(one.ratio(), 1 / 3)
    np.testing.assert_allclose(one.ratio(2.0), 1 / 4)
