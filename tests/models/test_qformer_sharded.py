"""A step of stage 1 is the same on one device, on a mesh and in two processes: contrast and negatives see all rows."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_steps
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.data import pipeline
from mmjax.models import qformer
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task


class Noise:
    """Pictures of noise with words that say nothing of them."""

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> list[dict]:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (4, batch_size, 32, 32, 3)).astype(np.uint8)
        input_ids = rng.integers(1, 63, (4, batch_size, 6), np.int32)
        lengths = rng.integers(3, 7, (4, batch_size, 1))
        return [
            {"images": images[i][rows], "input_ids": input_ids[i][rows], "attention_mask": mask[rows]}
            for i, mask in enumerate(np.arange(6) < lengths)
        ]


def experiment(size: str) -> Experiment:
    model = qformer.Stage1(qformer.RetrievalConfig.tiny())
    task = Task(model, qformer.loss, trainable=qformer.TRAINABLE)
    return Experiment(task, Noise(), optim.CosineAdamW(1e-3), steps=4, batch_size=16, log_every=1)


@pytest.fixture(scope="module")
def alone():
    return sharded_steps.gradients_of(experiment("tiny"), qformer.loss, MeshShape(data=1).build(jax.devices()[:1]))


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_on_a_mesh(alone):
    wanted, batch, _ = alone
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    found, same, state = sharded_steps.gradients_of(experiment("tiny"), qformer.loss, mesh)
    assert len(np.unique(batch["input_ids"], axis=0)) == 16  # every shard has rows of its own
    assert all((batch[name] == same[name]).all() for name in batch)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables))
    sharded_steps.assert_same(found, wanted)


@pytest.mark.slow
def test_the_loss_of_local_batches_is_another(alone):
    (loss, _), batch, state = alone
    parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in range(0, 16, 2)]
    value = jax.jit(
        lambda part: qformer.loss(experiment("tiny").task.model, state.variables, part, jax.random.key(0), 0)[0]
    )
    assert abs(float(jnp.mean(jnp.array([value(part) for part in parts]))) - loss) > 0.1


def test_the_same_negatives_are_drawn_on_eight_devices():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(2, 16, 16)).astype(np.float32)
    draw = lambda x, y: qformer.hard_negatives(jax.random.key(5), x, y, jnp.eye(16, dtype=bool))  # noqa: E731
    rows = NamedSharding(MeshShape(data=8).build(), PartitionSpec("data"))
    found = jax.jit(draw, in_shardings=(rows, rows), out_shardings=rows)(*logits)
    np.testing.assert_array_equal(found, jax.jit(draw)(*logits))
    image, text = np.asarray(found)
    assert (image // 2 != np.arange(16) // 2).sum() > 8  # most lie on other devices
    assert (image != text).any()


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(tmp_path):
    imports = [
        "import numpy as np", "from mmjax.data import pipeline", "from mmjax.models import qformer",
        "from mmjax.train import optim", "from mmjax.train.experiment import Experiment",
        "from mmjax.train.task import Task",
    ]  # fmt: skip
    file = tmp_path / "qformer_noise.py"
    file.write_text("\n".join([*imports, inspect.getsource(Noise), inspect.getsource(experiment)]))
    sharded_steps.assert_two_processes_train_what_one_trains(file, tmp_path)
