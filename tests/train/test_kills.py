"""Real signals to real processes: after any number of them the run is the one that was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import run_toy

from mmjax.train import checkpoint, loop, step, trees


def start(workdir):
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])
    return subprocess.Popen(
        [sys.executable, run_toy.__file__, str(workdir)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def interrupt(workdir, number, more, seconds=120.0):
    """Starts the run and sends a signal after `more` further steps or these seconds; its exit code and output."""
    process, wanted = start(workdir), logged(workdir) + more
    deadline = time.monotonic() + seconds
    while process.poll() is None and logged(workdir) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def finish(workdir):
    process = start(workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def final(workdir):
    runner = step.build(run_toy.experiment(), run_toy.on_one())
    state = checkpoint.Checkpoints(workdir / "checkpoints").restore(run_toy.STEPS, runner.abstract, seed=0)
    return {path: np.asarray(x) for path, x in trees.leaves(state).items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kills") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.report.write", lambda folder: folder)
        loop.train(run_toy.experiment(), workdir, mesh=run_toy.on_one())
    return workdir


def same(workdir, straight):
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert (workdir / name).read_text() == (straight / name).read_text()
    ours, theirs = final(workdir), final(straight)
    assert ours.keys() == theirs.keys()
    assert all((ours[path] == theirs[path]).all() for path in ours)


def test_sigterm_saves_and_sigkill_loses_only_the_steps_since(straight, tmp_path):
    workdir = tmp_path / "run"
    code, output = interrupt(workdir, signal.SIGTERM, 8)
    assert code == 0, output
    assert "go on with --resume" in output
    saved = checkpoint.Checkpoints(workdir / "checkpoints").find()
    assert saved == logged(workdir) >= 8  # SIGTERM saves where it is, not where a save was due
    code, output = interrupt(workdir, signal.SIGKILL, 8)
    assert code == -signal.SIGKILL, output
    finish(workdir)
    same(workdir, straight)


@pytest.mark.slow
def test_fifty_random_kills_leave_no_trace(straight, tmp_path):
    chance, kills, series = random.Random(2026), 0, 0
    while kills < 50:
        workdir, series = tmp_path / str(series), series + 1
        for _ in range(chance.randint(3, 7)):
            number = chance.choice([signal.SIGTERM, signal.SIGKILL])
            # One in five while it still starts or restores; else after some steps of this attempt.
            more, seconds = (chance.randint(1, 9), 120) if chance.random() < 0.8 else (99, chance.uniform(0.5, 5))
            process_code, output = interrupt(workdir, number, more, seconds)
            assert process_code in (0, -signal.SIGTERM, -signal.SIGKILL), output
            kills += 1
        finish(workdir)
        same(workdir, straight)
    print(f"{kills} kills in {series} runs")
