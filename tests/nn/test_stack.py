"""The scanned stack: a loop over its layers, torch's AdamW on them, and what remat and unrolling leave unchanged."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import Compute, Stack, per_layer
from mmjax.ops import masks

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "stack_adamw.npz")
BLOCK = partial(PreNormBlock, partial(Attention, 2), partial(MLP, 12), LayerNorm)
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


class Model(nn.Module):
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x, mask=None, collect=False):
        return Stack(BLOCK, 3, self.compute, name="layers")(x, mask, collect=collect)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + jnp.tanh(nn.Dense(x.shape[-1], name="dense")(x))


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(Stack(Residual, 3, name="layers")(x)[0])


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Model().init)(jax.random.key(0), X)


def test_the_tree_is_one_layer_with_a_leading_axis(variables):
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert set(shapes) == {"layers"}
    assert set(shapes["layers"]) == {"norm1", "attention", "norm2", "mlp"}
    assert shapes["layers"]["mlp"]["up"] == {"kernel": (3, 8, 12), "bias": (3, 12)}


def test_each_layer_draws_its_own_initial_values(variables):
    kernels = variables["params"]["layers"]["mlp"]["up"]["kernel"]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs(np.corrcoef(kernels[a].ravel(), kernels[b].ravel())[0, 1]) < 0.35
    # The deviation of one layer of 8 inputs, not that of an array whose first axis is counted as inputs.
    assert np.std(kernels) == pytest.approx(8**-0.5, rel=0.15)


def test_the_stack_is_a_loop_over_its_layers(variables):
    mask = masks.Causal()
    out, hidden = jax.jit(partial(Model().apply, collect=True))(variables, X, mask)
    layer = jax.jit(BLOCK().apply)
    expected = X
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], variables["params"]["layers"])
        expected = layer({"params": one}, expected, mask)
        np.testing.assert_allclose(hidden[i], expected, atol=1e-5)
    np.testing.assert_array_equal(out, hidden[-1])
    assert Model().apply(variables, X, mask)[1] is None


def test_each_layer_is_given_its_own_part(variables):
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x, mask, own):
            return x + own["factor"] * Residual(name="inner")(x) + mask

    model, x = Stack(Scaled, 3, name="layers"), X[:, 0]
    own, mask = {"factor": np.array([0.5, 0.0, 2.0], np.float32)}, np.float32(0.1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, mask, each=own))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.2, np.float32), shapes)
    out, _ = jax.jit(lambda params: model.apply(params, x, mask, each=own))(params)
    expected = x
    for factor in own["factor"]:
        expected = expected + factor * (expected + np.tanh(expected @ np.full((8, 8), 0.2) + 0.2)) + mask
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_remat_and_unrolling_change_no_gradient(variables):
    def gradients(compute):
        return jax.jit(jax.grad(lambda v: jnp.sum(Model(compute).apply(v, X, masks.Causal())[0] ** 2)))(variables)

    expected = gradients(Compute())
    for compute in (Compute(remat="full"), Compute(remat="dots"), Compute(unroll=True)):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), gradients(compute), expected)


def test_remat_keeps_less(variables):
    def saved(compute):  # arrays that the backward scan reads back, by their total size
        _, pull = jax.vjp(lambda v: Model(compute).apply(v, X)[0], variables)
        return sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))

    nothing, dots, full = (saved(Compute(remat=remat)) for remat in (None, "dots", "full"))
    assert full < dots < nothing


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="one of full, dots, got 'some'"):
        Compute(remat="some")


def ours(prefix: str) -> dict:
    """A group of the golden as our tree: torch's Linear holds [out in], ours [in out]."""

    def dense(name: str) -> dict:
        return {"kernel": GOLDEN[f"{prefix}/{name}.weight"].T, "bias": GOLDEN[f"{prefix}/{name}.bias"]}

    layers = [{"dense": dense(f"layers.{i}")} for i in range(3)]
    return {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers), "head": dense("head")}


def test_adamw_on_stacked_layers_equals_torch():
    """Clipping, learning rates and decay by tensor, though three tensors lie in one array."""

    def clip(path, gradient, layer):
        return gradient * jnp.minimum(1, 0.5 / (jnp.linalg.norm(gradient) + 1e-6))

    def by_depth(path, update, layer):
        return update if layer is None else update * 0.5 ** (2 - layer)

    def stateless(fn):
        return optax.stateless(lambda updates, params: per_layer(fn)(updates))

    decayed = partial(jax.tree_util.tree_map_with_path, lambda path, leaf: path[-1].key == "kernel")
    adamw = optax.adamw(0.1, b1=0.9, b2=0.98, eps=1e-2, weight_decay=0.2, mask=decayed)
    optimizer = optax.chain(stateless(clip), adamw, stateless(by_depth))
    params = ours("before")
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss = lambda params: jnp.mean((Classifier().apply({"params": params}, x) - y) ** 2)  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(3):
        params, state = step(params, state, GOLDEN["x"][i], GOLDEN["y"][i])
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), params, ours(f"after{i}"))


def test_per_layer_hands_over_paths_and_indices():
    tree = {"a": {"layers": {"mlp": {"kernel": jnp.ones((3, 2))}}}, "head": jnp.ones(2)}
    seen = []

    def fn(path, leaf, layer):
        seen.append((path, leaf.shape, layer is None))
        return leaf if layer is None else leaf * layer

    out = per_layer(fn)(tree)
    assert seen == [("a/layers/mlp/kernel", (2,), False), ("head", (2,), True)]
    np.testing.assert_array_equal(out["a"]["layers"]["mlp"]["kernel"], [[0, 0], [1, 1], [2, 2]])
