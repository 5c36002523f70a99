"""LLaMA on a mesh of eight devices, parameters split over fsdp and tensor: what one device computes."""

import dataclasses

import jax
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax.models import llama
from mmjax.nn import sampling
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain
from mmjax.parallel import rules
from mmjax.parallel.mesh import MeshShape, batch_sharding

CONFIG = llama.LlamaConfig(64, 40, 32, 2, num_heads=8, num_kv_heads=4, head_dim=8, hidden=48)
MODEL = llama.Llama(CONFIG)
MESHES = {"fsdp x tensor": MeshShape(fsdp=4, tensor=2), "data x fsdp x tensor": MeshShape(2, 2, 2)}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(0, 3, (8, 12)), axis=1).astype(np.int32)
    mask = np.arange(12) < rng.integers(5, 13, (8, 1))  # every device counts another number of tokens
    return {"input_ids": rng.integers(0, 64, (8, 12)).astype(np.int32), "segments": segments, "attention_mask": mask}


@pytest.fixture(scope="module")
def variables(batch):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), batch["input_ids"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


def value_and_gradients(model):
    return jax.jit(jax.value_and_grad(lambda v, batch: pretrain.loss(model, v, batch, None, 0)[0]))


@pytest.fixture(scope="module")
def alone(variables, batch):
    return value_and_gradients(MODEL)(variables, batch)


@pytest.mark.parametrize(
    ("name", "remat"),
    [pytest.param("fsdp x tensor", None, marks=pytest.mark.slow), ("data x fsdp x tensor", "full")],
)
def test_loss_and_gradients_are_those_of_one_device(variables, batch, alone, name, remat):
    mesh = MESHES[name].build()
    model = llama.Llama(dataclasses.replace(CONFIG, compute=Compute(remat=remat)))
    places = rules.shardings(mesh, rules.DEFAULT, variables)
    placed = jax.device_put(variables, places)
    kernel = placed["params"]["layers"]["mlp"]["up"]["kernel"]
    parts = MESHES[name].fsdp, MESHES[name].tensor
    assert kernel.addressable_shards[0].data.shape == (2, 32 // parts[0], 48 // parts[1])
    with jax.set_mesh(mesh):
        value, gradients = value_and_gradients(model)(placed, jax.device_put(batch, batch_sharding(mesh, 8)))
    close("loss", value, alone[0], relative=1e-6)
    close_trees(jax.device_get(gradients), jax.device_get(alone[1]), relative=1e-5)
    # The mean of the devices' own means is another number: the loss is over the global batch.
    means = [pretrain.loss(MODEL, variables, {n: x[i : i + 1] for n, x in batch.items()}, None, 0)[0] for i in range(8)]
    assert abs(np.mean(means) - alone[0]) > 1e-3


def test_generation_on_a_mesh_is_that_of_one_device(variables, batch):
    ids, mask = batch["input_ids"][:, ::-1], batch["attention_mask"][:, ::-1]
    expected = sampling.generate(MODEL, variables, ids, mask, max_new_tokens=4).tokens
    mesh = MESHES["data x fsdp x tensor"].build()
    placed = jax.device_put(variables, rules.shardings(mesh, rules.DEFAULT, variables))
    with jax.set_mesh(mesh):
        found = sampling.generate(MODEL, placed, ids, mask, max_new_tokens=4).tokens
        one = sampling.generate(MODEL, placed, ids[:1], mask[:1], max_new_tokens=4).tokens  # a row for eight devices
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(one, expected[:1])
