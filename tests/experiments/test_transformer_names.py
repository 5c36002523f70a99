"""The translating Transformer at its tiny size, and what its sizes have in common."""

import jax
import numpy as np
import pytest

from mmjax.train import loop, overrides, run_folder

FILE = "experiments/transformer_names.py"


@pytest.mark.train
def test_it_runs_and_says_its_numbers(tmp_path):
    recipe = run_folder.Recipe(FILE, "tiny")
    experiment = recipe.build()
    outcome = loop.train(experiment, tmp_path, recipe=recipe, mesh=experiment.mesh.build(jax.devices()[:1]))
    assert outcome.state.step == 8
    assert {f"concepts/{name}" for name in ("exact", "chrf", "exact_copy", "chrf_copy/fr")} <= outcome.metrics.keys()
    assert all(np.isfinite(value) for value in outcome.metrics.values())


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_the_model_has_the_vocabulary_of_its_data(size):
    experiment = overrides.load_experiment(FILE, size)
    config, tokenizer = experiment.task.model.config, experiment.data.tokenizer
    assert (config.pad_id, config.start_id, config.end_id) == (tokenizer.pad, tokenizer.start, tokenizer.end)
    assert config.vocab_size >= tokenizer.vocab_size


def test_the_paper_size_is_the_papers():
    experiment = overrides.load_experiment(FILE, "paper")
    rate = experiment.optimizer.rates(experiment.steps)["lr"]
    assert float(rate(3999)) == pytest.approx(6.98771e-4, rel=1e-5)
    assert experiment.batch_size * experiment.data.source_length >= 25_000


def test_the_held_out_concepts_are_read_only_at_the_end():
    experiment = overrides.load_experiment(FILE, "small")
    assert {one.split for one in experiment.evals} == {"validation"}
    assert {one.split for one in experiment.final_evals} == {"concepts"}
