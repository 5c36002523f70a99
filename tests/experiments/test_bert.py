"""BERT's experiments at their tiny size, in sequence: pretraining, then both fine-tunings from it."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.train import loop, overrides, run_folder, sources

RUN = "experiments/bert_{}.py"
FINAL = {
    "cldr": {"concepts/word_accuracy", "concepts/word_perplexity", "concepts/next_sentence_accuracy"},
    "names": {"concepts/accuracy", "concepts/top5_accuracy"},
    "tags": {"concepts/f1", "concepts/precision", "concepts/recall", "concepts/tag_accuracy"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def train(name: str, home, monkeypatch):
    file = Path(RUN.format(name)).resolve()
    monkeypatch.chdir(home)  # runs/ is looked for here
    recipe = run_folder.Recipe(file, "tiny")
    experiment = recipe.build()
    workdir = run_folder.default(recipe)
    return loop.train(experiment, workdir, recipe=recipe, mesh=experiment.mesh.build(jax.devices()[:1]))


@pytest.mark.train
@pytest.mark.parametrize("name", ["cldr", "names", "tags"])
def test_the_chain_runs_and_says_its_numbers(name, home, monkeypatch):
    outcome = train(name, home, monkeypatch)
    assert outcome.state.step == 8
    assert FINAL[name] <= outcome.metrics.keys()
    assert all(np.isfinite(value) for value in outcome.metrics.values())


@pytest.mark.train
@pytest.mark.parametrize("name", ["names", "tags"])
def test_fine_tuning_starts_from_the_pretrained_encoder(name, home, monkeypatch):
    experiment = overrides.load_experiment(RUN.format(name), "tiny")
    batch = experiment.data.batches(4, 0)[0]
    monkeypatch.chdir(home)
    loaded = sources.load(experiment.init_from, "tiny")
    variables = experiment.task.init(experiment.task.model, jax.random.key(0), batch, loaded)
    for path in (("embed", "embedding"), ("layers", "mlp", "up", "kernel")):
        ours, theirs = variables["params"]["bert"], loaded["params"]["bert"]
        for key in path:
            ours, theirs = ours[key], theirs[key]
        np.testing.assert_array_equal(ours, theirs)
    assert ("pooler" in loaded["params"]["bert"]) == (name == "names")


@pytest.mark.parametrize("name", ["names", "tags"])
def test_without_the_pretraining_run_the_command_that_makes_it_is_named(name, tmp_path, monkeypatch):
    experiment = overrides.load_experiment(RUN.format(name), "tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mmjax train experiments/bert_cldr\.py --size tiny"):
        sources.load(experiment.init_from, "tiny")


@pytest.mark.parametrize("name", ["names", "tags"])
def test_minilm_is_read_from_the_users_folder(name):
    experiment = overrides.load_experiment(RUN.format(name), "minilm")
    assert experiment.task.model.config.width == 384
    assert {source.run for source in experiment.init_from} == {experiment.data.vocab} == {"weights/minilm"}


@pytest.mark.parametrize("name", FINAL)
def test_the_held_out_concepts_are_read_only_at_the_end(name):
    experiment = overrides.load_experiment(RUN.format(name), "small")
    assert {one.split for one in experiment.evals} == {"validation"}
    assert {one.split for one in experiment.final_evals} == {"concepts"}
