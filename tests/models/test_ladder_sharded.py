"""The ladder's loss of three tasks is the same on one device and on a mesh: quarters are drawn for the global batch."""

from pathlib import Path

import jax
import pytest
import sharded_steps

from mmjax.parallel.mesh import MeshShape
from mmjax.train import overrides

FILE = Path(__file__).parents[2] / "experiments" / "ladder_images.py"


@pytest.mark.slow  # half a minute of compiling
def test_loss_and_gradients_are_the_same_on_a_mesh():
    experiment = overrides.load_experiment(FILE, "tiny_3tasks")
    meshes = MeshShape(data=1).build(jax.devices()[:1]), MeshShape(data=2, fsdp=2, tensor=2).build()
    loss = experiment.task.loss
    (wanted, _, _), (found, _, state) = (sharded_steps.gradients_of(experiment, loss, mesh) for mesh in meshes)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables))
    sharded_steps.assert_same(found, wanted)
