"""The experiments on scenes at their tiny size, one starting from the other, and what they are told of the data."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.data import scene_text
from mmjax.evals import scene_answers
from mmjax.models import nextchat
from mmjax.nn.outputs import Request
from mmjax.train import loop, overrides, run_folder, sources, step, trees

STEMS = ("llava_scenes", "shikra_scenes", "ferret_scenes", "nextchat_scenes")
SPECIAL = {
    "ferret_scenes": {"region_token": scene_text.REGION},
    "nextchat_scenes": {"at_token": scene_text.AT, "box_token": "<boxes>"},
}
START = ("vit_scenes", "llama_scenes", "llava_scenes")
SIZES = {
    "llava_scenes": ("small", "small_long", "small_200", "small_linear", "small_qformer", "small_align",
                     "small_instruct", "small_clip", "small_dino", "small_additive", "small_interleaved", "small_tuned",
                     "paper", "paper_align", "paper_lora"),
    "shikra_scenes": ("small", "small_long", "small_200", "paper"),
    "ferret_scenes": ("small", "small_plain", "small_200", "paper"),
    "nextchat_scenes": ("small", "small_long", "small_200", "small_masks", "paper"),
    "vit_scenes": ("small", "small_200", "paper"), "llama_scenes": ("small", "small_200", "paper"),
}  # fmt: skip


HOME = Path(__file__).parents[2]


def trained(stem: str, folder: Path, size: str = "tiny"):
    recipe = run_folder.Recipe(HOME / "experiments" / f"{stem}.py", size)
    experiment = recipe.build()
    if size == "tiny":
        experiment = dataclasses.replace(experiment, evals=(), final_evals=())
    mesh = experiment.mesh.build(jax.devices()[:1])
    return experiment, loop.train(experiment, folder / f"{stem}-{size}", recipe=recipe, mesh=mesh)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        for stem in START:
            trained(stem, folder)
    return folder


@pytest.mark.train
@pytest.mark.parametrize("stem", STEMS)
def test_it_runs_from_what_sees_and_what_speaks(stem, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.parent)
    recipe = run_folder.Recipe(HOME / "experiments" / f"{stem}.py", "tiny")
    experiment = recipe.build()
    mesh = experiment.mesh.build(jax.devices()[:1])
    outcome = loop.train(experiment, tmp_path / f"{stem}-tiny", recipe=recipe, mesh=mesh)
    assert outcome.state.step == 8
    assert outcome.metrics["twemoji/what/n"] == 8
    assert {"cells", "vision", "language"} <= outcome.state.variables["params"].keys()
    image = np.full((40, 50, 3), 200, np.uint8)
    model, variables = experiment.task.model, outcome.state.variables
    request = Request(("where is the key?",), (image,))
    answer = experiment.sample(model, variables, request, experiment.data, jax.random.key(0))
    assert answer.pictures["answer"].ndim == 3
    with pytest.raises(ValueError, match="there is no question"):
        experiment.sample(model, variables, Request((), (image,)), experiment.data, jax.random.key(0))


@pytest.mark.train
def test_nextchat_learns_to_cut_out_and_nothing_else_changes(runs, tmp_path, monkeypatch):
    runs = shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    trained("sam_scenes", runs)
    _, before = trained("nextchat_scenes", runs)
    experiment, outcome = trained("nextchat_scenes", runs, "tiny_masks")
    assert {"twemoji/where/mask_iou", "twemoji/where/filled_iou"} <= outcome.metrics.keys()
    model, variables = experiment.task.model, outcome.state.variables
    params = variables["params"]
    for part in ("vision", "projector", "language", "loc_decoder"):
        jax.tree.map(np.testing.assert_array_equal, params[part], before.state.variables["params"][part])
    answer = experiment.sample(model, variables, Request(("where is the key?",)), experiment.data, None)
    assert answer.pictures["answer"].ndim == 3
    # It has learned to say no place, so its masks are looked at where it is told to have said two.
    rng = np.random.default_rng(0)
    found, states = np.array([[True, False, True]]), rng.normal(size=(1, 3, model.config.language.width))
    said = nextchat.Located(np.zeros((1, 3)), np.array([3]), np.full((1, 3, 4), 0.4), found, states.astype(np.float32))
    masks = scene_answers.cut_out(model, variables, np.zeros((1, 64, 64, 3), np.uint8), said, found, 2)
    assert masks.shape == (1, 2, 64, 64)
    assert masks.dtype == bool


@pytest.mark.parametrize("stem", SIZES)
def test_models_and_rows_agree(stem):
    assert set(SIZES[stem]) <= set(overrides.sizes(Path("experiments") / f"{stem}.py"))
    for size in SIZES[stem]:
        experiment = overrides.load_experiment(Path("experiments") / f"{stem}.py", size)
        data, config = experiment.data, experiment.task.model.config
        config = getattr(config, "llava", config)
        if stem in STEMS:
            assert data.image_tokens == config.tokens_per_image, size
        if stem != "llama_scenes":
            vision = getattr(config, "vision", config)
            assert data.composer.size == vision.image_size or size in ("small_clip", "small_dino"), size
        if hasattr(config, "language"):
            whole, named = experiment.task.model.config, {"image_token": scene_text.IMAGE} | SPECIAL.get(stem, {})
            found = {name: getattr(whole, name, getattr(config, name, None)) for name in named}
            assert found == {name: scene_text.id_of(token) for name, token in named.items()}, size
            assert config.language.length >= 1 + data.image_tokens + data.length


def test_llavas_stages_train_what_was_published_one_after_the_other():
    folder = Path("experiments")
    wanted = {"small_align": {"projector"}, "small_instruct": {"projector", "language"}}
    for size, parts in wanted.items():
        experiment = overrides.load_experiment(folder / "llava_scenes.py", size)
        found = sources.shapes(experiment.init_from, size, folder)  # what each starts from fits into its model
        params = step.first_variables(experiment, found)["params"]
        assert params.keys() == {"vision", "projector", "language"}
        trained = trees.select(params, experiment.task.trainable)
        assert {path.split("/")[0] for path in trees.leaves(trained)} == parts
        assert found["params"].keys() == params.keys() - ({"projector"} if size == "small_align" else set())
    assert overrides.load_experiment(folder / "llava_scenes.py", "small_align").data.kinds == ("caption",)
    assert experiment.data.kinds == overrides.load_experiment(folder / "llava_scenes.py", "small").data.kinds


@pytest.mark.parametrize("size", ["paper_align", "paper_lora"])
def test_llavas_published_recipes_train_the_projector_and_at_most_products(size):
    experiment = overrides.load_experiment(Path("experiments") / "llava_scenes.py", size)
    trained = trees.leaves(trees.select(step.first_variables(experiment)["params"], experiment.task.trainable))
    products = {path for path in trained if not path.startswith("projector/")}
    assert len(trained) - len(products) == 4  # two layers
    if size == "paper_align":
        assert not products
        assert (experiment.optimizer.peak, experiment.batch_size) == (1e-3, 256)
    else:
        assert len(products) == 2 * 7  # query, key, value, out, gate, up, down
        assert all(path.startswith("language/layers/") for path in products)
        assert {x.shape[-1] for path, x in trained.items() if path.endswith("lora_a")} == {128}


@pytest.mark.parametrize("stem", STEMS)
def test_the_held_out_artist_is_read_only_at_the_end(stem):
    experiment = overrides.load_experiment(Path("experiments") / f"{stem}.py", "small")
    assert {one.split for one in experiment.evals} == {"validation"}
    assert {one.split for one in experiment.final_evals} == {"twemoji", "combinations"}
    with pytest.raises(ValueError, match="has no size 'nothing'"):
        overrides.load_experiment(Path("experiments") / f"{stem}.py", "nothing")
