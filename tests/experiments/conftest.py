"""Runs that several studies read."""

import dataclasses
from pathlib import Path

import jax
import pytest

from mmjax.train import loop, run_folder


@pytest.fixture(scope="session")
def encoder_runs(tmp_path_factory) -> Path:
    """A folder with tiny runs of the encoders of pictures."""
    folder = tmp_path_factory.mktemp("runs")
    for stem in ("clip_emoji", "siglip_emoji", "dino_emoji", "dinov2_emoji"):
        recipe = run_folder.Recipe(Path("experiments") / f"{stem}.py", "tiny")
        experiment = dataclasses.replace(recipe.build(), evals=(), final_evals=())  # which take longer than training
        loop.train(experiment, folder / f"{stem}-tiny", recipe=recipe, mesh=experiment.mesh.build(jax.devices()[:1]))
    return folder
