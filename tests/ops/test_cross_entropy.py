"""Cross entropy: against PyTorch's numbers and float64 NumPy, and the same in chunks and on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import cross_entropy
from mmjax.ops.cross_entropy import IGNORED, linear_cross_entropy, linear_nll, next_tokens, softmax_cross_entropy

N, D, V = 24, 6, 40


@pytest.fixture
def inputs():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, V, N).astype(np.int32)
    labels[[0, 5, 23]] = IGNORED
    hidden, head = rng.normal(size=(N, D)).astype(np.float32), rng.normal(size=(D, V)).astype(np.float32)
    return hidden, head, labels, rng.uniform(0.5, 2, N).astype(np.float32)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 5 * V)  # 24 rows: four chunks of five, one filled up with padding


def oracle(hidden, head, labels, weights, smoothing):
    """Mean, and its derivative by hidden and head, row by row in float64."""
    hidden, head, weights = np.float64(hidden), np.float64(head), np.where(labels == IGNORED, 0, np.float64(weights))
    value, by_hidden, by_head = 0.0, np.zeros_like(hidden), np.zeros_like(head)
    for n in np.flatnonzero(labels != IGNORED):
        logits = hidden[n] @ head
        log_p = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        target = np.full(V, smoothing / V)
        target[labels[n]] += 1 - smoothing
        value -= weights[n] * (target * log_p).sum()
        slope = weights[n] * (np.exp(log_p) - target)
        by_hidden[n] = head @ slope
        by_head += np.outer(hidden[n], slope)
    total = weights.sum()
    return value / total, by_hidden / total, by_head / total


def value_and_grad(inputs, smoothing, implementation):
    hidden, head, labels, weights = (jnp.asarray(x) for x in inputs)

    def loss(hidden, head):
        options = {"label_smoothing": smoothing, "implementation": implementation}
        return linear_cross_entropy(hidden, head, labels, weights, **options)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_value_and_gradients_are_those_of_the_formula(inputs, small_chunks, implementation, smoothing):
    value, (by_hidden, by_head) = value_and_grad(inputs, smoothing, implementation)
    wanted = oracle(*inputs, smoothing)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(by_hidden, wanted[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_head, wanted[2], rtol=1e-5, atol=1e-6)


# data, fsdp, tensor; 24 rows and 40 ids divide over all but the last, whose 8 x 1 x 1 cuts rows only
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4), (8, 1, 1)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_eight_devices_give_the_numbers_of_one(inputs, monkeypatch, shape, smoothing):
    monkeypatch.setattr(cross_entropy, "CHUNK", 2 * V // shape[2])
    wanted = oracle(*inputs, smoothing)
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows, table = PartitionSpec(("data", "fsdp")), PartitionSpec("fsdp", "tensor")
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs, (rows, table, rows, rows), strict=True)
    ]
    with jax.set_mesh(mesh):
        value, (by_hidden, by_head) = value_and_grad(placed, smoothing, "chunked")
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(by_hidden, wanted[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_head, wanted[2], rtol=1e-5, atol=1e-6)


def test_sizes_that_do_not_divide_over_the_mesh_still_give_the_numbers(inputs, small_chunks):
    hidden, head, labels, weights = inputs
    odd = hidden[:23], head[:, :39], np.minimum(labels[:23], 38), weights[:23]
    wanted, slopes = value_and_grad(odd, 0.1, "reference")
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        value, gradients = value_and_grad(odd, 0.1, "chunked")
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for gradient, slope in zip(
        gradients, slopes, strict=True
    ):  # five slices of eight ids, so one of the 39 comes twice
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_the_losses_of_tokens_and_their_own_cotangents(inputs, small_chunks):
    hidden, head, labels, weights = (jnp.asarray(x) for x in inputs)
    batch = hidden.reshape(2, 12, D), labels.reshape(2, 12)
    losses, pull = jax.vjp(lambda x: linear_nll(x, head, batch[1], implementation="chunked"), batch[0])
    wanted, pull_reference = jax.vjp(lambda x: softmax_cross_entropy(x @ head, batch[1]), batch[0])
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert losses.shape == (2, 12)
    assert (losses.ravel()[np.array([0, 5, 23])] == 0).all()
    cotangent = weights.reshape(2, 12)
    np.testing.assert_allclose(pull(cotangent)[0], pull_reference(cotangent)[0], rtol=1e-4, atol=1e-6)


def test_no_array_has_the_size_of_the_logits(inputs, small_chunks):
    hidden, head, labels, _ = (jnp.asarray(x) for x in inputs)

    def largest(implementation):
        loss = lambda hidden, head: linear_cross_entropy(hidden, head, labels, implementation=implementation)  # noqa: E731
        return max(sizes(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, head).jaxpr))

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (out.aval.size for out in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    assert largest("reference") == N * V
    assert largest("chunked") == D * V  # the head's own gradient


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_bfloat16_products_are_summed_in_float32(inputs, implementation):
    hidden, head, labels = jnp.asarray(inputs[0], jnp.bfloat16), jnp.asarray(inputs[1]), inputs[2]
    exact = softmax_cross_entropy(hidden.astype(jnp.float32) @ head.astype(jnp.bfloat16).astype(jnp.float32), labels)
    losses, pull = jax.vjp(lambda hidden: linear_nll(hidden, head, labels, implementation=implementation), hidden)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, exact, rtol=1e-5, atol=1e-5)
    assert pull(losses)[0].dtype == jnp.bfloat16


def test_a_batch_in_which_nothing_counts_is_zero(inputs):
    hidden, head, labels, _ = inputs
    value, gradient = jax.value_and_grad(linear_cross_entropy)(hidden, head, np.full_like(labels, IGNORED))
    assert value == 0
    assert (gradient == 0).all()


def test_huge_logits_neither_overflow_nor_lose_the_label(small_chunks):
    hidden = jnp.array([[100.0, 0.0], [-100.0, 0.0]])
    head = jnp.array([[10.0, -10.0, 0.0], [0.0, 0.0, 1.0]])
    losses = linear_nll(hidden, head, jnp.array([0, 0]), implementation="chunked")
    np.testing.assert_allclose(losses, [0.0, 2000.0])


def test_next_tokens_end_with_the_text_and_with_the_document():
    input_ids = jnp.array([[4, 5, 6, 7, 8]])
    np.testing.assert_array_equal(next_tokens(input_ids), [[5, 6, 7, 8, IGNORED]])
    right = jnp.array([[True, True, True, False, False]])
    np.testing.assert_array_equal(next_tokens(input_ids, right), [[5, 6, IGNORED, IGNORED, IGNORED]])
    left = jnp.array([[False, False, True, True, True]])
    np.testing.assert_array_equal(next_tokens(input_ids, left), [[IGNORED, IGNORED, 7, 8, IGNORED]])
    segments = jnp.array([[1, 1, 2, 2, 2]])
    np.testing.assert_array_equal(next_tokens(input_ids, None, segments), [[5, IGNORED, 7, 8, IGNORED]])


def test_the_choice_is_by_the_size_of_the_logits(inputs, monkeypatch):
    hidden, head, labels, _ = (jnp.asarray(x) for x in inputs)
    chunked = lambda: "scan" in str(jax.make_jaxpr(lambda *x: linear_nll(*x))(hidden, head, labels))  # noqa: E731
    assert not chunked()
    monkeypatch.setattr(cross_entropy, "CHUNK", N * V - 1)
    assert chunked()


def test_what_cannot_run_is_an_error(inputs):
    hidden, head, labels, _ = inputs
    with pytest.raises(ValueError, match=r"\(24, 6\), \(6, 40\) and \(3,\)"):
        linear_nll(hidden, head, labels[:3])
    with pytest.raises(ValueError, match="must be None, 'reference' or 'chunked'"):
        linear_nll(hidden, head, labels, implementation="pallas")
