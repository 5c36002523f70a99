"""The experiments of DINO and DINOv2 at their tiny size, and that they ask of the data what the models expect."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.models import dinov2
from mmjax.train import loop, overrides, run_folder, trees

FILES = {name: Path(f"experiments/{name}_emoji.py") for name in ("dino", "dinov2")}
FINAL = {
    "twemoji/knn_subgroup_accuracy", "twemoji/probe_subgroup_accuracy", "twemoji/attention_iou", "twemoji/patch_iou",
    "validation/knn_subgroup_accuracy",
}  # fmt: skip


@pytest.mark.train
@pytest.mark.parametrize("name", FILES)
def test_it_runs_and_says_its_numbers(name, tmp_path):
    recipe = run_folder.Recipe(FILES[name], "tiny")
    experiment = recipe.build()
    outcome = loop.train(experiment, tmp_path / "run", recipe=recipe, mesh=experiment.mesh.build(jax.devices()[:1]))
    assert outcome.state.step == 8
    assert outcome.metrics.keys() >= FINAL
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    student, teacher = (outcome.state.variables[name]["head"]["up"]["kernel"] for name in ("params", "teacher"))
    assert np.abs(student - teacher).max() > 0
    assert list((tmp_path / "run" / "pictures").rglob("*attention*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_stopped_runs_go_on_bit_for_bit(name, tmp_path, monkeypatch):
    """Stopped after 1 and 3 of 5 steps: while the prototypes are frozen, and after. The teacher, the centers and both
    of Adam's moments come back, and so do the crops, the masks and the branches left out."""
    experiment = overrides.load_experiment(FILES[name], "tiny")
    task = experiment.task
    if name == "dinov2":  # Sinkhorn has no centers
        config = dataclasses.replace(task.model.config, assign=dinov2.center_and_sharpen)
        task = dataclasses.replace(task, model=dinov2.DINOv2(config))
    experiment = dataclasses.replace(experiment, task=task, steps=5, save_every=5, evals=(), final_evals=())
    mesh = experiment.mesh.build(jax.devices()[:1])
    straight = loop.train(experiment, tmp_path / "straight", mesh=mesh)

    left = [1, 3]
    monkeypatch.setattr(loop.Stop, "asked", lambda _, made: bool(left) and made >= left[0] and left.pop(0) > 0)
    parts = [loop.train(experiment, tmp_path / "parts", mesh=mesh, resume=True) for _ in range(3)]
    assert [(one.state.step, one.stopped) for one in parts] == [(1, True), (3, True), (5, False)]
    losses = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("straight", "parts")]
    assert losses[0] == losses[1]
    assert losses[0].count('"loss"') == 5
    wanted, found = (trees.leaves(one.state) for one in (straight, parts[-1]))
    kinds = {part for path in wanted for part in path.split("/") if part in ("params", "teacher", "center", "mu", "nu")}
    assert kinds == {"params", "teacher", "center", "mu", "nu"}
    assert wanted.keys() == found.keys()
    for path, x in wanted.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
    assert all(np.any(x) for path, x in wanted.items() if "/center/" in path)


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_dinov2s_budget_of_hidden_patches_is_that_of_its_masks(size):
    experiment = overrides.load_experiment(FILES["dinov2"], size)
    config, masks = experiment.task.model.config, experiment.data.masks
    assert config.hidden == masks.most
    assert config.group == masks.group
    assert experiment.batch_size % config.group == 0
    assert masks.grid**2 == config.vision.num_patches
    assert experiment.data.crops.global_size == config.vision.image_size


@pytest.mark.parametrize("name", FILES)
def test_the_held_out_artist_is_read_only_at_the_end(name):
    experiment = overrides.load_experiment(FILES[name], "small")
    assert {one.split for one in experiment.evals} == {"validation"}
    assert {one.split for one in experiment.final_evals} == {"twemoji"}
    assert experiment.task.serve == "teacher"


@pytest.mark.parametrize("name", FILES)
def test_views_hold_whole_patches(name):
    for size in ("tiny", "small", "paper"):
        experiment = overrides.load_experiment(FILES[name], size)
        crops, patch = experiment.data.crops, experiment.task.model.config.vision.patch_size
        assert crops.global_size % patch == crops.local_size % patch == 0


def test_published_recipes():
    dino, dinov2 = (overrides.load_experiment(FILES[name], "paper") for name in FILES)
    assert dino.optimizer.peak == pytest.approx(2e-3)
    assert dino.steps == 300 * 1_251
    assert dinov2.optimizer.peak == pytest.approx(3.4641e-4, rel=1e-4)
    assert (dinov2.steps, dinov2.optimizer.warmup) == (625_000, 100_000)
    shares = {name: (e.data.crops.global_scale, e.data.crops.local_scale) for name, e in (("1", dino), ("2", dinov2))}
    assert shares == {"1": ((0.4, 1.0), (0.05, 0.4)), "2": ((0.32, 1.0), (0.05, 0.32))}
