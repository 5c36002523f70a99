"""The loop: what a run leaves on the disk, and that a stopped run goes on as if nothing had happened."""

import dataclasses
import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from mmjax.nn.outputs import Aux, Result
from mmjax.parallel.mesh import MeshShape
from mmjax.train import loop, optim, run_folder, trees
from mmjax.train.experiment import Source
from mmjax.train.logging import WriteError
from mmjax.train.task import Task, init_model


def kernel_size(model, variables, data, rng):
    size = float(jnp.abs(variables["params"]["up"]["kernel"]).mean())
    noise = float(jax.random.uniform(rng))
    return Result({"toy/size": size, "toy/noise": noise}, {"toy/grid": np.zeros((2, 3, 3), np.uint8)})


def at_the_end(model, variables, data, rng):
    return Result({"held_out/count": float(data.count)})


def averaged(**changes):
    """Noise in the loss, an average of the parameters, two optimizer slots, evals: all that has to be restored."""
    follow = optim.ema("params", "ema", 0.9)
    task = Task(toys.Net(), toys.regression, init=optim.with_copy("ema"), after_update=follow, serve="ema")
    return toys.experiment(task=task, evals=(kernel_size,), final_evals=(at_the_end,), **changes)


def sharded():
    return averaged(mesh=MeshShape(data=4, fsdp=2))


def stop_at(monkeypatch, batches):
    """Makes a signal arrive once after each of these batches."""
    left = list(batches)
    asked = lambda self, made: bool(left) and made >= left[0] and left.pop(0) is not None  # noqa: E731
    monkeypatch.setattr(loop.Stop, "asked", asked)


def values(state):
    return {path: np.asarray(x) for path, x in trees.leaves(state).items()}


def same_run(one, other, states):
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert (one / name).read_text() == (other / name).read_text()
    left, right = map(values, states)
    assert left.keys() == right.keys()
    assert all((left[path] == right[path]).all() for path in left)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run from start to end, on a mesh of eight devices."""
    workdir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.report.write", lambda folder: folder)
        outcome = loop.train(sharded(), workdir / "run")
    return workdir / "run", outcome


def test_a_run_logs_every_step_and_its_evals(straight, lines):
    folder, outcome = straight
    metrics = lines(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert set(metrics[0]) == {"step", "loss", "error", "grad_norm", "lr"}
    assert all(float(np.float32(line["loss"])) == line["loss"] for line in metrics)  # round trip of the float32
    evals = lines(folder / "evals.jsonl")
    assert [line["step"] for line in evals] == [3, 6]
    assert "held_out/count" not in evals[0]  # what must not be used to make choices is read once
    assert evals[1]["held_out/count"] == 64
    assert evals[0]["toy/noise"] != evals[1]["toy/noise"]
    assert outcome.metrics == {name: x for name, x in evals[1].items() if name != "step"}
    average = np.abs(outcome.state.variables["ema"]["up"]["kernel"]).mean()
    np.testing.assert_allclose(evals[1]["toy/size"], average, rtol=1e-6)
    assert (folder / "pictures" / "6" / "toy-grid.png").exists()
    speed = lines(folder / "speed.jsonl")
    assert {"seconds", "step_seconds_p50", "step_seconds_p99", "examples_per_second", "data_wait"} <= speed[-1].keys()
    assert json.loads((folder / "config.json").read_text())["serve"] == "ema"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.parametrize("stops", [[2], [1, 3, 5]], ids=str)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(straight, tmp_path, monkeypatch, stops):
    experiment = averaged(mesh=MeshShape(data=4, fsdp=2))
    stop_at(monkeypatch, stops)
    for _ in stops:
        outcome = loop.train(experiment, tmp_path / "run", resume=True)
        assert outcome.stopped
        assert (tmp_path / "run" / "checkpoints" / str(outcome.state.step) / "manifest.json").exists()
    outcome = loop.train(experiment, tmp_path / "run", resume=True)
    assert not outcome.stopped
    same_run(straight[0], tmp_path / "run", (straight[1].state, outcome.state))


def test_a_killed_run_repeats_what_its_checkpoint_lacks(straight, tmp_path):
    """As a kill between steps 5 and 6 leaves it: lines beyond the checkpoint, one cut off, an eval that is missing."""
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    metrics = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(metrics[:5]) + metrics[5][:20])
    outcome = loop.train(averaged(mesh=MeshShape(data=4, fsdp=2)), folder, resume=True)
    same_run(straight[0], folder, (straight[1].state, outcome.state))


def test_an_eval_that_a_kill_prevented_is_caught_up(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    evals = (folder / "evals.jsonl").read_text().splitlines(keepends=True)
    (folder / "evals.jsonl").write_text(evals[0])
    loop.train(averaged(mesh=MeshShape(data=4, fsdp=2)), folder, resume=True)
    assert (folder / "evals.jsonl").read_text() == "".join(evals)


def test_a_run_goes_on_elsewhere(straight, tmp_path, lines):
    """From eight devices to one: the same numbers, but for rounding."""
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    outcome = loop.train(averaged(), folder, resume=True, mesh=mesh)
    for ours, theirs in zip(lines(folder / "metrics.jsonl"), lines(straight[0] / "metrics.jsonl"), strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    left, right = values(outcome.state), values(straight[1].state)
    assert all(np.allclose(left[path], right[path], atol=1e-5) for path in left)


def rollouts():
    def act(model, variables, batch, rng, now):
        return {"x": batch["x"], "actions": model.apply(variables, batch["x"]) + jax.random.normal(rng, (16, 4))}

    def loss(model, variables, batch, rng, now):
        return jnp.mean((model.apply(variables, batch["x"]) - batch["actions"]) ** 2), Aux({})

    task = Task(toys.Net(), loss, prepare=act, updates=3)
    return toys.experiment(task=task, steps=12, save_every=4, eval_every=100)


def test_rollouts_are_saved_between_batches_only_and_go_on(tmp_path, monkeypatch, lines):
    whole = loop.train(rollouts(), tmp_path / "one")
    assert sorted(int(path.name) for path in (tmp_path / "one" / "checkpoints").iterdir()) == [9, 12]
    stop_at(monkeypatch, [2])
    assert loop.train(rollouts(), tmp_path / "two").stopped
    assert [line["step"] for line in lines(tmp_path / "two" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    outcome = loop.train(rollouts(), tmp_path / "two", resume=True)
    same_run_metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    assert same_run_metrics[0] == same_run_metrics[1]
    left, right = values(whole.state), values(outcome.state)
    assert all((left[path] == right[path]).all() for path in left)


def test_only_due_steps_are_logged(tmp_path, lines):
    loop.train(toys.experiment(log_every=4, steps=7), tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 4, 7]


def test_a_run_that_diverges_stops_and_keeps_its_last_good_state(tmp_path):
    def loss(model, variables, batch, rng, now):
        value, aux = toys.regression(model, variables, batch, rng, now)
        return value * jnp.where(now == 4, jnp.nan, 1.0), aux

    experiment = toys.experiment(task=Task(toys.Net(), loss), log_every=100, steps=20)
    message = r"loss is nan at step 6 of .*run; the newest checkpoint is step 4. Lower optimizer.peak"
    with pytest.raises(ValueError, match=message):  # nothing is logged at 5, but nothing bad is saved at 6 either
        loop.train(experiment, tmp_path / "run")
    with pytest.raises(ValueError, match="loss is nan at step 5"):
        loop.train(dataclasses.replace(experiment, log_every=1), tmp_path / "again")


def test_a_disk_full_of_numbers_is_one_sentence_and_the_run_goes_on(straight, tmp_path):
    """The kernel's own error while metrics.jsonl is written, from the limit on the size of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(straight[0], tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        if int(step.name) > 4:
            shutil.rmtree(step)
    (tmp_path / "run" / "speed.jsonl").unlink()  # longer
    size = sum(len(line) for line in (straight[0] / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:4])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    message = r"^cannot write step 5 to .*metrics.jsonl: File too large; the newest checkpoint is step 4\. Make room"
    try:
        with pytest.raises(WriteError, match=message):
            loop.train(sharded(), tmp_path / "run", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = loop.train(sharded(), tmp_path / "run", resume=True)
    same_run(straight[0], tmp_path / "run", (straight[1].state, again.state))


def test_a_damaged_line_of_numbers_is_named(tmp_path):
    loop.train(toys.experiment(steps=3), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss"', "loss", 1))
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged at line 1 .*: mend or delete that line"):
        loop.train(toys.experiment(steps=3), tmp_path / "run", resume=True)


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"sha256": ')
    with pytest.raises(ValueError, match=r"config.json is damaged \(.*\): restore it"):
        run_folder.config(tmp_path)


def test_nothing_to_resume_is_said(tmp_path, capsys):
    loop.train(toys.experiment(steps=2), tmp_path / "run", resume=True)
    assert "run holds nothing to resume: starting at step 0" in capsys.readouterr().out


def test_a_record_names_all_who_made_the_run(tmp_path, lines):
    loop.train(toys.experiment(steps=2), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"commit": "earlier", "devices": "8 x TPU"}))
    loop.train(toys.experiment(steps=2), tmp_path / "run", resume=True, record=tmp_path / "results.jsonl")
    (line,) = lines(tmp_path / "results.jsonl")
    assert line["commit"].startswith("earlier, ")
    assert line["devices"].startswith("8 x TPU, ")
    loop.train(toys.experiment(steps=2), tmp_path / "run", resume=True, record=tmp_path / "results.jsonl")
    assert len(lines(tmp_path / "results.jsonl")) == 1  # once is enough


@dataclasses.dataclass(frozen=True)
class Judged:
    def __call__(self, model, variables, data, rng):
        return Result({"beauty": 0.5})

    def judge(self):
        return "c0ffee"


def test_a_record_names_the_judge_that_gave_the_numbers(tmp_path, lines):
    experiment = dataclasses.replace(toys.experiment(steps=2), final_evals=(Judged(),))
    loop.train(experiment, tmp_path / "run", record=tmp_path / "results.jsonl")
    (line,) = lines(tmp_path / "results.jsonl")
    assert (line["judge"], line["metrics"]["beauty"]) == ("c0ffee", 0.5)


FILE = '''"""A toy: learns nothing of note."""

import toys


def experiment(size):
    return toys.experiment(steps={"tiny": 2, "small": 4}[size], log_every=2)
'''


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "toy_points.py").write_text(FILE)
    return run_folder.Recipe(tmp_path / "toy_points.py", "tiny", ("batch_size=8",))


def test_a_run_can_be_rebuilt_from_its_folder(recipe, tmp_path, lines):
    outcome = loop.train(recipe.build(), tmp_path / "run", recipe=recipe, record=tmp_path / "results.jsonl")
    recipe.file.unlink()
    built = run_folder.rebuild(tmp_path / "run")
    assert (built.steps, built.batch_size, built.log_every) == (2, 8, 1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["about"] == "A toy: learns nothing of note."
    assert config["versions"]["jax"] == jax.__version__
    (line,) = lines(tmp_path / "results.jsonl")
    assert {
        "stem": "toy_points",
        "size": "tiny",
        "overrides": ["batch_size=8"],
        "seed": 0,
        "judge": None,
    }.items() <= line.items()
    assert line["metrics"] == outcome.metrics
    (tmp_path / "run" / "toy_points.py").write_text(FILE + "# edited\n")
    with pytest.raises(ValueError, match="has changed since the run began"):
        run_folder.rebuild(tmp_path / "run")


def test_a_run_without_a_file_can_go_on_but_not_be_rebuilt(recipe, tmp_path):
    loop.train(toys.experiment(steps=2), tmp_path / "run")
    loop.train(toys.experiment(steps=2), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="was trained without an experiment file"):
        run_folder.rebuild(tmp_path / "run")
    with pytest.raises(ValueError, match="was started with file None, now it is 'toy_points.py'"):
        loop.train(recipe.build(), tmp_path / "run", recipe=recipe, resume=True)
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        run_folder.rebuild(tmp_path)


def test_a_folder_with_a_run_is_not_overwritten(recipe, tmp_path):
    loop.train(recipe.build(), tmp_path / "run", recipe=recipe)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="holds a run already: pass --resume to go on, or another --workdir"):
        loop.train(recipe.build(), tmp_path / "run", recipe=recipe)
    other = recipe._replace(overrides=("batch_size=16",))
    with pytest.raises(ValueError, match=r"started with overrides \['batch_size=8'\], now it is \['batch_size=16'\]"):
        loop.train(other.build(), tmp_path / "run", recipe=other, resume=True)
    recipe.file.write_text(FILE + "# edited\n")
    with pytest.raises(ValueError, match="started with sha256"):
        loop.train(recipe.build(), tmp_path / "run", recipe=recipe, resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_run_starts_from_others_and_goes_on_without_them(tmp_path, monkeypatch):
    """Two sources: the served average of one run as half of the model, and all of another as a frozen judge."""
    one = run_folder.Recipe(tmp_path / "first.py", "tiny")
    one.file.write_text(
        "import toys\nfrom test_loop import averaged\n\n\ndef experiment(size):\n    return averaged()\n"
    )
    first = loop.train(averaged(), tmp_path / "runs" / "first-tiny", recipe=one)
    second = loop.train(toys.experiment(seed=1), tmp_path / "second")

    def loss(model, variables, batch, rng, now):
        y = model.apply({"params": variables["params"]}, batch["x"])
        judge = model.apply(variables["judge"], batch["x"])
        return jnp.mean((y - judge) ** 2), Aux({})

    sources = (Source("first", "params/up", "params/up"), Source(str(tmp_path / "second"), to="judge"))
    seen = []

    def init(model, rng, batch, loaded):
        seen.append(loaded)
        return init_model(model, rng, batch, loaded)

    experiment = toys.experiment(task=Task(toys.Net(), loss, init=init), init_from=sources, steps=4)
    third = run_folder.Recipe(tmp_path / "third.py", "tiny")
    third.file.write_text("")
    stop_at(monkeypatch, [2])
    stopped = loop.train(experiment, tmp_path / "third", recipe=third, runs=tmp_path / "runs")
    assert stopped.stopped
    loaded = jax.tree.map(lambda x: x.shape, seen[0])
    assert loaded.keys() == {"params", "judge"}
    assert loaded["params"].keys() == {"up"}
    kept = values(stopped.state.variables["judge"]["params"])
    assert all((kept[path] == x).all() for path, x in values(second.state.variables["params"]).items())
    served = np.asarray(first.state.variables["ema"]["up"]["kernel"])
    moved = np.abs(np.asarray(stopped.state.variables["params"]["up"]["kernel"]) - served).max()
    assert moved < 0.03  # two steps of 0.01 from the average, and 0.1 from any other initial value
    shutil.rmtree(tmp_path / "runs")
    outcome = loop.train(experiment, tmp_path / "third", recipe=third, runs=tmp_path / "runs", resume=True)
    assert int(outcome.state.step) == 4


def test_a_source_that_is_missing_is_made_by_a_command(tmp_path):
    experiment = toys.experiment(init_from=(Source("vqvae_emoji"),))
    message = "no run in .*vqvae_emoji-small; make it with: mmjax train experiments/vqvae_emoji.py --size small"
    with pytest.raises(FileNotFoundError, match=message):
        loop.train(experiment, tmp_path / "run", runs=tmp_path / "runs")
    assert not (tmp_path / "run").exists()


def test_two_evals_of_one_name_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="two evals report 'toy/noise'"):
        loop.train(toys.experiment(evals=(kernel_size, kernel_size)), tmp_path / "run")


def test_the_page_and_the_boards_are_written(tmp_path, real_report):
    pytest.importorskip("tensorboardX")
    loop.train(toys.experiment(steps=2, evals=(kernel_size,)), tmp_path / "run")
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    (events,) = Path(tmp_path / "run" / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"eval/toy/size" in events.read_bytes()


def test_weights_and_biases_has_to_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'mmjax\[wandb\]'"):
        loop.train(toys.experiment(), tmp_path / "run", wandb=True)
