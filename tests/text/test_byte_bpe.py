"""Byte-level BPE from files: GPT-2's own ids (tests/goldens/make_gpt.py), and clear words about what is missing."""

import json
import shutil
from pathlib import Path

import pytest

from mmjax.text import byte_bpe, language

FOLDER = Path(__file__).parents[1] / "goldens" / "hf_gpt2"


@pytest.fixture(scope="module")
def stored():
    texts, ids, decoded = json.loads((FOLDER / "ids.json").read_text())
    return list(zip(texts, ids, decoded, strict=True))


@pytest.mark.parametrize("form", ["two files", "one file"])
def test_ids_and_texts_are_gpt_2s(stored, form, tmp_path):
    core = byte_bpe.load(FOLDER)
    if form == "one file":
        core.save(str(tmp_path / "tokenizer.json"))
        core = byte_bpe.load(tmp_path)
    assert len(stored) == 13
    assert sum(len(ids) for _, ids, _ in stored) > 50
    for text, ids, decoded in stored:
        assert core.encode(text).ids == ids, text
        assert core.decode(ids, skip_special_tokens=False) == decoded == text


def test_a_folder_of_the_hub_without_tokenizer_json_can_be_read():
    found = language.from_folder(FOLDER)
    assert found.core.encode("Hello").ids == byte_bpe.load(FOLDER).encode("Hello").ids
    assert found.stop_ids == (18,)  # of its config


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
        byte_bpe.load(tmp_path)
    shutil.copy(FOLDER / "merges.txt", tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"vocab\.json or .*merges\.txt is not a tokenizer"):
        byte_bpe.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        byte_bpe.load(tmp_path)
