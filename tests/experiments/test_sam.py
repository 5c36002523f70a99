"""SAM's experiment at its tiny size, and that it asks of the data what the model expects."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import sam
from mmjax.train import loop, overrides, run_folder

FILE = Path("experiments/sam_scenes.py")


@pytest.mark.train
def test_it_runs_and_says_its_numbers(tmp_path):
    recipe = run_folder.Recipe(FILE, "tiny")
    experiment = recipe.build()
    outcome = loop.train(experiment, tmp_path / "run", recipe=recipe, mesh=experiment.mesh.build(jax.devices()[:1]))
    assert outcome.state.step == 4
    names = {f"{split}/{name}" for split in ("validation", "twemoji") for name in ("point_iou", "box_iou")}
    assert outcome.metrics.keys() >= names
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    assert list((tmp_path / "run" / "pictures").rglob("*masks*.png"))


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_scenes_are_as_large_as_the_pictures_of_the_model(size):
    experiment = overrides.load_experiment(FILE, size)
    assert experiment.data.composer.size == experiment.task.model.config.vision.image_size
    assert experiment.task.trainable == sam.TRAINABLE
    assert {one.split for one in experiment.evals} == {"validation"}
    assert {one.split for one in experiment.final_evals} == {"twemoji"}  # read once, at the end


def test_published_recipe():
    experiment = overrides.load_experiment(FILE, "paper")
    optimizer, config = experiment.optimizer, experiment.task.model.config
    assert (experiment.steps, experiment.batch_size) == (90_000, 256)
    assert (optimizer.peak, optimizer.warmup, optimizer.weight_decay) == (8e-4, 250, 0.1)
    assert (config.recipe.points, config.recipe.again, config.vision.drop_path) == (8, 2, 0.4)
    # 32 layers: the last one of the fourth stretch of windows is layer 30, the one before the last.
    at = "vision/run6/layers/mlp/up/kernel"
    assert optimizer.scale(at, jnp.array(6)) == pytest.approx(0.8**2, rel=1e-5)
    assert optimizer.scale("vision/run0/layers/norm1/scale", jnp.array(0)) == pytest.approx(0.8**32, rel=1e-5)
    assert optimizer.scale("vision/pos_embed", None) == pytest.approx(0.8**33)
    assert optimizer.scale("prompt/mask_embed/conv1/kernel", None) == 1
    assert optimizer.scale("decoder/iou_token", None) == 1


def test_an_unknown_size_is_no_experiment():
    with pytest.raises(ValueError, match="tiny"):
        overrides.load_experiment(FILE, "huge")
