"""Checkpoints come back bit for bit, on any mesh, or are passed over with a word."""

import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.sharding import PartitionSpec

from mmjax.parallel.mesh import MeshShape
from mmjax.train import checkpoint, optim, step, trees
from mmjax.train.state import TrainState
from mmjax.train.task import Task


@pytest.fixture(scope="module")
def experiment():
    task = Task(
        toys.Net(),
        toys.regression,
        init=optim.with_copy("ema"),
        after_update=optim.ema("params", "ema", 0.5),
        serve="ema",
    )
    return toys.experiment(task=task, seed=7)


@pytest.fixture(scope="module")
def on_eight(experiment):
    return step.build(experiment, MeshShape(data=2, fsdp=2, tensor=2).build())


@pytest.fixture(scope="module")
def saved(experiment, on_eight, tmp_path_factory):
    """A folder with the checkpoints of steps 1, 2 and 3 of which two are kept, and what they hold."""
    folder = tmp_path_factory.mktemp("saved") / "run" / "checkpoints"
    checkpoints = checkpoint.Checkpoints(folder)
    batches = experiment.data.batches(16, 7)
    state, held = on_eight.init(on_eight.place(batches[0])), {}
    for i in range(3):
        state, _ = on_eight.run(state, on_eight.place(batches[i]))
        held[i + 1] = values(state)
        checkpoints.save(state, 7)  # the next step gives these buffers away while they are being written
    checkpoints.wait()
    return folder, held


@pytest.fixture
def copy(saved, tmp_path):
    """The same in a folder that may be damaged."""
    shutil.copytree(saved[0], tmp_path / "run" / "checkpoints")
    return tmp_path / "run" / "checkpoints", saved[1]


def values(state):
    return {path: np.asarray(x) for path, x in trees.leaves(state).items()}


def equal(one, other):
    assert one.keys() == other.keys()
    assert all(one[path].dtype == other[path].dtype and (one[path] == other[path]).all() for path in one)


def test_a_state_comes_back_where_it_was(saved, on_eight):
    folder, held = saved
    checkpoints = checkpoint.Checkpoints(folder)
    assert checkpoints.find() == 3
    state = checkpoints.restore(3, on_eight.abstract, seed=7)
    equal(values(state), held[3])
    assert state.variables["ema"]["up"]["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    equal(values(checkpoints.restore(2, on_eight.abstract, seed=7)), held[2])


@pytest.mark.parametrize("devices", [1, 4])
def test_a_state_comes_back_on_another_mesh(saved, experiment, devices):
    folder, held = saved
    mesh = MeshShape(data=-1, fsdp=min(devices, 2)).build(jax.devices()[:devices])
    runner = step.build(experiment, mesh)
    state = checkpoint.Checkpoints(folder).restore(3, runner.abstract, seed=7)
    equal(values(state), held[3])
    assert all(x.sharding.device_set == set(mesh.devices.flat) for x in jax.tree.leaves(state))
    runner.run(state, runner.place(experiment.data.batches(16, 7)[3]))  # and can go on


def test_two_are_kept_and_each_says_that_it_is_whole(saved):
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert checkpoint.finished(checkpoint.epath.Path(folder)) == [2, 3]


def test_a_step_without_a_manifest_is_passed_over(copy, caplog):
    folder, _ = copy
    (folder / "3" / "manifest.json").unlink()
    (folder / "4").mkdir()
    assert checkpoint.Checkpoints(folder).find() == 2
    assert f"checkpoint {folder}/4 is passed over: it is unfinished; step 2 is used" in caplog.text
    assert f"checkpoint {folder}/3 is passed over: it is unfinished; step 2 is used" in caplog.text


def test_what_is_not_finished_is_not_there(tmp_path, caplog):
    assert checkpoint.Checkpoints(tmp_path / "none").find() is None
    (tmp_path / "5").mkdir()
    assert checkpoint.Checkpoints(tmp_path).find() is None
    assert "unfinished; the run starts at step 0" in caplog.text


def hurt(folder, rng):
    """Truncates, flips one bit of, or deletes a random file of a step; says which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, kind = files[rng.integers(len(files))], rng.choice(["truncate", "flip", "delete"])
    data = bytearray(path.read_bytes())
    if kind == "delete" or not data:
        path.unlink()
        return f"{path.name} deleted"
    if kind == "truncate":
        path.write_bytes(data[: rng.integers(len(data))])
    else:
        where = int(rng.integers(len(data) * 8))
        data[where // 8] ^= 1 << where % 8
        path.write_bytes(data)
    return f"{path.name} {kind}"


def damaged_steps_are_passed_over(saved, folder, like, caplog, seeds):
    for seed in seeds:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved[0], folder)
        done = hurt(folder / "3", np.random.default_rng(seed))
        caplog.clear()
        checkpoints = checkpoint.Checkpoints(folder)
        assert checkpoints.find() == 2, done
        assert f"{folder}/3 is passed over" in caplog.text, done
        assert "step 2 is used" in caplog.text
        if seed % 10 == 0:
            equal(values(checkpoints.restore(2, like, seed=7)), saved[1][2])


def test_damage_is_noticed(saved, tmp_path, on_eight, caplog):
    damaged_steps_are_passed_over(saved, tmp_path / "copy", on_eight.abstract, caplog, range(20))


@pytest.mark.slow
def test_two_hundred_damages_are_noticed(saved, tmp_path, on_eight, caplog):
    damaged_steps_are_passed_over(saved, tmp_path / "copy", on_eight.abstract, caplog, range(1000, 1200))


def test_later_steps_that_were_passed_over_cost_no_good_one(copy, on_eight):
    folder, _ = copy
    for later in (8, 9):
        shutil.copytree(folder / "3", folder / str(later))  # their manifests are of step 3
    checkpoints = checkpoint.Checkpoints(folder)
    assert checkpoints.find() == 3
    save_as_step_4(checkpoints, checkpoints.restore(3, on_eight.abstract, seed=7))
    assert checkpoint.finished(checkpoint.epath.Path(folder)) == [3, 4, 8, 9]
    assert checkpoint.Checkpoints(folder).find() == 4
    state = checkpoints.restore(4, on_eight.abstract, seed=7)
    for later in (9, 10):  # past them: 8 and 9 take no place of a good one
        checkpoints.save(state._replace(step=np.int32(later)), 7)
        checkpoints.wait()
    assert checkpoint.finished(checkpoint.epath.Path(folder)) == [9, 10]
    assert checkpoint.Checkpoints(folder).find() == 10


@pytest.mark.parametrize("name", ["manifest.json", "variables/_METADATA"])
def test_a_file_that_cannot_be_read_is_passed_over(copy, caplog, name):
    folder, _ = copy
    (folder / "3" / name).unlink()
    (folder / "3" / name).mkdir()  # opens with an OSError, for root too
    assert checkpoint.Checkpoints(folder).find() == 2
    assert f"{name} cannot be read (Is a directory); step 2 is used" in caplog.text


def test_where_all_are_damaged_nothing_starts_over(copy):
    folder, _ = copy
    for name in "23":
        next((folder / name).rglob("_METADATA")).write_text("{}")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be used \(step 3: .*_METADATA is damaged; step 2"):
        checkpoint.Checkpoints(folder).find()
    assert checkpoint.Checkpoints(folder).find(verify=False) == 3  # a flag skips the reading


@pytest.mark.parametrize(
    "text", ["", "[]", '{"step": 3}', '{"step": 3, "files": {}}', '{"step": 2, "files": {"a": 1}}']
)
def test_a_manifest_that_says_little_is_damaged(copy, text):
    folder, _ = copy
    (folder / "3" / "manifest.json").write_text(text)
    assert checkpoint.Checkpoints(folder).find() == 2


def test_a_state_that_does_not_fit_is_named(saved, on_eight):
    checkpoints = checkpoint.Checkpoints(saved[0])
    other = step.build(toys.experiment(task=Task(toys.Net(width=32), toys.regression)), on_eight.mesh).abstract
    with pytest.raises(ValueError, match=r"has \[4\] at variables/ema/down/bias, but the experiment has nothing"):
        checkpoints.restore(3, other, seed=7)
    with pytest.raises(ValueError, match="expected step 3 and seed 8"):
        checkpoints.restore(3, on_eight.abstract, seed=8)


def save_as_step_4(checkpoints, state):
    checkpoints.save(state._replace(step=np.int32(4)), 7)
    checkpoints.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads, cut off in mid-write
def test_a_full_disk_is_one_sentence_and_loses_nothing(copy, on_eight):
    """The kernel's own error while Orbax writes, from the limit on the size of a file."""
    folder, held = copy
    checkpoints = checkpoint.Checkpoints(folder)
    assert checkpoints.find() == 3
    state = checkpoints.restore(3, on_eight.abstract, seed=7)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    message = r"^cannot save step 4 to .*: .*File too large.*; the checkpoint of step 3 is intact\. Make room.*$"
    try:
        with pytest.raises(checkpoint.SaveError, match=message):
            save_as_step_4(checkpoints, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = checkpoint.Checkpoints(folder)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["2", "3"]
    assert again.find() == 3
    equal(values(again.restore(3, on_eight.abstract, seed=7)), held[3])
    save_as_step_4(again, state)
    assert checkpoint.Checkpoints(folder).find() == 4


def test_room_is_asked_for_before_anything_is_written(copy, on_eight, monkeypatch):
    folder, _ = copy
    checkpoints = checkpoint.Checkpoints(folder)
    checkpoints.find()
    state = checkpoints.restore(3, on_eight.abstract, seed=7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(
        checkpoint.SaveError, match=r"No space left on device \([\d,]+ bytes needed, 100 free\); the check"
    ):
        save_as_step_4(checkpoints, state)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_a_new_start_removes_what_interrupted_saves_left(copy):
    folder, _ = copy
    (folder / "4.orbax-checkpoint-tmp" / "variables").mkdir(parents=True)
    (folder / "holidays").mkdir()
    (folder / "notes.txt").touch()
    checkpoint.Checkpoints(folder).clean()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "holidays", "notes.txt"]


def test_slots_find_their_place_whatever_their_order(tmp_path, on_eight):
    """Eleven slots by number: "10" sorts before "2"."""
    slots = tuple(jnp.float32(i) for i in range(11))
    state = TrainState(jnp.int32(1), {"params": {"w": jnp.ones(2)}}, slots)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(state, 0)
    checkpoints.wait()
    where = on_eight.replicated
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state)
    assert [float(x) for x in checkpoints.restore(1, like, 0).opt_state] == list(range(11))


def test_other_runs_read_the_copy_that_is_served(saved):
    folder, held = saved
    found = checkpoint.load_variables(folder.parent, serve="ema")
    assert found.keys() == {"params"}
    equal(values(found["params"]), {k.removeprefix("variables/ema/"): x for k, x in held[3].items() if "/ema/" in k})
    raw = checkpoint.load_variables(folder.parent)
    assert raw.keys() == {"params", "ema"}
    part = checkpoint.load_variables(folder.parent, serve="ema", take="params/up")
    equal(values(part), {name: held[3][f"variables/ema/up/{name}"] for name in ("kernel", "bias")})
    leaf = checkpoint.load_variables(folder.parent, serve="ema", take="params/up/kernel")
    np.testing.assert_array_equal(leaf, held[3]["variables/ema/up/kernel"])


def test_reading_what_is_not_there_is_an_error(saved, tmp_path):
    folder = saved[0].parent
    with pytest.raises(ValueError, match="no 'nose' on the path 'params/nose'; there: down, up"):
        checkpoint.load_variables(folder, take="params/nose")
    with pytest.raises(ValueError, match="no collection 'teacher' to serve; it has ema, params"):
        checkpoint.load_variables(folder, serve="teacher")
    with pytest.raises(FileNotFoundError, match="holds no finished checkpoint"):
        checkpoint.load_variables(tmp_path)
