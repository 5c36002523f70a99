"""SEED on emoji at its tiny sizes, each from the last: ids, what draws them, and what reads and writes them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.data import emoji
from mmjax.nn.outputs import Request
from mmjax.train import loop, overrides, run_folder, sources, step

HOME = Path(__file__).parents[2]
BEFORE = (("clip_emoji", "tiny"), ("dinov2_emoji", "tiny"), ("kl_emoji", "tiny"))
CHAIN = (
    ("seed_emoji", "tiny_align"), ("seed_emoji", "tiny"), ("seed_decoder_emoji", "tiny"), ("seed_words_emoji", "tiny"),
)  # fmt: skip


def trained(stem: str, size: str, runs: Path, *changes: str):
    recipe = run_folder.Recipe(HOME / "experiments" / f"{stem}.py", size)
    experiment = overrides.apply(recipe.build(), list(changes))
    mesh = experiment.mesh.build(jax.devices()[:1])
    return experiment, loop.train(experiment, runs / f"{stem}-{size}", recipe=recipe, mesh=mesh)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for stem, size in BEFORE:
            trained(stem, size, home / "runs", "evals=()", "final_evals=()")
        yield {(stem, size): trained(stem, size, home / "runs") for stem, size in CHAIN}


@pytest.mark.train
def test_each_stage_keeps_what_it_starts_from_and_says_its_numbers(chain):
    metrics = {run: outcome.metrics for run, (_, outcome) in chain.items()}
    assert "twemoji/text_to_image_R@5" in metrics["seed_emoji", "tiny_align"]
    assert {"validation/image_cosine", "twemoji/perplexity"} <= metrics["seed_emoji", "tiny"].keys()
    assert {"twemoji/psnr", "twemoji/codes_used"} <= metrics["seed_decoder_emoji", "tiny"].keys()
    assert {"twemoji/name", "validation/frechet_a"} <= metrics["seed_words_emoji", "tiny"].keys()
    first, second, third, last = (outcome.state.variables for _, outcome in chain.values())
    same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))  # noqa: E731
    assert same(second["params"]["query_tokens"], first["params"]["query_tokens"])
    assert same(second["params"]["vision"]["layers"], first["params"]["vision"]["layers"])
    assert same(third["seed"]["params"], second["params"])
    assert same(last["decoder"]["params"], third["ema"])


@pytest.mark.train
def test_pictures_become_ids_and_ids_pictures_and_words(chain):
    image = np.full((40, 50, 3), 200, np.uint8)

    def ask(run, *texts, images=()):
        experiment, outcome = chain[run]
        variables = step.served(experiment.task.serve, outcome.state.variables)
        request = Request(texts, images)
        return experiment.sample(experiment.task.model, variables, request, experiment.data, jax.random.key(0))

    ids = ask(("seed_emoji", "tiny"), images=(image,)).text
    assert len(ids.split(": ")[1].split()) == 16
    assert ask(("seed_decoder_emoji", "tiny"), images=(image,)).pictures["rebuilt"].ndim == 3
    answer = ask(("seed_words_emoji", "tiny"), "fox", images=(image,))
    assert answer.text.startswith("picture 1:")
    assert answer.text.endswith("row 1: fox")
    assert answer.pictures["drawn"].ndim == 3
    with pytest.raises(ValueError, match="near it are"):
        ask(("seed_words_emoji", "tiny"), "foxx")


@pytest.mark.train
def test_rows_hold_names_before_pictures_and_behind_them(chain):
    experiment, outcome = chain["seed_words_emoji", "tiny"]
    batch = experiment.data.batches(8, 0)[0]
    rows = experiment.task.prepare(experiment.task.model, outcome.state.variables, batch, None, 0)
    tokens, tokenizer = experiment.sample.how.tokens, emoji.tokenizer()
    codes = (rows["input_ids"] >= tokens.words) & (rows["input_ids"] < tokens.words + tokens.codes)
    np.testing.assert_array_equal(codes.sum(1), 16)
    for n in range(8):
        ids, mask, spoken = (rows[name][n] for name in ("input_ids", "attention_mask", "spoken"))
        name = emoji.pack().names[batch["label"][n, 0]]
        text = tokenizer.decode([i for i in ids[mask & ~codes[n]] if i < tokens.words])
        assert name.lower().startswith(text)  # the vocabulary knows no capitals, and long names are cut
        assert (spoken & codes[n]).sum() == (16 if n < 4 else 0)  # the first half writes pictures


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["seed_emoji", "seed_decoder_emoji", "seed_words_emoji"])
def test_choices_are_made_on_validation_and_what_each_starts_from_fits(stem):
    for size in ("tiny", "small"):
        experiment = overrides.load_experiment(HOME / "experiments" / f"{stem}.py", size)
        assert {one.split for one in experiment.evals} == {"validation"}
        assert "twemoji" in {getattr(one, "split", None) for one in experiment.final_evals}
        found = sources.shapes(experiment.init_from, size, HOME / "experiments")
        assert "params" in step.first_variables(experiment, found)
