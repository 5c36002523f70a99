"""The Transformer on a mesh of eight devices, parameters split over fsdp and tensor: what one device computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax.models import transformer
from mmjax.nn import beam
from mmjax.ops.cross_entropy import IGNORED
from mmjax.parallel import rules
from mmjax.parallel.mesh import MeshShape, batch_sharding

CONFIG = transformer.TransformerConfig(
    64, width=32, depth=2, decoder_depth=2, num_heads=8, hidden=48, dropout=0.0, label_smoothing=0.1
)
MODEL = transformer.Transformer(CONFIG)
SHAPE = MeshShape(fsdp=4, tensor=2)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = np.arange(10) < rng.integers(3, 11, (8, 1))
    labels = rng.integers(0, 64, (8, 6)).astype(np.int32)
    labels[np.arange(6) >= rng.integers(1, 7, (8, 1))] = IGNORED  # every device counts another number of tokens
    ids = rng.integers(0, 64, (8, 10)).astype(np.int32)
    inputs = np.asarray(transformer.shift_right(labels, CONFIG.start_id))
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": inputs, "labels": labels}


@pytest.fixture(scope="module")
def variables(batch):
    ids = batch["input_ids"]
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), ids, decoder_input_ids=ids))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


def loss(variables, batch):
    return transformer.loss(MODEL, variables, batch, jax.random.key(0), 0)[0]


value_and_gradients = jax.value_and_grad(loss)


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_one_device(variables, batch):
    value, gradients = jax.jit(value_and_gradients)(variables, batch)
    mesh = SHAPE.build()
    placed = jax.device_put(variables, rules.shardings(mesh, rules.DEFAULT, variables))
    cross = placed["params"]["decoder"]["layers"]["cross"]["key"]["kernel"]
    assert cross.addressable_shards[0].data.shape == (2, 8, 16)
    with jax.set_mesh(mesh):
        split = jax.jit(value_and_gradients)(placed, jax.device_put(batch, batch_sharding(mesh, 8)))
    close("loss", split[0], value, relative=1e-6)
    close_trees(jax.device_get(split[1]), jax.device_get(gradients), relative=1e-5)
    # The mean of the devices' own means is another number: the loss is over the global batch.
    means = [jax.jit(loss)(variables, {name: x[i : i + 2] for name, x in batch.items()}) for i in range(0, 8, 2)]
    assert abs(np.mean(means) - value) > 1e-3


def test_beams_are_those_of_one_device(variables, batch):
    search = beam.Search(length=6, beams=3)
    ids, mask, mesh = batch["input_ids"], batch["attention_mask"], SHAPE.build()
    found = transformer.translate(MODEL, variables, ids, mask, search)
    placed = jax.device_put(variables, rules.shardings(mesh, rules.DEFAULT, variables))
    with jax.set_mesh(mesh):
        split = transformer.translate(MODEL, placed, ids, mask, search)
    np.testing.assert_array_equal(split.tokens, found.tokens)
    assert split.tokens.sharding.is_fully_replicated


@pytest.mark.parametrize("config", [transformer.base(), transformer.big()], ids=["base", "big"])
def test_every_large_array_of_the_published_sizes_has_a_rule(config):
    ids = jnp.zeros((1, 2), jnp.int32)
    model = transformer.Transformer(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids, decoder_input_ids=ids))
    mesh = SHAPE.build()
    spots = rules.shardings(mesh, rules.DEFAULT, shapes)
    large = [one for leaf, one in zip(jax.tree.leaves(shapes), jax.tree.leaves(spots), strict=True) if leaf.size > 1e6]
    assert len(large) == 1 + 6 + 10  # the table; q k v out up down; and four more in the decoder
    assert not any(one.is_fully_replicated for one in large)
