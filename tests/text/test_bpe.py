"""A vocabulary trained on the captions at hand: deterministic, without unknown text, and its rows fit CLIP."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.text import bpe

TEXTS = [f"a {colour} {animal} in the {place}" for colour in ("red", "blue", "grey")
         for animal in ("cat", "dog", "zebra") for place in ("garden", "house")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(TEXTS, 320)


def test_frequent_words_are_one_id(tokenizer):
    assert [len(ids) for ids in tokenizer.encode(["cat", "the garden", "a red dog"])] == [1, 2, 3]


def test_case_and_spaces_make_no_difference(tokenizer):
    first, second = tokenizer.encode(["a red  CAT\n", " A Red cat"])
    assert first == second


def test_a_row_is_start_ids_end_padding(tokenizer):
    rows = tokenizer.rows(["red cat", ""], 6)
    red, cat = tokenizer.encode(["red cat"])[0]
    expected = [[tokenizer.start, red, cat, tokenizer.end, 0, 0], [tokenizer.start, tokenizer.end, 0, 0, 0, 0]]
    np.testing.assert_array_equal(rows["input_ids"], expected)
    np.testing.assert_array_equal(rows["attention_mask"], np.array(expected) != 0)
    assert rows["input_ids"].dtype == np.int32
    assert rows["attention_mask"].dtype == bool


def test_a_text_cannot_hold_special_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "bpe.json")
    for one in (tokenizer, bpe.load(tmp_path / "bpe.json")):
        (ids,) = one.encode(["a <end> b <start> <pad>"])
        assert not {one.pad, one.start, one.end} & set(ids)


def test_a_long_text_is_cut_and_keeps_its_end(tokenizer):
    row = tokenizer.rows(["a red cat " * 10], 7)["input_ids"][0]
    assert row[-1] == tokenizer.end
    np.testing.assert_array_equal(row[1:-1], tokenizer.encode(["a red cat " * 10])[0][:5])


def test_the_end_is_the_highest_id_and_padding_the_lowest(tokenizer):
    assert (tokenizer.pad, tokenizer.start, tokenizer.end) == (0, tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_any_text_comes_back_in_lower_case(text):
    import unicodedata

    tokenizer = bpe.train(TEXTS, 300)
    plain = "".join(c for c in text if not unicodedata.category(c).startswith("C"))
    back = tokenizer.decode(tokenizer.rows([plain], 200)["input_ids"][0])
    lowered = "".join(c.lower() for c in unicodedata.normalize("NFC", plain))
    assert back.split() == lowered.split()


def test_saving_and_loading_changes_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "bpe.json")
    loaded = bpe.load(tmp_path / "bpe.json")
    assert loaded.vocab_size == tokenizer.vocab_size
    texts = [*TEXTS, "Quite other words: 42!"]
    for name, rows in tokenizer.rows(texts, 30).items():
        np.testing.assert_array_equal(loaded.rows(texts, 30)[name], rows)


def test_training_is_the_same_in_another_process(tokenizer):
    code = f"from mmjax.text import bpe; print(hash(0), bpe.train({TEXTS!r}, 320).core.to_str())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=None)
    assert out.stdout == f"0 {tokenizer.core.to_str()}\n"


def test_few_texts_give_fewer_ids():
    assert bpe.train(["ab ab"], 1000).vocab_size < 300


def test_bad_input_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="at least 259"):
        bpe.train(TEXTS, 100)
    with pytest.raises(ValueError, match="length=1"):
        tokenizer.rows(["cat"], 1)
    with pytest.raises(ValueError, match="put it in a list"):
        tokenizer.rows("cat", 8)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        bpe.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json"):
        bpe.load(tmp_path / "bad.json")
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match="<pad>, <start>, <end>"):
        bpe.load(tmp_path / "other.json")


def test_the_pack_s_vocabulary_is_what_its_script_makes(tmp_path):
    from mmjax.data import build_emoji_bpe

    build_emoji_bpe.build().save(tmp_path / "again.json")
    committed = build_emoji_bpe.ASSETS / "emoji_bpe.json"
    assert (tmp_path / "again.json").read_bytes() == committed.read_bytes()
    assert bpe.load(committed).vocab_size == 2048
