"""Images as tokens at their tiny sizes: codecs, then generators that look through them; and what all sizes keep to."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _pictures
from mmjax.data import pipeline
from mmjax.models import autoregressive as ar
from mmjax.models import mar
from mmjax.nn.outputs import Request
from mmjax.parallel import flops
from mmjax.train import loop, overrides, run_folder, sources, step

HOME = Path(__file__).parents[2]
CODECS = ("kl_emoji", "vqgan_emoji", "var_tokenizer_emoji")
GENERATORS = ("autoregressive_emoji", "var_emoji", "mar_emoji", "frequency_emoji")


def load(stem: str, size: str):
    return overrides.load_experiment(HOME / "experiments" / f"{stem}.py", size)


def trained(stem: str, runs: Path, size: str = "tiny", **changes):
    recipe = run_folder.Recipe(HOME / "experiments" / f"{stem}.py", size)
    experiment = overrides.apply(recipe.build(), [f"{name}={value}" for name, value in changes.items()])
    mesh = experiment.mesh.build(jax.devices()[:1])
    return experiment, loop.train(experiment, runs / f"{stem}-{size}", recipe=recipe, mesh=mesh)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield {stem: trained(stem, home / "runs") for stem in CODECS}, home


@pytest.mark.train
@pytest.mark.parametrize("stem", CODECS)
def test_codecs_say_how_close_pictures_are_that_they_never_saw(codecs, stem):
    experiment, outcome = codecs[0][stem]
    assert {"validation/psnr", "twemoji/psnr", "twemoji/ssim"} <= outcome.metrics.keys()
    assert ("twemoji/codes_used" in outcome.metrics) == (stem != "kl_emoji")
    image = np.full((40, 50, 3), 200, np.uint8)
    answer = experiment.sample(
        experiment.task.model, outcome.state.variables, Request((), (image,)), experiment.data, jax.random.key(0)
    )
    assert "dB" in answer.text
    assert answer.pictures["rebuilt"].ndim == 3


@pytest.mark.train
@pytest.mark.parametrize("stem", CODECS[1:])
def test_codes_begin_in_the_autoencoders_latents(codecs, stem):
    """Before any step, what is encoded are its means, and what is decoded from them are its pictures."""
    (source, outcome), experiment = codecs[0]["kl_emoji"], load(stem, "tiny")
    kl = outcome.state.variables["params"]
    images, _ = experiment.data.drawings("validation")
    images, model = images[:4], experiment.task.model
    batch = {"images": images, "label": None}
    variables = experiment.task.init(model, jax.random.key(0), batch, {"kl": kl})
    encode = source.task.model.apply({"params": kl}, images, method="posterior").mean
    np.testing.assert_allclose(model.apply(variables, images, method="latents"), encode, atol=1e-4)
    if stem == "vqgan_emoji":
        x = model.apply(variables, encode, method=lambda model, z: model.decoder(model.from_code(z)))
        made = model.apply(variables, x, method="draw")
    else:
        made = model.apply(variables, encode, method=lambda model, z: model.decoder(z))
    np.testing.assert_allclose(made, source.task.model.apply({"params": kl}, images).images, atol=1e-4)
    codes = variables["codebook"]["quantizer"]["state"]["codes"]
    near = np.square(np.asarray(encode)[..., None, :] - np.asarray(codes)).sum(-1).min(-1)
    assert near.mean() < np.square(encode).sum(-1).mean()


@pytest.fixture(scope="module")
def generators(codecs):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(codecs[1])
        yield {stem: trained(stem, codecs[1] / "runs") for stem in GENERATORS}


@pytest.mark.train
@pytest.mark.parametrize("stem", GENERATORS)
def test_generators_draw_what_is_asked_for_and_say_their_numbers(codecs, generators, stem):
    experiment, outcome = generators[stem]
    assert {"validation/loss", "twemoji/frechet_a", "train/coverage_b"} <= outcome.metrics.keys()
    if stem == "autoregressive_emoji":
        tokenizer, wanted = (run.state.variables for run in (outcome, codecs[0]["vqgan_emoji"][1]))
        assert jax.tree.all(jax.tree.map(np.array_equal, tokenizer["tokenizer"], wanted))  # it stays as it is
    served = {**outcome.state.variables, "params": outcome.state.variables["ema"]}
    request = Request(("fox by noto", ""))
    answer = experiment.sample(experiment.task.model, served, request, experiment.data, jax.random.key(0))
    assert answer.text == "row 1: fox by noto\nrow 2: anything"
    assert answer.pictures["drawn"].ndim == 3


@pytest.mark.train
def test_the_study_says_what_a_picture_costs(codecs, generators):
    found = _pictures.measure(codecs[1] / "runs", "tiny")
    assert set(found) == {f"{stem}-tiny" for stem in GENERATORS}
    calls = {row: (one.metrics["calls"], one.metrics["head_calls"]) for row, one in found.items()}
    assert calls["autoregressive_emoji-tiny"] == (64, 0)
    assert calls["var_emoji-tiny"] == (6, 0)
    assert calls["mar_emoji-tiny"] == (4, 16)
    assert calls["frequency_emoji-tiny"] == (8, 0)
    assert all(one.metrics["picture_gflop"] > 0 for one in found.values())
    with pytest.raises(FileNotFoundError, match="_chapters pictures"):
        _pictures.measure(codecs[1], "tiny")


@pytest.mark.parametrize("stem", [*CODECS, *GENERATORS])
def test_choices_are_made_on_validation_and_the_rest_is_read_once(stem):
    experiment = load(stem, "small")
    split = lambda one: getattr(one, "split", None) or one.reference  # noqa: E731
    assert {split(one) for one in experiment.evals} == {"validation"}
    assert "twemoji" in {split(one) for one in experiment.final_evals}


def test_the_ways_differ_in_one_thing_each():
    """Figure 3: eight ways of three choices, with about as many parameters."""
    ways, counts = set(), []
    for size in ("small", "small_random_causal", "small_raster_sets", "small_sets", "small_mar", "small_mar_raster",
                 "small_mar_causal", "small_mar_raster_causal"):  # fmt: skip
        experiment = load("autoregressive_emoji", size)
        config = experiment.task.model.config
        ways.add((config.head.func, config.read, config.order))
        shape = (2, 64) if config.head.func is ar.Codes else (2, 64, 8)
        tokens = np.zeros(shape, int if config.head.func is ar.Codes else np.float32)
        label = np.zeros((2, 3), int)
        shapes = jax.eval_shape(experiment.task.model.init, jax.random.key(0), tokens, label)
        counts.append(sum(x.size for x in jax.tree.leaves(shapes)))
        draw = experiment.final_evals[0].draw
        assert draw.steps == (64 if config.read is ar.Causal else 16)
    assert len(ways) == 8
    assert max(counts) < 1.03 * min(counts)


@pytest.mark.slow
def test_all_cost_as_many_operations_to_train_and_have_as_many_parameters():
    runs = {
        "autoregressive_emoji": ("small", "small_sets", "small_mar", "small_mar_raster_causal"),
        "var_emoji": ("small",), "mar_emoji": ("small",),
        "frequency_emoji": ("small", "small_reversed", "small_values", "small_cosines"),
    }  # fmt: skip
    costs, counts = {}, {}
    for stem, sizes in runs.items():
        for size in sizes:
            experiment = load(stem, size)
            variables = step.first_variables(
                experiment, sources.shapes(experiment.init_from, size, HOME / "experiments")
            )

            def loss(params, variables, batch, experiment=experiment):
                return experiment.task.loss(
                    experiment.task.model, {**variables, "params": params}, batch, jax.random.key(0), 0
                )[0]

            batch = pipeline.spec(experiment.data, experiment.batch_size)
            traced = jax.jit(jax.grad(loss)).trace(variables["params"], variables, batch)
            costs[stem, size] = flops.count(traced.jaxpr) * experiment.steps
            counts[stem, size] = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert max(costs.values()) < 1.02 * min(costs.values())
    assert max(counts.values()) < 1.05 * min(counts.values())


def test_published_recipes():
    """VAR's README and arg_util; MAR's appendix B."""
    experiment = load("var_emoji", "paper")
    assert experiment.task.model.config.depth == 30
    assert experiment.optimizer.peak == pytest.approx(8e-5 * experiment.batch_size / 256)
    assert (experiment.optimizer.b2, experiment.optimizer.weight_decay, experiment.optimizer.clip) == (0.95, 0.05, 2)
    experiment = load("mar_emoji", "paper")
    assert experiment.task.model.config == mar.mar_h()
    assert (experiment.optimizer.peak, experiment.optimizer.weight_decay, experiment.batch_size) == (8e-4, 0.02, 2_048)
