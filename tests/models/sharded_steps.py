"""A step of an experiment's tiny model on any mesh, and its run in one and in two processes."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mmjax.train import overrides, step, trees
from mmjax.train.experiment import Experiment

ROOT = Path(__file__).parents[2]


def gradients(file: Path, loss: Callable, mesh: jax.sharding.Mesh):
    """(loss, gradients) of the first batch as the trainer lays it out, the batch, and the state."""
    return gradients_of(overrides.load_experiment(file, "tiny"), loss, mesh)


def gradients_of(experiment: Experiment, loss: Callable, mesh: jax.sharding.Mesh):
    runner = step.build(experiment, mesh)
    batch = runner.place(experiment.data.batches(16, 0)[0])
    state = runner.init(batch)
    model = experiment.task.model

    @jax.jit
    def run(variables, batch):
        value = lambda params: loss(model, {**variables, "params": params}, batch, jax.random.key(0), 0)[0]  # noqa: E731
        return jax.value_and_grad(value)(variables["params"])

    with jax.set_mesh(mesh):
        return jax.device_get(run(state.variables, batch)), jax.device_get(batch), state


def assert_same(found, wanted) -> None:
    """(loss, gradients) of a mesh and of one device."""
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    wanted, found = trees.leaves(wanted[1]), trees.leaves(found[1])
    for path in wanted:
        tolerance = 1e-5 * np.abs(wanted[path]).max() + 5e-7  # biases of keys have no gradient but rounding
        np.testing.assert_allclose(found[path], wanted[path], atol=tolerance, err_msg=path)


def assert_two_processes_train_what_one_trains(file: Path, folder: Path, seconds: int = 300) -> None:
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

    def start(name, devices, *arguments):
        flags = re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])  # what conftest.py says, else
        command = [sys.executable, "-m", "mmjax", "train", str(file), "--size", "tiny", "--set", "steps=4"]
        return subprocess.Popen(
            [*command, "--workdir", str(folder / name), *arguments], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        )  # fmt: skip

    peers = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    runs = [start("alone", 1), start("both", 2, *peers, "0"), start("both", 2, *peers, "1")]
    try:
        outputs = [run.communicate(timeout=seconds)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()  # those that still wait for each other
    assert [run.returncode for run in runs] == [0, 0, 0], outputs
    for file in ("metrics.jsonl", "evals.jsonl"):
        one, two = (
            [json.loads(line) for line in (folder / name / file).read_text().splitlines()] for name in ("alone", "both")
        )
        assert [line["step"] for line in one] == [line["step"] for line in two]
        for left, right in zip(one, two, strict=True):
            names = [name for name in left if "rank" not in name and "R@" not in name and "accuracy" not in name]
            np.testing.assert_allclose([right[n] for n in names], [left[n] for n in names], rtol=1e-3, err_msg=file)
