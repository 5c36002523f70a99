"""WordPiece gives the ids of transformers' BertTokenizer on 1,000 texts (goldens/make_bert.py), and makes rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.text import wordpiece

GOLDEN = Path(__file__).parents[1] / "goldens" / "bert_tokens.npz"


@pytest.fixture(scope="module")
def golden():
    arrays = dict(np.load(GOLDEN))
    arrays["texts"] = json.loads(arrays["texts"].tobytes())
    arrays["vocab"] = arrays["vocab"].tobytes().decode()
    assert len(arrays["texts"]) == 1000
    return arrays


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text(golden["vocab"] + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return wordpiece.load(folder)


def expected(golden: dict, name: str) -> list[list[int]]:
    return [row.tolist() for row in np.split(golden[f"{name}_ids"], np.cumsum(golden[f"{name}_counts"])[:-1])]


def found(tokenizer: wordpiece.Tokenizer, texts: list[str]) -> list[list[int]]:
    rows = tokenizer.rows(texts)
    return [ids[mask].tolist() for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True)]


def test_ids_equal_transformers(golden, tokenizer):
    for text, ours, theirs in zip(
        golden["texts"], found(tokenizer, golden["texts"]), expected(golden, "uncased"), strict=True
    ):
        assert ours == theirs, text


def test_ids_of_a_cased_model_equal_transformers(golden, folder, tmp_path):
    (tmp_path / "vocab.txt").write_text(golden["vocab"], encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = found(wordpiece.load(tmp_path), golden["texts"])
    assert cased == expected(golden, "cased")
    assert cased != expected(golden, "uncased")


def test_pairs_equal_transformers(golden, tokenizer):
    rows = tokenizer.rows([golden["texts"][5]], second=[golden["texts"][6]])
    assert rows["input_ids"][0].tolist() == golden["pair_ids"].tolist()
    assert rows["token_type_ids"][0].tolist() == golden["pair_types"].tolist()
    assert rows["attention_mask"].all()


@pytest.mark.parametrize("lower", [True, False])
def test_tokenizer_json_says_the_same_as_vocab_txt(golden, tokenizer, tmp_path, lower):
    core = json.loads(tokenizer.core.to_str())
    core["normalizer"]["lowercase"] = lower
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    assert found(wordpiece.load(tmp_path), golden["texts"]) == expected(golden, "uncased" if lower else "cased")


def test_a_row_is_cut_to_its_length_and_keeps_its_ends(tokenizer):
    whole = tokenizer.rows(["the cat and the dog and the cow"])
    cut = tokenizer.rows(["the cat and the dog and the cow", "the"], 6)
    assert whole["input_ids"].shape[1] > 6
    assert cut["input_ids"][0].tolist() == [*whole["input_ids"][0, :5], tokenizer.sep]
    assert cut["input_ids"][1, 3:].tolist() == [tokenizer.pad] * 3
    assert cut["attention_mask"].sum(1).tolist() == [6, 3]
    assert {name: x.dtype for name, x in cut.items()} == {
        "input_ids": np.int32, "attention_mask": bool, "token_type_ids": np.int32,
    }  # fmt: skip


def test_the_longer_of_two_texts_is_cut(tokenizer):
    row = tokenizer.rows(["one two three four five six"], 8, second=["red blue"])
    words = tokenizer.tokens(row["input_ids"][0])
    assert words == ["[CLS]", "one", "two", "three", "[SEP]", "red", "blue", "[SEP]"]
    assert row["token_type_ids"][0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_words_are_found_at_their_first_piece(tokenizer):
    rows = tokenizer.word_rows([["the", "unbelievableness", "is", "here!"], ["a"]], 9)
    tokens = tokenizer.tokens(rows["input_ids"][0])
    assert [tokens[i] for i in np.flatnonzero(rows["words"][0] >= 0)][0] == "the"
    assert rows["words"][0].tolist().count(1) == 1
    first = int(np.flatnonzero(rows["words"][0] == 1)[0])
    assert tokens[first + 1].startswith("##")
    assert rows["words"][0, first + 1] == -1
    assert rows["words"][1].tolist() == [-1, 0, *[-1] * 7]


def test_decoding_joins_pieces_and_leaves_out_special_tokens(tokenizer):
    ids = tokenizer.rows(["an unbelievableness"])["input_ids"][0]
    assert tokenizer.decode(ids) == "an unbelievableness"


def test_a_trained_vocabulary_reads_its_texts_without_unknown_words_and_is_saved(tmp_path):
    texts = ["the cat sat", "the cats sit", "a hat for the cat"] * 3
    trained = wordpiece.train(texts, 60)
    assert (trained.pad, trained.unknown, trained.cls, trained.sep, trained.mask) == (0, 1, 2, 3, 4)
    assert not (trained.rows(texts)["input_ids"] == trained.unknown).any()
    trained.save(tmp_path / "vocab.txt")
    again = wordpiece.load(tmp_path / "vocab.txt")
    assert again.vocab_size == trained.vocab_size <= 60
    np.testing.assert_array_equal(again.rows(texts)["input_ids"], trained.rows(texts)["input_ids"])


def test_mistakes_are_one_sentence(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no WordPiece vocabulary in .*: expected vocab\.txt or tokenizer\.js"):
        wordpiece.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no WordPiece vocabulary at .*nowhere"):
        wordpiece.load(tmp_path / "nowhere")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    with pytest.raises(ValueError, match=r"is no vocabulary of BERT: it has no \[MASK\]"):
        wordpiece.load(tmp_path)
    with pytest.raises(ValueError, match="put it in a list"):
        tokenizer.rows("the cat")
    with pytest.raises(ValueError, match="holds 3 special tokens, got length=2"):
        tokenizer.rows(["a"], 2, second=["b"])
