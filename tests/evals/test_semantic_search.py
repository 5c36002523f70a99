"""Semantic search: vectors are the same however texts are batched, and the nearest names come first."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax import cli, weights
from mmjax.evals import semantic_search
from mmjax.models import bert
from mmjax.text import wordpiece

TEXTS = ["cat", "the cat sat on the mat with the dog and the cat", "dog", "a mat on the cat"]
CONFIG = bert.BERTConfig(64, 16, width=8, depth=1, num_heads=2, hidden=16)


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train(TEXTS * 3, 60)


@pytest.fixture(scope="module")
def encoder():
    model = bert.BERT(CONFIG)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8), int))
    return model, jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), variables)


@pytest.mark.slow
def test_vectors_do_not_depend_on_what_is_read_beside_them(encoder, tokenizer):
    vectors = semantic_search.embed(*encoder, tokenizer, TEXTS)
    assert vectors.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    model, variables = encoder
    for text, vector in zip(TEXTS, vectors, strict=True):
        row = tokenizer.rows([text])
        states = np.asarray(model.apply(variables, **row).last_hidden_state)[0]
        np.testing.assert_allclose(vector, states.mean(0) / np.linalg.norm(states.mean(0)), atol=1e-5)


def test_a_text_longer_than_the_model_is_cut(encoder, tokenizer):
    long, cut = semantic_search.embed(*encoder, tokenizer, ["cat " * 40, "cat " * 14])
    np.testing.assert_allclose(long, cut, atol=1e-6)


def test_the_nearest_come_first():
    names = np.eye(3, dtype=np.float32)
    best, cosines = semantic_search.nearest(np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]], np.float32), names, 2)
    np.testing.assert_array_equal(best, [[2, 0], [1, 0]])
    np.testing.assert_allclose(cosines, [[0.8, 0.6], [1.0, 0.0]])


def test_a_text_finds_itself(encoder, tokenizer):
    lines = semantic_search.search(*encoder, tokenizer, ["dog"], names=TEXTS, shown=2).text.splitlines()
    assert lines[:2] == ["dog", "  +1.000  dog"]
    assert len(lines) == 3


@pytest.fixture
def folder(encoder, tokenizer, tmp_path):
    weights.save_hf(tmp_path, *encoder)
    tokenizer.save(tmp_path / "vocab.txt")
    return tmp_path


def test_the_command_searches_names_with_a_folder_of_weights(folder, capsys, monkeypatch):
    monkeypatch.setattr(semantic_search.emoji.Pack, "names", ("cat", "dog", "mat"))
    assert cli.main(["sample", "--weights", str(folder), "dog"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["dog", "  +1.000  dog"]


def test_mistakes_are_one_sentence(folder, tokenizer, capsys):
    wordpiece.train([chr(n) * 3 for n in range(97, 123)] + [chr(n) for n in range(0x3B1, 0x3CA)], 200).save(
        folder / "vocab.txt"
    )
    assert cli.main(["sample", "--weights", str(folder), "dog"]) == 2
    assert "but the model 64; copy the vocab.txt that belongs to it" in capsys.readouterr().err
    (folder / "vocab.txt").unlink()
    assert cli.main(["sample", "--weights", str(folder), "dog"]) == 2
    assert "no WordPiece vocabulary in" in capsys.readouterr().err


def test_a_head_answers_instead(tmp_path, capsys):
    folder = Path(shutil.copytree("tests/goldens/hf_bert/masked_lm", tmp_path / "model"))
    words = [*wordpiece.SPECIAL, *"abcdefghijklmnopqr"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    assert cli.main(["sample", "--weights", str(folder), "a [MASK] b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a [MASK] b"
    assert lines[1].count("%") == 5
