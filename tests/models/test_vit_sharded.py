"""A step of a ViT that is trained on labels is the same on one device and on a mesh."""

import dataclasses

import jax
import numpy as np
import sharded_steps

from mmjax.data import pipeline
from mmjax.models import vit
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task


class Noise:
    """Pictures of noise, each of one of six classes."""

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> list[dict]:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (batch_size, 16, 16, 3)).astype(np.uint8)
        return [{"images": images[rows], "label": rng.integers(0, 6, batch_size, np.int32)[rows]}]


def test_loss_and_gradients_are_the_same_on_a_mesh():
    config = dataclasses.replace(vit.ViTConfig.tiny(), image_size=16, init=vit.Init(head=vit.lecun_normal))
    model = vit.ViTForClassification(config, tuple("abcdef"))
    experiment = Experiment(Task(model, vit.loss), Noise(), optim.CosineAdamW(1e-3), steps=1, batch_size=16)
    meshes = MeshShape(data=1).build(jax.devices()[:1]), MeshShape(data=2, fsdp=2, tensor=2).build()
    (wanted, _, _), (found, _, state) = (sharded_steps.gradients_of(experiment, vit.loss, mesh) for mesh in meshes)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables))
    sharded_steps.assert_same(found, wanted)
