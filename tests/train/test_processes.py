"""Two processes over gloo train what one does; stopped together, they go on as one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import run_toy

from mmjax.train import checkpoint, loop

pytestmark = pytest.mark.multiprocess


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start_both(workdir, updates=1):
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": paths}
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, run_toy.__file__, str(workdir), str(index), port, str(updates)],
            env=os.environ | devices,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]


def end(both):
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    return outputs


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run in one process, on one device."""
    workdir = tmp_path_factory.mktemp("processes") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.report.write", lambda folder: folder)
        loop.train(run_toy.experiment(), workdir, mesh=run_toy.on_one())
    return workdir


def close(workdir, straight, lines):
    for name in ("metrics.jsonl", "evals.jsonl"):
        ours, theirs = lines(workdir / name), lines(straight / name)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)


def test_two_processes_train_what_one_does(straight, tmp_path, lines):
    end(start_both(tmp_path / "run"))
    close(tmp_path / "run", straight, lines)
    found = checkpoint.load_variables(tmp_path / "run", "ema")
    theirs = checkpoint.load_variables(straight, "ema")
    for layer in ("up", "down"):
        np.testing.assert_allclose(found["params"][layer]["kernel"], theirs["params"][layer]["kernel"], atol=1e-5)


def test_sigterm_stops_both_at_one_step_and_one_process_goes_on(straight, tmp_path, lines):
    workdir = tmp_path / "run"
    both = start_both(workdir)
    while all(process.poll() is None for process in both) and len_of(workdir) < 8:
        time.sleep(0.01)
    for process in both:  # as a scheduler does
        process.send_signal(signal.SIGTERM)
    outputs = end(both)
    assert "go on with --resume" in outputs[0]
    assert checkpoint.Checkpoints(workdir / "checkpoints").find() == len_of(workdir) < run_toy.STEPS
    loop.train(run_toy.experiment(), workdir, resume=True, mesh=run_toy.on_one())
    close(workdir, straight, lines)


def test_sigterm_is_heard_between_batches_of_several_updates(tmp_path):
    """JAX agrees on a batch that is still to come, so batches have to be counted one by one."""
    workdir = tmp_path / "run"
    both = start_both(workdir, updates=5)
    while all(process.poll() is None for process in both) and len_of(workdir) < 6:
        time.sleep(0.01)
    for process in both:
        process.send_signal(signal.SIGTERM)
    assert "go on with --resume" in end(both)[0]
    step = checkpoint.Checkpoints(workdir / "checkpoints").find()
    assert step == len_of(workdir) < run_toy.STEPS
    assert step % 5 == 0


def len_of(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
