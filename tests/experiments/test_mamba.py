"""Mamba's experiments at their tiny size, beside the Transformer that they are compared with."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.outputs import Request
from mmjax.train import loop, overrides, run_folder

RECALL = ("mamba_copying", "mamba_induction")


def load(stem: str, size: str):
    return overrides.load_experiment(f"experiments/{stem}.py", size)


def parameters(model) -> int:
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.train
@pytest.mark.parametrize("size", ["tiny", "tiny_transformer"])
@pytest.mark.parametrize("stem", RECALL)
def test_both_models_are_trained_asked_beyond_and_answer_a_person(stem, size, tmp_path):
    recipe = run_folder.Recipe(Path(f"experiments/{stem}.py").resolve(), size)
    experiment = recipe.build()
    mesh = experiment.mesh.build(jax.devices()[:1])
    outcome = loop.train(experiment, tmp_path / "run", recipe=recipe, mesh=mesh)
    assert outcome.state.step == 8
    asked = experiment.final_evals[0].lengths
    assert max(asked) == 2 * experiment.data.length
    assert {f"length_{length}/accuracy" for length in asked} <= outcome.metrics.keys()
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    texts = tuple(experiment.data.write(row) for row in experiment.data.questions(2, 12)["input_ids"])
    variables = outcome.state.variables
    answer = experiment.sample(experiment.task.model, variables, Request(texts), experiment.data, jax.random.key(0))
    assert [line.split()[0] for line in answer.text.splitlines()] == list(texts)


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("stem", RECALL)
def test_the_models_beside_each_other_are_of_equal_size_and_see_the_same_batches(stem, size):
    mamba, transformer = load(stem, size), load(stem, f"{size}_transformer")
    assert parameters(mamba.task.model) == pytest.approx(parameters(transformer.task.model), rel=0.01)
    for field in ("data", "optimizer", "steps", "batch_size", "seed", "final_evals"):
        assert getattr(mamba, field) == getattr(transformer, field), field


@pytest.mark.parametrize("stem", RECALL)
def test_only_the_answers_are_learned(stem):
    """Other tokens may be anything, and other labels none."""
    experiment = load(stem, "tiny")
    batch = experiment.data.batches(4, 0)[0]
    model = experiment.task.model
    variables = jax.jit(model.init)(jax.random.key(0), batch["input_ids"])

    @jax.jit
    def loss(variables, batch):
        value, aux = experiment.task.loss(model, variables, batch, None, 0)
        return value, aux.weight

    value, weight = loss(variables, batch)
    counted = batch["labels"] >= 0
    assert weight == counted.sum() == 4 * getattr(experiment.data, "count", 1)
    logits = jax.jit(model.apply)(variables, batch["input_ids"]).logits
    expected = -jax.nn.log_softmax(logits)[counted, batch["labels"][counted]].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("stem", ["mamba2_text", "gpt_text"])
def test_they_read_what_llama_reads(stem):
    ours, theirs = load(stem, "small"), load("llama_text", "small")
    for field in ("data", "optimizer", "batch_size", "evals"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.steps == 400  # LLaMA's are set to that beside them
    assert parameters(ours.task.model) == pytest.approx(parameters(theirs.task.model), rel=0.07)


def test_mamba2s_paper_size_is_the_published_one():
    assert parameters(load("mamba2_text", "paper").task.model) == 2_702_599_680


@pytest.mark.train
def test_mamba2_text_runs_and_says_its_perplexity(tmp_path):
    recipe = run_folder.Recipe(Path("experiments/mamba2_text.py").resolve(), "tiny")
    experiment = recipe.build()
    mesh = experiment.mesh.build(jax.devices()[:1])
    metrics = loop.train(experiment, tmp_path / "run", recipe=recipe, mesh=mesh).metrics
    assert 1 < metrics["held_out/perplexity"] < 5_000
