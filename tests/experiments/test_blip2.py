"""BLIP-2 on scenes at its tiny size: the second stage starts from the first, and what is frozen stays."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.data import scene_text
from mmjax.models import blip2, qformer
from mmjax.nn.outputs import Request
from mmjax.train import loop, overrides, run_folder

HOME = Path(__file__).parents[2]
STAGES = ("qformer_scenes", "blip2_scenes")


def load(stem: str, size: str):
    return overrides.load_experiment(HOME / "experiments" / f"{stem}.py", size)


def trained(stem: str, folder: Path, **without):
    recipe = run_folder.Recipe(HOME / "experiments" / f"{stem}.py", "tiny")
    experiment = overrides.apply(recipe.build(), [f"{name}=()" for name in without])
    mesh = experiment.mesh.build(jax.devices()[:1])
    return experiment, loop.train(experiment, folder / f"{stem}-tiny", recipe=recipe, mesh=mesh)


def same(found, wanted) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, found, wanted)))


@pytest.mark.train
def test_the_second_stage_starts_from_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    before = {
        stem: trained(stem, runs, evals=(), final_evals=())[1].state.variables["params"]
        for stem in ("vit_scenes", "llama_scenes")
    }
    first, outcome = trained("qformer_scenes", runs)
    found, seen = outcome.state.variables["params"], before["vit_scenes"]["vision"]
    tower, norm = (
        ({name: x for name, x in tree["vision"].items() if name != "norm"} for tree in (found, before["vit_scenes"])),
        seen["norm"],
    )
    assert same(*tower)
    assert not same(found["vision"]["norm"], norm)
    for split in ("validation", "twemoji"):
        names = {f"{split}/{name}" for name in ("caption_R@1", "itm_picture_R@5", "caption", "caption/chrf")}
        assert names <= outcome.metrics.keys()
    model, variables = first.task.model, outcome.state.variables
    image = np.full((40, 50, 3), 200, np.uint8)
    answer = first.sample(model, variables, Request((), (image,)), first.data, jax.random.key(0))
    assert answer.text.count("\n") == 0
    assert answer.pictures["captions"].ndim == 3

    second, outcome = trained("blip2_scenes", runs)
    last = outcome.state.variables["params"]
    assert same(last["vision"]["tower"]["layers"], found["vision"]["layers"])
    assert same(last["language"], before["llama_scenes"])
    assert not same(last["vision"]["query_tokens"], found["query_tokens"])
    np.testing.assert_allclose(last["vision"]["query_tokens"], found["query_tokens"], atol=1e-2)  # moved from there
    assert {"twemoji/caption", "twemoji/caption/majority"} <= outcome.metrics.keys()
    request = Request(("describe the picture.",), (image,))
    answer = second.sample(second.task.model, outcome.state.variables, request, second.data, jax.random.key(0))
    assert answer.pictures["answer"].ndim == 3


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_models_and_rows_agree(size):
    first, second = (load(stem, size) for stem in STAGES)
    one, other = first.task.model.config, second.task.model.config
    assert first.data.composer == second.data.composer
    assert first.data.composer.size == one.vision.image_size
    assert first.data.length <= one.length
    assert one.qformer.start_id == scene_text.id_of(scene_text.ANSWER)
    assert one.vocab_size >= scene_text.tokenizer().get_vocab_size()
    assert (other.vision, other.see.qformer.width, other.see.qformer.depth) == (
        one.vision,
        one.qformer.width,
        one.qformer.depth,
    )
    assert second.data.image_tokens == other.tokens_per_image == one.qformer.queries
    assert other.image_token == scene_text.id_of(scene_text.IMAGE)
    assert other.language.length >= 1 + second.data.image_tokens + second.data.length
    assert (first.task.trainable, second.task.trainable) == (qformer.TRAINABLE, blip2.TRAINABLE)


def test_published_recipes():
    first, second = (load(stem, "paper") for stem in STAGES)
    assert (first.steps, first.batch_size) == (250_000, 1_680)
    assert (second.steps, second.batch_size) == (80_000, 1_920)
    for one, end in ((first, 1e-5), (second, 5e-5)):
        rate = one.optimizer.rates(one.steps)["lr"]
        assert rate(2_000) == pytest.approx(1e-4)
        assert rate(one.steps) == pytest.approx(end)
        assert (one.optimizer.b2, one.optimizer.weight_decay) == (0.98, 0.05)


@pytest.mark.parametrize("stem", STAGES)
def test_the_held_out_artist_is_read_only_at_the_end(stem):
    experiment = load(stem, "small")
    assert {one.split for one in experiment.evals} == {"validation"}
    assert {one.split for one in experiment.final_evals} == {"twemoji"}
    with pytest.raises(ValueError, match="has no size 'nothing'"):
        load(stem, "nothing")
