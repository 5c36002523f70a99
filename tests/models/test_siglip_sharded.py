"""A step of SigLIP is the same on one device, on any mesh and in two processes: its loss sees the global batch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_steps

from mmjax.models import siglip
from mmjax.parallel.mesh import MeshShape
from mmjax.train import overrides

FILE = Path(__file__).parents[2] / "experiments" / "siglip_emoji.py"
MESHES = [MeshShape(data=8), MeshShape(data=2, fsdp=2, tensor=2)]


@pytest.fixture(scope="module")
def alone():
    return sharded_steps.gradients(FILE, siglip.loss, MeshShape(data=1).build(jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_loss_and_gradients_are_the_same_on_a_mesh(alone, shape):
    wanted, batch, _ = alone
    found, same, state = sharded_steps.gradients(FILE, siglip.loss, shape.build())
    assert len(np.unique(batch["input_ids"], axis=0)) > 12  # every shard has rows of its own
    assert "attention_mask" not in batch  # the text tower sees the padding
    assert all((batch[name] == same[name]).all() for name in batch)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables)) or shape.data == 8
    sharded_steps.assert_same(found, wanted)


@pytest.mark.slow
def test_the_loss_of_local_batches_is_another(alone):
    (loss, _), batch, state = alone
    model = overrides.load_experiment(FILE, "tiny").task.model
    parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in range(0, 16, 2)]
    local = [siglip.loss(model, state.variables, part, jax.random.key(0), 0)[0] for part in parts]
    # At first the bias hides all negatives but those that look alike; a mesh may differ by 1e-4.
    assert abs(float(jnp.mean(jnp.array(local))) - loss) > 0.005


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(tmp_path):
    sharded_steps.assert_two_processes_train_what_one_trains(FILE, tmp_path)
