"""The experiments of DINO and DINOv2 at their tiny size, and that they ask of the data what the models expect."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.train import loop, overrides, run_folder

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
