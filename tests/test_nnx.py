"""A wrapped module computes, differentiates and trains as NNX users expect."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from mmjax import nnx as adapter


class Scaled(nn.Module):
    """Two layers and a collection that is no parameter."""

    @nn.compact
    def __call__(self, x):
        scale = self.variable("constants", "scale", lambda: jnp.float32(3))
        return scale.value * nn.Dense(2)(nn.tanh(nn.Dense(4)(x)))

    def twice(self, x):
        return 2 * self(x)


MODEL, X = Scaled(), np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def variables():
    return MODEL.init(jax.random.key(0), X)


def test_calls_and_methods_equal_apply(variables):
    wrapped = adapter.wrap(MODEL, variables)
    expected = MODEL.apply(variables, X)
    np.testing.assert_array_equal(wrapped(X), expected)
    np.testing.assert_array_equal(wrapped(X, method="twice"), 2 * expected)
    np.testing.assert_allclose(nnx.jit(lambda module, x: module(x))(wrapped, X), expected, rtol=1e-6)


def test_variables_come_back_as_they_went_in(variables):
    back = adapter.wrap(MODEL, variables).variables
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_gradients_reach_parameters_only_and_equal_jax_grad(variables):
    wrapped = adapter.wrap(MODEL, variables)
    found = nnx.to_pure_dict(nnx.grad(lambda module: (module(X) ** 2).sum())(wrapped))
    rest = {"constants": variables["constants"]}
    expected = jax.grad(lambda params: (MODEL.apply({"params": params, **rest}, X) ** 2).sum())(variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found["collections"]["params"], expected)
    assert set(found["collections"]) == {"params"}


def test_an_nnx_optimizer_trains_it_in_place(variables):
    wrapped = adapter.wrap(MODEL, variables)
    optimizer = nnx.Optimizer(wrapped, optax.sgd(0.01), wrt=nnx.Param)
    losses = []
    for _ in range(5):
        loss, grads = nnx.value_and_grad(lambda module: (module(X) ** 2).mean())(wrapped)
        optimizer.update(wrapped, grads)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert wrapped.variables["constants"] == variables["constants"]


def test_split_and_merge_keep_it(variables):
    graph, state = nnx.split(adapter.wrap(MODEL, variables))
    np.testing.assert_array_equal(nnx.merge(graph, state)(X), MODEL.apply(variables, X))


def test_bare_parameters_are_refused(variables):
    with pytest.raises(ValueError, match="must hold the collection"):
        adapter.wrap(MODEL, variables["params"])
