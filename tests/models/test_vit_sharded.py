"""A step of a ViT that is trained on labels is the same on one device, on a mesh and in two processes."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
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
        images = rng.integers(0, 256, (4, batch_size, 16, 16, 3)).astype(np.uint8)
        labels = rng.integers(0, 6, (4, batch_size), np.int32)
        return [{"images": image[rows], "label": label[rows]} for image, label in zip(images, labels, strict=True)]


def experiment(size: str) -> Experiment:
    config = dataclasses.replace(vit.ViTConfig.tiny(), image_size=16, init=vit.Init(head=vit.lecun_normal))
    model = vit.ViTForClassification(config, tuple("abcdef"))
    task = Task(model, vit.loss)
    return Experiment(task, Noise(), optim.CosineAdamW(1e-3), steps=4, batch_size=16, log_every=1)


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_on_a_mesh():
    meshes = MeshShape(data=1).build(jax.devices()[:1]), MeshShape(data=2, fsdp=2, tensor=2).build()
    (wanted, _, _), (found, _, state) = (
        sharded_steps.gradients_of(experiment("tiny"), vit.loss, mesh) for mesh in meshes
    )
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables))
    sharded_steps.assert_same(found, wanted)


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(tmp_path):
    imports = [
        "import dataclasses", "import numpy as np", "from mmjax.data import pipeline", "from mmjax.models import vit",
        "from mmjax.train import optim", "from mmjax.train.experiment import Experiment",
        "from mmjax.train.task import Task",
    ]  # fmt: skip
    file = tmp_path / "vit_noise.py"
    file.write_text("\n".join([*imports, inspect.getsource(Noise), inspect.getsource(experiment)]))
    sharded_steps.assert_two_processes_train_what_one_trains(file, tmp_path)
