"""Micro-batches give the gradient of the whole batch, or an error."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import linen as nn

from mmjax.nn.outputs import Aux
from mmjax.parallel.mesh import MeshShape
from mmjax.train import accumulate, step, trees
from mmjax.train.optim import SGD
from mmjax.train.task import Task


def one_step(experiment, mesh):
    runner = step.build(experiment, mesh)
    batch = runner.place(experiment.data.batches(experiment.batch_size, 0)[0])
    state, metrics = runner.run(runner.init(batch), batch)
    return {path: np.asarray(x) for path, x in trees.leaves(state.variables).items()}, metrics


def alone():
    return MeshShape(data=1).build(jax.devices()[:1])


class TwoTowers(nn.Module):
    def setup(self):
        self.left, self.right = nn.Dense(3), nn.Dense(3)
        self.scale = self.param("scale", nn.initializers.constant(0.5), ())

    def __call__(self, x, y):
        return self.left(x), self.right(y), self.scale


def embed(model, variables, batch, rng, now):
    left, right, _ = model.apply(variables, batch["x"], batch["y"])
    return {"left": left, "right": right * jax.random.bernoulli(rng, 0.7, right.shape)}  # as dropout does


def contrast(model, variables, embeddings, batch, now):
    """Every row against every other; the scale is a parameter that no embedding holds, the targets are in the batch."""
    scale = jnp.exp(variables["params"]["scale"])
    logits = scale * embeddings["left"] @ embeddings["right"].T
    rows = -jnp.diagonal(jax.nn.log_softmax(logits, 1)) * (1 + batch["x"][:, 0] ** 2)  # the order of rows matters
    return rows.mean(), Aux({"scale": scale})


def whole_contrast(model, variables, batch, rng, now):
    return contrast(model, variables, embed(model, variables, batch, rng, now), batch, now)


def without_noise(model, variables, batch, rng, now):
    left, right, _ = model.apply(variables, batch["x"], batch["y"])
    return {"left": left, "right": right}


def quiet_contrast(model, variables, batch, rng, now):
    return contrast(model, variables, without_noise(model, variables, batch, rng, now), batch, now)


@pytest.mark.parametrize("shape", [None, MeshShape(data=2, fsdp=2, tensor=2)], ids=["1 device", "8 devices"])
def test_cached_accumulation_is_the_big_batch(shape):
    task = Task(TwoTowers(), quiet_contrast, cached=(without_noise, contrast))
    experiment = toys.experiment(task=task, optimizer=SGD(1.0), batch_size=32)
    big, metrics = one_step(experiment, alone())
    mesh = shape.build() if shape else alone()
    small, metrics4 = one_step(dataclasses.replace(experiment, accumulate=4), mesh)
    np.testing.assert_allclose(metrics["loss"], metrics4["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["scale"], metrics4["scale"], rtol=1e-6)
    for path in big:
        np.testing.assert_allclose(small[path], big[path], atol=1e-5, err_msg=path)
    quarter, _ = one_step(dataclasses.replace(experiment, batch_size=8), alone())
    assert any(np.abs(quarter[path] - big[path]).max() > 1e-3 for path in big)  # the batch does matter to this loss


def test_both_passes_of_cached_accumulation_draw_the_same_noise():
    task, parts, rng = Task(TwoTowers(), whole_contrast, cached=(embed, contrast)), 4, jax.random.key(3)
    batch = toys.Points().batches(16, 0)[0]
    variables = TwoTowers().init(jax.random.key(0), batch["x"], batch["y"])
    micro = accumulate.split(batch, parts)

    def reference(params):
        each = [
            embed(task.model, {"params": params}, jax.tree.map(lambda x: x[i], micro), jax.random.fold_in(rng, i), 0)  # noqa: B023
            for i in range(parts)
        ]
        together = accumulate.join(jax.tree.map(lambda *x: jnp.stack(x), *each))
        return contrast(task.model, {"params": params}, together, batch, 0)[0]

    value, gradients = jax.value_and_grad(reference)(variables["params"])
    ours = accumulate.cached(parts)(task, variables["params"], variables, batch, rng, 0)
    np.testing.assert_allclose(ours[0], value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours[2], gradients)


def token_loss(model, variables, batch, rng, now):
    """A mean over the tokens that count, of which the rows have different numbers."""
    counts = jnp.where(batch["x"][:, 4:5] > 0.5, 0.0, (jnp.abs(batch["x"][:, :4]) > 0.5) * 1.0)
    errors = (model.apply(variables, batch["x"]) - batch["y"]) ** 2
    mean = (errors * counts).sum() / counts.sum()
    return mean, Aux({"mean": mean}, weight=counts.sum())


@pytest.mark.parametrize("shape", [None, MeshShape()], ids=["1 device", "8 devices"])
def test_weighted_accumulation_is_the_big_batch_and_not_a_mean_of_means(shape):
    experiment = toys.experiment(task=Task(toys.Net(), token_loss), optimizer=SGD(0.1), batch_size=32)
    big, metrics = one_step(experiment, alone())
    small, metrics4 = one_step(dataclasses.replace(experiment, accumulate=4), shape.build() if shape else alone())
    for name in ("loss", "mean", "grad_norm"):
        np.testing.assert_allclose(metrics[name], metrics4[name], rtol=1e-5)
    for path in big:
        np.testing.assert_allclose(small[path], big[path], atol=1e-6, err_msg=path)
    unweighted = lambda *inputs: (lambda value, aux: (value, aux._replace(weight=jnp.float32(1))))(*token_loss(*inputs))  # noqa: E731
    means = dataclasses.replace(experiment, task=Task(toys.Net(), unweighted), accumulate=4)
    assert any(np.abs(one_step(means, alone())[0][path] - big[path]).max() > 1e-4 for path in big)


def test_a_micro_batch_in_which_nothing_counts_adds_nothing():
    def loss(model, variables, batch, rng, now):
        total = jnp.zeros(())
        return total + 0 * model.apply(variables, batch["x"]).sum(), Aux({}, weight=total)

    after, metrics = one_step(toys.experiment(task=Task(toys.Net(), loss), accumulate=2), alone())
    assert metrics["loss"] == 0
    assert all(np.isfinite(x).all() for x in after.values())


def collecting(model, variables, batch, rng, now):
    y = model.apply({"params": variables["params"]}, batch["x"])
    return y.mean(), Aux({}, {"center": y.mean(0)}, weight=jnp.float32(1))


def init_center(model, rng, batch, loaded):
    return {**model.init(rng, batch["x"]), "center": jnp.zeros(4)}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(TwoTowers(), whole_contrast), "accumulate=2 would change this loss, which looks across the batch"),
        (Task(toys.Net(), collecting, init=init_center), "would change the collections center once per micro-batch"),
    ],
    ids=["across the batch", "collections"],
)
def test_accumulation_that_would_change_the_result_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        one_step(toys.experiment(task=task, accumulate=2), alone())


def test_parts_must_divide():
    with pytest.raises(ValueError, match="batch_size 16 does not divide into accumulate=3"):
        toys.experiment(accumulate=3)
    with pytest.raises(ValueError, match="batch_size 4 does not divide over the mesh's 8"):
        step.build(toys.experiment(accumulate=4), MeshShape().build())
    with pytest.raises(ValueError, match=r"splits the first axis of each batch entry, but scale is \[\]"):
        accumulate.split({"scale": jnp.ones(())}, 2)


def test_rows_keep_their_order():
    x = jnp.arange(24).reshape(12, 2)
    np.testing.assert_array_equal(accumulate.join(accumulate.split(x, 3)), x)
