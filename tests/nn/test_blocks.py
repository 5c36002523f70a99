"""Projections, norms, MLPs, attention and blocks against plain NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PostNormBlock, PreNormBlock
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, GatedMLP, gelu, quick_gelu
from mmjax.nn.norms import LayerNorm, RMSNorm
from mmjax.ops import masks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 6)).astype(np.float32)


def random_variables(module, *inputs):
    """Every parameter random: fresh scales are 1 and fresh biases 0, which hides a missing one."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)


def norm(x, p, epsilon=1e-5):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def linear(x, p):
    return np.einsum("bti,io->bto", x, p["kernel"]) + p["bias"]


def attend(x, context, p, heads):
    """One head after another, by slices of the columns."""
    out = np.zeros_like(x)
    query, key, value = linear(x, p["query"]), linear(context, p["key"]), linear(context, p["value"])
    size = x.shape[-1] // heads
    for head in range(heads):
        of = slice(head * size, (head + 1) * size)
        scores = np.exp(query[..., of] @ key[..., of].transpose(0, 2, 1) / np.sqrt(size))
        out[..., of] = scores / scores.sum(-1, keepdims=True) @ value[..., of]
    return linear(out, p["out"])


def mlp(x, p):
    hidden = linear(x, p["up"])
    return linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, p["down"])


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6), (2, 3, 2, 6)])
def test_linear_acts_on_the_last_axis(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    variables = random_variables(Linear(7), x)
    expected = np.einsum("...i,io->...o", x, variables["params"]["kernel"]) + variables["params"]["bias"]
    np.testing.assert_allclose(Linear(7).apply(variables, x), expected, atol=1e-5)
    assert set(jax.eval_shape(Linear(7, use_bias=False).init, jax.random.key(0), x)["params"]) == {"kernel"}


def test_layer_norm_far_from_zero():
    """With E[x^2] - E[x]^2 the variance of such a row is lost in rounding."""
    x = (RNG.normal(size=(4, 6)) + 1000).astype(np.float32)
    variables = random_variables(LayerNorm(), x)
    expected = norm(x.astype(np.float64), variables["params"])
    np.testing.assert_allclose(LayerNorm().apply(variables, x), expected, atol=1e-3)


def test_rms_norm():
    variables = random_variables(RMSNorm(), X)
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-6) * variables["params"]["scale"]
    np.testing.assert_allclose(RMSNorm().apply(variables, X), expected, atol=1e-5)


def test_norms_compute_in_float32_and_return_their_type():
    x = jnp.asarray(X, jnp.bfloat16)
    for module in (LayerNorm(dtype=jnp.bfloat16), RMSNorm(dtype=jnp.bfloat16)):
        variables = random_variables(module, x)
        out = module.apply(variables, x)
        assert out.dtype == jnp.bfloat16
        if isinstance(module, LayerNorm):
            expected = LayerNorm().apply(variables, x).astype(jnp.bfloat16)
        else:  # LLaMA rounds twice: what is normalised, then its product with the scale
            normalised = RMSNorm().apply({"params": {"scale": np.ones(6, np.float32)}}, x).astype(jnp.bfloat16)
            expected = normalised * jnp.asarray(variables["params"]["scale"], jnp.bfloat16)
            assert (expected != RMSNorm().apply(variables, x).astype(jnp.bfloat16)).any()
        np.testing.assert_array_equal(out, expected)


def test_activations():
    x = np.linspace(-4, 4, 33).astype(np.float32)
    np.testing.assert_allclose(gelu(x), x * (1 + erf(x / np.sqrt(2))) / 2, atol=1e-6)
    np.testing.assert_allclose(quick_gelu(x), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


def test_gated_mlp():
    variables = random_variables(GatedMLP(9), X)
    p = {name: leaf["kernel"] for name, leaf in variables["params"].items()}
    gate = X @ p["gate"]
    np.testing.assert_allclose(
        GatedMLP(9).apply(variables, X), (gate / (1 + np.exp(-gate)) * (X @ p["up"])) @ p["down"], atol=1e-4
    )


def test_attention_to_itself_and_to_a_context():
    context = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    for inputs in ((X, X), (X, context)):
        module = Attention(num_heads=3)
        extra = {} if inputs[1] is X else {"context": context}
        apply = lambda method, *args: method(*args, X, **extra)  # noqa: B023, E731
        shapes = jax.eval_shape(partial(module.init, **extra), jax.random.key(0), X)
        variables = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
        np.testing.assert_allclose(
            apply(module.apply, variables), attend(*inputs, variables["params"], heads=3), atol=1e-4
        )


def test_attention_takes_masks():
    variables = random_variables(Attention(2), X)
    out = Attention(2).apply(variables, X, masks.Causal())
    for i in range(5):  # row i sees what it would see if the sequence ended there
        expected = attend(X[:, : i + 1], X[:, : i + 1], variables["params"], heads=2)[:, -1]
        np.testing.assert_allclose(out[:, i], expected, atol=1e-4)


def test_width_must_divide_into_heads():
    with pytest.raises(ValueError, match="width=6, num_heads=4"):
        Attention(4).init(jax.random.key(0), X)


@pytest.mark.parametrize("kind", [PreNormBlock, PostNormBlock])
def test_blocks_put_the_norm_where_they_say(kind):
    block = kind(partial(Attention, 2), partial(MLP, 9), LayerNorm)
    variables = random_variables(block, X)
    p = variables["params"]
    assert set(p) == {"norm1", "attention", "norm2", "mlp"}
    if kind is PreNormBlock:
        x = norm(X, p["norm1"])
        x = X + attend(x, x, p["attention"], 2)
        x = x + mlp(norm(x, p["norm2"]), p["mlp"])
    else:
        x = norm(X + attend(X, X, p["attention"], 2), p["norm1"])
        x = norm(x + mlp(x, p["mlp"]), p["norm2"])
    np.testing.assert_allclose(block.apply(variables, X), x, rtol=1e-4, atol=1e-4)
