"""A step of each stage of SEED is the same on one device and on a mesh: contrast and codes see all rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_steps

from mmjax.data import pipeline
from mmjax.models import qformer, seed
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task, init_model

pytestmark = pytest.mark.slow


class Noise:
    """Pictures of noise, with words and vectors that say nothing of them."""

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> list[dict]:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (batch_size, 32, 32, 3)).astype(np.uint8)
        input_ids = rng.integers(1, 63, (batch_size, 6), np.int32)
        mask, vectors = np.arange(6) < rng.integers(3, 7, (batch_size, 1)), rng.normal(size=(batch_size, 8))
        whole = {"images": images, "input_ids": input_ids, "attention_mask": mask, "image": vectors.astype(np.float32)}
        return [{name: x[rows] for name, x in whole.items()}]


def given(variables, batch) -> seed.Targets:
    return seed.Targets(batch["image"])


def init(model, rng, batch, loaded):
    """Larger than fresh ones, among which texts are all but equal, and which code is the nearest is rounding."""
    params = init_model(model, rng, batch, loaded)["params"]
    rngs = iter(jax.random.split(rng, len(jax.tree.leaves(params))))
    grown = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(rngs), x.shape), params)
    return {"params": {**grown, **{name: params[name] for name in ("temperature",) if name in params}}, "target": {}}


STAGES = {
    1: (seed.Stage1(qformer.RetrievalConfig.tiny()), seed.stage1_loss, seed.STAGE1_TRAINABLE),
    2: (seed.Seed(dataclasses.replace(seed.SeedConfig.tiny(), target=given)), seed.loss, seed.TRAINABLE),
}


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradients_are_the_same_on_a_mesh(stage):
    model, loss, trainable = STAGES[stage]
    task = Task(model, loss, trainable=trainable, init=init)
    experiment = Experiment(task, Noise(), optim.CosineAdamW(1e-3), steps=4, batch_size=16, log_every=1)
    one = MeshShape(data=1).build(jax.devices()[:1])
    wanted, batch, state = sharded_steps.gradients_of(experiment, loss, one)
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    found, same, _ = sharded_steps.gradients_of(experiment, loss, mesh)
    assert len(np.unique(batch["input_ids"], axis=0)) == 16  # every shard has rows of its own
    assert all((batch[name] == same[name]).all() for name in batch)
    sharded_steps.assert_same(found, wanted)
    if stage == 1:
        parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in range(0, 16, 2)]
        of = jax.jit(lambda part: loss(model, state.variables, part, jax.random.key(0), 0)[0])
        assert abs(float(jnp.mean(jnp.array([of(part) for part in parts]))) - wanted[0]) > 0.1
