"""A step of CLIP is the same on one device, on any mesh and in two processes: its loss sees the global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import clip
from mmjax.parallel.mesh import MeshShape
from mmjax.train import overrides, step, trees

ROOT = Path(__file__).parents[2]
FILE = ROOT / "experiments" / "clip_emoji.py"
MESHES = [MeshShape(data=8), MeshShape(data=2, fsdp=4), MeshShape(data=2, fsdp=2, tensor=2)]


def gradients(mesh):
    """Loss and gradients of the tiny CLIP on the first batch, as the trainer lays them out."""
    experiment = overrides.load_experiment(FILE, "tiny")
    runner = step.build(experiment, mesh)
    batch = runner.place(experiment.data.batches(16, 0)[0])
    state = runner.init(batch)
    model = experiment.task.model

    @jax.jit
    def run(variables, batch):
        loss = lambda params: clip.loss(model, {**variables, "params": params}, batch, jax.random.key(0), 0)[0]  # noqa: E731
        return jax.value_and_grad(loss)(variables["params"])

    with jax.set_mesh(mesh):
        return jax.device_get(run(state.variables, batch)), jax.device_get(batch), state


@pytest.fixture(scope="module")
def alone():
    return gradients(MeshShape(data=1).build(jax.devices()[:1]))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_loss_and_gradients_are_the_same_on_a_mesh(alone, shape):
    (loss, wanted), batch, _ = alone
    (found_loss, found), same, state = gradients(shape.build())
    assert len(np.unique(batch["input_ids"], axis=0)) > 12  # every shard has rows of its own
    assert all((batch[name] == same[name]).all() for name in batch)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables)) or shape.data == 8
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    wanted, found = trees.leaves(wanted), trees.leaves(found)
    for path in wanted:
        tolerance = 1e-5 * np.abs(wanted[path]).max() + 5e-7  # biases of keys have no gradient but rounding
        np.testing.assert_allclose(found[path], wanted[path], atol=tolerance, err_msg=path)


def test_the_loss_of_local_batches_is_another(alone):
    (loss, _), batch, state = alone
    model = overrides.load_experiment(FILE, "tiny").task.model
    parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in range(0, 16, 2)]
    local = [clip.loss(model, state.variables, part, jax.random.key(0), 0)[0] for part in parts]
    assert abs(float(jnp.mean(jnp.array(local))) - loss) > 0.1


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(tmp_path):
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

    def start(name, devices, *arguments):
        flags = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-m", "mmjax", "train", str(FILE), "--size", "tiny", "--set", "steps=4"]
        return subprocess.Popen(
            [*command, "--workdir", str(tmp_path / name), *arguments], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        )  # fmt: skip

    peers = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    runs = [start("alone", 1), start("both", 2, *peers, "0"), start("both", 2, *peers, "1")]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], outputs
    for file in ("metrics.jsonl", "evals.jsonl"):
        one, two = (
            [json.loads(line) for line in (tmp_path / name / file).read_text().splitlines()]
            for name in ("alone", "both")
        )
        assert [line["step"] for line in one] == [line["step"] for line in two]
        for left, right in zip(one, two, strict=True):
            names = [name for name in left if "rank" not in name and "R@" not in name and "accuracy" not in name]
            np.testing.assert_allclose([right[n] for n in names], [left[n] for n in names], rtol=1e-3, err_msg=file)
