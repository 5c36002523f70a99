"""A step of DINOv2 is the same on one device, on any mesh and in two processes: its balanced assignment sees the global
batch, its neighbours are those of groups that do not depend on the mesh."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_steps

from mmjax.models import dinov2
from mmjax.parallel.mesh import MeshShape
from mmjax.train import overrides

FILE = Path(__file__).parents[2] / "experiments" / "dinov2_emoji.py"
MESHES = [MeshShape(data=8), MeshShape(data=2, fsdp=2, tensor=2)]


@pytest.fixture(scope="module")
def alone():
    return sharded_steps.gradients(FILE, dinov2.loss, MeshShape(data=1).build(jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_loss_and_gradients_are_the_same_on_a_mesh(alone, shape):
    wanted, batch, _ = alone
    found, same, state = sharded_steps.gradients(FILE, dinov2.loss, shape.build())
    assert len(np.unique(batch["global_crops"], axis=0)) == 16  # every shard has rows of its own
    assert all((batch[name] == same[name]).all() for name in batch)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables)) or shape.data == 8
    sharded_steps.assert_same(found, wanted)


@pytest.mark.slow
def test_the_loss_of_local_batches_is_another(alone):
    (loss, _), batch, state = alone
    model = overrides.load_experiment(FILE, "tiny").task.model
    run = jax.jit(lambda part: dinov2.loss(model, state.variables, part, jax.random.key(0), 0)[0])
    local = [run({name: x[i : i + 2] for name, x in batch.items()}) for i in range(0, 16, 2)]
    assert abs(float(jnp.mean(jnp.array(local))) - loss) > 0.01


def test_sinkhorn_knopp_of_a_mesh_moves_a_number_for_each_prototype_and_no_logits():
    rows, prototypes = 64, 24
    logits = np.random.default_rng(0).uniform(-1, 1, (rows, prototypes)).astype(np.float32)
    counts = np.arange(rows) % 5 > 0
    wanted = dinov2.sinkhorn_knopp(logits, counts, 0.05)
    mesh = MeshShape(data=4, fsdp=2).build()
    spread = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        placed = jax.device_put((logits, counts), spread)
        compiled = jax.jit(lambda x, c: dinov2.sinkhorn_knopp(x, c, 0.05)).lower(*placed).compile()
        found = compiled(*placed)
    assert found.sharding.spec == spread.spec
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    moved = re.findall(
        r"= (?:\()?\w+\[([\d,]*)\][^=]*? (all-\w+|collective-\w+|reduce-scatter)[(-]", compiled.as_text()
    )
    assert moved
    assert {kind for _, kind in moved} == {"all-reduce"}
    assert all(np.prod([int(n) for n in shape.split(",") if n], dtype=int) <= prototypes for shape, _ in moved)


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(tmp_path):
    sharded_steps.assert_two_processes_train_what_one_trains(FILE, tmp_path)
