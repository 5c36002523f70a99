"""`mmjax sample` with a language model: a file or folder in, an answer on the terminal, a sentence for a mistake."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gguf", reason="needs the [gguf] extra")
pytest.importorskip("jinja2", reason="needs the [gguf] extra")

import gguf_files

from mmjax import cli, talk, weights
from mmjax.models import mamba
from mmjax.nn import sampling
from mmjax.text import language

ROOT = Path(__file__).parent.parent


def a_model(**changes):
    c = gguf_files.sizes(vocab_size=262, tied=True, **changes)
    return c, gguf_files.random_parameters(c, 0.3)


def a_file(path, change=gguf_files.add_vocabulary, **changes):
    c, params = a_model(**changes)
    gguf_files.write(path, c, gguf_files.tensors(c, params), change=change)
    return path


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory):
    return a_file(tmp_path_factory.mktemp("talk") / "chat.gguf", length=96)


@pytest.fixture(scope="module")
def base_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("talk") / "base.gguf"
    return a_file(path, lambda writer: gguf_files.add_vocabulary(writer, template=None))


def said(capsys, *arguments) -> str:
    capsys.readouterr()
    assert cli.main(["sample", "--weights", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def mistake(capsys, *arguments) -> str:
    capsys.readouterr()
    assert cli.main(["sample", "--weights", *map(str, arguments)]) == cli.MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("mmjax: error: ")
    assert error.count("\n") == 1
    return error


def test_the_answer_is_what_generate_writes_to_the_templates_text(chat_file, capsys):
    model, variables = weights.load_gguf(chat_file)
    core = weights.load_language(chat_file).core
    text = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    prompt = np.array([core.encode(text).ids], np.int32)
    expected = sampling.generate(model, variables, prompt, max_new_tokens=12).tokens[0]
    out = said(capsys, chat_file, "Hello", "--system", "Be kind", "--max-new-tokens", 12)
    # Bytes that never become a character: an open end is not written.
    assert out == core.decode(expected.tolist()).rstrip("\ufffd") + "\n"
    assert len(set(expected.tolist())) > 3


def test_a_model_without_a_template_goes_on_with_the_text(base_file, capsys):
    model, variables = weights.load_gguf(base_file)
    core = weights.load_language(base_file).core
    prompt = np.array([core.encode("Hello ").ids], np.int32)
    expected = sampling.generate(model, variables, prompt, max_new_tokens=5).tokens[0]
    assert said(capsys, base_file, "Hello ", "--max-new-tokens", 5) == f"Hello {core.decode(expected.tolist())}\n"


def test_it_stops_at_the_end_of_the_turn(tmp_path, capsys):
    """The model's only idea is the token that ends the turn."""
    c, params = a_model(length=96)
    table = params["embed"]["embedding"]
    params["layers"]["mlp"]["down"]["kernel"][:] = params["layers"]["attention"]["out"]["kernel"][:] = 0
    params["norm"]["scale"][:] = 1
    table[:] = np.abs(table)
    table[261] = 9
    gguf_files.write(tmp_path / "a.gguf", c, gguf_files.tensors(c, params), change=gguf_files.add_vocabulary)
    assert said(capsys, tmp_path / "a.gguf", "Hello") == "\n"


@pytest.mark.slow
def test_draws_depend_on_the_seed_and_every_option_is_taken(chat_file, capsys):
    options = [chat_file, "Hello", "--max-new-tokens", 30, "--temperature", 1.5, "--seed"]
    assert said(capsys, *options, 1) == said(capsys, *options, 1)
    assert len({said(capsys, *options, seed) for seed in range(3)}) > 1
    greedy = said(capsys, chat_file, "Hello", "--max-new-tokens", 30)
    for narrow in (["--top-k", 1], ["--top-p", 1e-6], ["--min-p", 1]):
        assert said(capsys, *options, 1, *narrow) == greedy
    assert said(capsys, chat_file, "Hello", "--max-new-tokens", 30, "--repetition-penalty", 5) != greedy


def test_several_texts_are_answered_in_turn(base_file, capsys):
    both = said(capsys, base_file, "He", "l", "--max-new-tokens", 4)
    assert both == said(capsys, base_file, "He", "--max-new-tokens", 4) + said(
        capsys, base_file, "l", "--max-new-tokens", 4
    )


def test_characters_of_several_tokens_come_whole(base_file):
    speech = weights.load_language(base_file)
    ids = speech.core.encode("ü🙂 Hello").ids
    assert len(ids) == 2 + 4 + 2
    assert list(talk.texts(speech, iter(ids))) == ["ü", "🙂", " ", "Hello"]


def test_an_answer_takes_what_the_context_leaves(base_file):
    model = weights.load_gguf(base_file)[0]
    assert model.config.length == 32
    assert talk.room(model, [0] * 30, None) == 2
    assert talk.room(model, [0] * 30, 7) == 7  # asked for: an error follows where it does not fit


def test_a_folder_of_the_hub_answers_too(base_file, tmp_path, capsys):
    model, variables = weights.load_gguf(base_file)
    speech = weights.load_language(base_file)
    weights.save_hf(tmp_path, model, variables)
    speech.core.save(str(tmp_path / "tokenizer.json"))
    options = ["Hello", "--max-new-tokens", 6]
    assert said(capsys, tmp_path, *options) == said(capsys, base_file, *options)
    (tmp_path / "tokenizer.json").unlink()
    assert "holds neither tokenizer.json" in mistake(capsys, tmp_path, "Hello")


@pytest.mark.slow
def test_a_mamba_answers_too(base_file, tmp_path, capsys):
    """Its state has no context to run out of; prompts are padded, which it must not notice."""
    model = mamba.Mamba(mamba.MambaConfig(262, width=16, depth=2, state=4, rank=3))
    variables = model.init(jax.random.key(0), np.zeros((1, 1), np.int32))
    variables = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), variables)
    core = weights.load_language(base_file).core
    weights.save_hf(tmp_path, model, variables)
    core.save(str(tmp_path / "tokenizer.json"))
    hot = sampling.Sampling(temperature=3.0)  # at random it says different things
    prompt = np.array([core.encode("Hello ").ids], np.int32)
    expected = sampling.generate(model, variables, prompt, max_new_tokens=9, sampling=hot, rng=jax.random.key(0))
    assert len(set(expected.tokens[0].tolist())) > 5
    shown = core.decode(expected.tokens[0].tolist()).rstrip("\ufffd")
    assert said(capsys, tmp_path, "Hello ", "--max-new-tokens", 9, "--temperature", 3) == f"Hello {shown}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give some text"),
        (["  "], "the prompt is empty"),
        (["Hello " * 30], "tokens, but the model's context is 32; shorten it"),
        (["Hello", "--max-new-tokens", "40"], "model's context is 32"),
        (["Hello", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["Hello", "--top-p", "2"], "top_p is 2.0"),
        (["Hello", "--system", "Be kind"], "no chat template"),
    ],
)
def test_a_mistake_is_one_sentence(base_file, capsys, arguments, message):
    assert message in mistake(capsys, base_file, *arguments)


def test_files_that_are_no_language_model_are_named(tmp_path, capsys):
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0")
    assert "a.gguf is cut short" in mistake(capsys, tmp_path / "a.gguf", "Hello")
    clip = ROOT / "tests" / "goldens" / "hf_clip"
    assert "give --image FILE too" in mistake(capsys, clip, "Hello")


def test_what_a_model_cannot_take_is_refused(base_file, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "sees no pictures; leave --image out" in mistake(capsys, base_file, "Hello", "--image", tmp_path / "a.png")
    clip = ROOT / "tests" / "goldens" / "hf_clip"
    options = "--image", tmp_path / "a.png", "--temperature", 1, "--top-k", 3
    assert "--temperature, --top-k cannot be given for" in mistake(capsys, clip, "Hello", *options)
    marian = ROOT / "tests" / "goldens" / "hf_marian"
    shutil.copytree(marian, tmp_path / "marian")
    language_file = weights.load_language(base_file).core
    language_file.save(str(tmp_path / "marian" / "tokenizer.json"))
    assert "Transformer, which does not go on with a text" in mistake(capsys, tmp_path / "marian", "Hello")


def test_a_tokenizer_larger_than_the_model_is_refused(base_file, tmp_path, capsys):
    model, variables = weights.load_gguf(base_file)
    core = weights.load_language(base_file).core
    core.add_tokens([f"<{i}>" for i in range(9)])
    weights.save_hf(tmp_path, model, variables)
    core.save(str(tmp_path / "tokenizer.json"))
    assert "the tokenizer has 271 ids, but the model's vocabulary holds 262" in mistake(capsys, tmp_path, "Hello")


class TestFolders:
    """What a folder says beside its tokenizer.json."""

    @pytest.fixture
    def folder(self, base_file, tmp_path):
        weights.load_language(base_file).core.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    def write(self, folder, name, **fields):
        (folder / name).write_text(json.dumps(fields), encoding="utf-8")

    def test_stop_ids_are_those_of_all_files(self, folder):
        self.write(folder, "tokenizer_config.json", eos_token={"content": "<|im_end|>"})
        self.write(folder, "generation_config.json", eos_token_id=[3, 4])
        self.write(folder, "config.json", eos_token_id=5)
        assert language.from_folder(folder).stop_ids == (3, 4, 5, 261)

    def test_a_template_lies_in_the_config_or_beside_it(self, folder):
        assert language.from_folder(folder).template is None
        self.write(folder, "tokenizer_config.json", chat_template="{{ bos_token }}old", bos_token="<|im_start|>")
        assert (
            language.from_folder(folder).prompt("Hello")
            == language.from_folder(folder).core.encode("<|im_start|>old").ids
        )
        (folder / "chat_template.jinja").write_text("new")
        assert language.from_folder(folder).prompt("Hello") == language.from_folder(folder).core.encode("new").ids

    def test_of_several_templates_the_default_is_taken(self, folder):
        several = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "plain"}]
        self.write(folder, "tokenizer_config.json", chat_template=several)
        assert language.from_folder(folder).prompt("Hello") == language.from_folder(folder).core.encode("plain").ids

    def test_a_broken_tokenizer_is_named(self, folder):
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
            language.from_folder(folder)
