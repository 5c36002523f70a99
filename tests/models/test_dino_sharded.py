"""A step of DINO is the same on one device, on any mesh and in two processes; its center is the global batch's."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import sharded_steps

from mmjax.models import dino, dinov2
from mmjax.parallel.mesh import MeshShape
from mmjax.train import overrides

FILE = Path(__file__).parents[2] / "experiments" / "dino_emoji.py"
MESHES = [MeshShape(data=8), MeshShape(data=2, fsdp=2, tensor=2)]


def gradients(mesh):
    """With features pushed apart in groups of 4, so that a group lies on two of eight devices."""
    loss = lambda model, *inputs: dino.loss(with_spread(model), *inputs)  # noqa: E731
    return sharded_steps.gradients(FILE, loss, mesh)


def with_spread(model):
    return dataclasses.replace(model, config=dataclasses.replace(model.config, spread=partial(dinov2.koleo, group=4)))


@pytest.fixture(scope="module")
def alone():
    return gradients(MeshShape(data=1).build(jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_loss_and_gradients_are_the_same_on_a_mesh(alone, shape):
    wanted, batch, _ = alone
    found, same, state = gradients(shape.build())
    assert len(np.unique(batch["global_crops"], axis=0)) == 16  # every shard has rows of its own
    assert all((batch[name] == same[name]).all() for name in batch)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables)) or shape.data == 8
    sharded_steps.assert_same(found, wanted)


@pytest.mark.slow
def test_the_center_is_the_mean_over_all_devices_and_that_of_a_device_is_another(alone):
    _, batch, state = alone
    model = overrides.load_experiment(FILE, "tiny").task.model
    logits = jax.device_get(
        model.apply({**state.variables, "params": state.variables["teacher"]}, batch["global_crops"])
    ).logits
    mesh = MeshShape().build()
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        move = jax.jit(lambda x: dino.moved_center(np.zeros(logits.shape[-1], np.float32), x, 0.9))
        center = move(jax.device_put(logits, rows))
    np.testing.assert_allclose(center, 0.1 * logits.mean((0, 1)), atol=1e-7)
    local = dino.moved_center(np.zeros(logits.shape[-1], np.float32), logits[:2], 0.9)
    assert np.abs(local - center).max() > 0.05 * np.abs(center).max()


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(tmp_path):
    sharded_steps.assert_two_processes_train_what_one_trains(FILE, tmp_path)
