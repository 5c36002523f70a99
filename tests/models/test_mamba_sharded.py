"""Mamba and Mamba-2 on a mesh of eight devices, parameters split over fsdp and tensor: what one device computes."""

import jax
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax.models import mamba, mamba2
from mmjax.nn import sampling
from mmjax.objectives import pretrain
from mmjax.parallel import rules
from mmjax.parallel.mesh import MeshShape, batch_sharding

MODELS = {
    "mamba": mamba.Mamba(mamba.MambaConfig(64, width=16, depth=2, state=4, rank=3)),
    "mamba2": mamba2.Mamba2(mamba2.Mamba2Config(64, width=16, depth=2, heads=4, head_dim=8, groups=2, state=4)),
}
MESH = MeshShape(2, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_loss_gradients_and_generation_are_those_of_one_device(name):
    model, rng = MODELS[name], np.random.default_rng(0)
    ids, segments = rng.integers(0, 64, (8, 12)).astype(np.int32), np.sort(rng.integers(0, 3, (8, 12)), axis=1)
    mask = np.arange(12) < rng.integers(5, 13, (8, 1))  # every device counts another number of tokens
    batch = {"input_ids": ids, "segments": segments.astype(np.int32), "attention_mask": mask}
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids)
    variables = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
    run = jax.jit(jax.value_and_grad(lambda v, batch: pretrain.loss(model, v, batch, None, 0)[0]))
    alone, written = run(variables, batch), sampling.generate(model, variables, ids, mask, max_new_tokens=3).tokens

    mesh = MESH.build()
    placed = jax.device_put(variables, rules.shardings(mesh, rules.DEFAULT, variables))
    mixer = placed["params"]["layers"]["mixer"]
    for part, shape in {"up": (2, 8, 16), "down": (2, 16, 8), "conv": (2, 4, 8)}.items():
        assert mixer[part]["kernel"].addressable_shards[0].data.shape == shape
    with jax.set_mesh(mesh):
        value, gradients = run(placed, jax.device_put(batch, batch_sharding(mesh, 8)))
        found = sampling.generate(model, placed, ids, mask, max_new_tokens=3).tokens
    close("loss", value, alone[0], relative=1e-6)
    close_trees(jax.device_get(gradients), jax.device_get(alone[1]), relative=1e-5)
    np.testing.assert_array_equal(found, written)
