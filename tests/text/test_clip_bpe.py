"""CLIP's tokenizer gives the ids of the two originals on 1,000 captions.

Golden: tests/goldens/tokenizer.npz, made by make_tokenizer.py from open_clip and transformers over the first 3,000
merges; the whole vocabulary of 49,408 is compared live under `parity`.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.text import clip_bpe

GOLDENS = Path(__file__).parents[1] / "goldens"
MERGES = GOLDENS / "clip_merges.txt.gz"


@pytest.fixture(scope="module")
def golden():
    arrays = dict(np.load(GOLDENS / "tokenizer.npz"))
    for name in ("captions", "cleaned"):
        arrays[name] = json.loads(arrays[name].tobytes())
    for name in ("openai", "hf"):
        ends = np.cumsum(arrays.pop(f"{name}_counts"))
        arrays[f"{name}_ids"] = [row.tolist() for row in np.split(arrays[f"{name}_ids"], ends[:-1])]
    assert len(set(arrays["captions"])) == len(arrays["openai_ids"]) == len(arrays["hf_ids"]) == 1000
    return arrays


@pytest.fixture(scope="module")
def tokenizer():
    return clip_bpe.load(MERGES, clean="hf")


@pytest.fixture
def hf_folder(tmp_path, tokenizer):
    """The truncated vocabulary as transformers stores it: vocab.json and merges.txt."""
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.core.get_vocab()), encoding="utf-8")
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1:]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    return tmp_path


def differing(texts, ours, theirs):
    return [(text, a, b) for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


def test_ids_equal_transformers_on_1000_captions(tokenizer, golden):
    assert differing(golden["captions"], tokenizer.encode(golden["captions"]), golden["hf_ids"]) == []


def test_ids_equal_open_clip_on_1000_cleaned_captions(tokenizer, golden):
    """Without ftfy: the original's cleaned text goes in. The cleaning itself is compared where ftfy is installed."""
    bare = clip_bpe.load(MERGES, clean="hf")
    bare.core.normalizer = None
    assert differing(golden["cleaned"], bare.encode(golden["cleaned"]), golden["openai_ids"]) == []


@pytest.mark.parity  # the cleaning needs ftfy
def test_ids_equal_open_clip_on_1000_captions(golden):
    openai = clip_bpe.load(MERGES, clean="openai")
    assert differing(golden["captions"], openai.encode(golden["captions"]), golden["openai_ids"]) == []
    rows = openai.rows(golden["captions"][-50:], 20)
    np.testing.assert_array_equal(rows["input_ids"], golden["openai_rows"])


def test_rows_are_padded_and_cut_as_transformers_does(tokenizer, golden):
    rows = tokenizer.rows(golden["captions"][-50:], 20)
    assert (golden["hf_mask"].sum(1) == 20).any()
    assert (golden["hf_mask"].sum(1) < 20).any()
    np.testing.assert_array_equal(rows["input_ids"], golden["hf_rows"])
    np.testing.assert_array_equal(rows["attention_mask"], golden["hf_mask"])


def test_the_special_ids_are_the_highest(tokenizer):
    assert tokenizer.vocab_size == 256 + 256 + 3000 + 2
    assert (tokenizer.start, tokenizer.end) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)


def test_decoding_undoes_encoding(tokenizer):
    text = "grinning cat with 9 lives , naïve 🐱 ."
    assert tokenizer.decode(tokenizer.rows([text], 60)["input_ids"][0]) == text


def test_a_folder_of_transformers_gives_the_same(tokenizer, hf_folder, golden):
    from_folder = clip_bpe.load(hf_folder, clean="hf")
    texts = golden["captions"][:200]
    assert from_folder.encode(texts) == tokenizer.encode(texts)
    tokenizer.core.save(str(hf_folder / "tokenizer.json"))
    (hf_folder / "vocab.json").unlink()
    assert clip_bpe.load(hf_folder, clean="hf").encode(texts) == tokenizer.encode(texts)


def test_old_tokenizer_files_write_merges_as_strings(tokenizer, tmp_path):
    model = json.loads(tokenizer.core.to_str())
    model["model"]["merges"] = [" ".join(pair) for pair in model["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(model), encoding="utf-8")
    assert clip_bpe.load(tmp_path, clean="hf").encode(["smiling cats"]) == tokenizer.encode(["smiling cats"])


def test_what_is_missing_is_named(tmp_path, hf_folder):
    with pytest.raises(FileNotFoundError, match="nowhere.gz"):
        clip_bpe.load(tmp_path / "nowhere.gz")
    (hf_folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
        clip_bpe.load(hf_folder)
    (hf_folder / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json, vocab\.json"):
        clip_bpe.load(hf_folder)
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "merges": []}}')
    with pytest.raises(ValueError, match="no CLIP vocabulary"):
        clip_bpe.load(tmp_path)
    with pytest.raises(ValueError, match="'openai' or 'hf'"):
        clip_bpe.load(MERGES, clean="ftfy")


def test_without_ftfy_openai_cleaning_is_an_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(ValueError, match="pip install ftfy"):
        clip_bpe.load(MERGES, clean="openai")


@pytest.mark.parity
def test_the_whole_vocabulary_equals_both_originals(golden):
    package = Path(importlib.util.find_spec("open_clip").origin).parent  # importing it would need torchvision
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", package / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    original = module.SimpleTokenizer()
    openai, hf = (clip_bpe.load(package / "bpe_simple_vocab_16e6.txt.gz", clean) for clean in ("openai", "hf"))
    assert (openai.vocab_size, openai.start, openai.end) == (49408, 49406, 49407)
    texts = golden["captions"]
    assert differing(texts, openai.encode(texts), [original.encode(text) for text in texts]) == []
    np.testing.assert_array_equal(openai.rows(texts, 77)["input_ids"], original(texts, 77).numpy())

    from transformers import CLIPTokenizer

    lines = gzip.decompress((package / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1:48895]]
    theirs = CLIPTokenizer(vocab=hf.core.get_vocab(), merges=merges)
    rows = theirs(texts, padding="max_length", truncation=True, max_length=77, return_tensors="np")
    for name, ours in hf.rows(texts, 77).items():
        np.testing.assert_array_equal(ours, rows[name])
