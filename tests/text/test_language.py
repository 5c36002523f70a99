"""Tokenizers out of a GGUF's metadata: against the rules that they stand for, spelled out."""

import random

import pytest
from tokenizers import pre_tokenizers

from mmjax.text import language
from mmjax.text.language import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = [
    "",
    " ",
    "a",
    "Hello  world\n\n  x",
    "I'LL don't",
    "12345 67",
    "naïve 🙂 Ünï",
    "<s>not special",
    "aab abab b a",
]


def byte_level(pre, merges=(), extra=(), **fields):
    tokens = [*ALPHABET, *("".join(pair.split(" ")) for pair in merges), *extra]
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": list(merges), **fields}
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def core_of(metadata):
    return language.from_gguf(metadata, "a.gguf").core


@pytest.mark.parametrize("pre", language.SPLITS)
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back(pre, text):
    core = core_of(byte_level(pre, ["H e", "Ġ Ġ"]))
    assert core.decode(core.encode(text).ids) == text


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["Ġ1234567", "Ġ", "ĠI", "'", "LL"]),  # its contractions are in lower case only
        ("smollm", ["Ġ", "1", "2", "3", "4", "5", "6", "7", "Ġ", "ĠI", "'", "LL"]),
        ("llama-bpe", ["Ġ", "123", "456", "7", "Ġ", "ĠI", "'LL"]),
    ],
)
def test_each_vocabulary_splits_in_its_own_way(pre, expected):
    found = core_of(byte_level(pre)).pre_tokenizer.pre_tokenize_str(" 1234567  I'LL")
    assert [piece for piece, _ in found] == expected


def test_llama_3_takes_whole_words_before_it_merges():
    metadata = byte_level("llama-bpe", ["a b"], extra=["abab"])
    assert core_of(metadata).encode("abab").tokens == ["abab"]
    assert core_of({**metadata, "tokenizer.ggml.pre": "gpt-2"}).encode("abab").tokens == ["ab", "ab"]


def test_control_tokens_are_special_and_user_tokens_are_whole():
    kinds = [NORMAL] * len(ALPHABET) + [CONTROL, USER_DEFINED]
    metadata = byte_level("gpt-2", extra=["<|end|>", "<tool>"], token_type=kinds)
    core = core_of(metadata)
    ids = core.encode("a<|end|><tool>").ids
    assert ids[1:] == [len(ALPHABET), len(ALPHABET) + 1]
    assert core.decode(ids) == "a<tool>"


@pytest.mark.parametrize(("given", "begins"), [({}, False), ({"add_bos_token": True}, True)])
def test_texts_begin_with_bos_where_the_file_says_so(given, begins):
    fields = {"token_type": [NORMAL] * len(ALPHABET) + [CONTROL], "bos_token_id": len(ALPHABET), **given}
    ids = language.from_gguf(byte_level("gpt-2", extra=["<s>"], **fields), "a.gguf").prompt("a")
    assert ids == ([len(ALPHABET)] if begins else []) + [ALPHABET.index("a")]


@pytest.mark.parametrize(("given", "begins"), [({}, True), ({"add_bos_token": False}, False)])
def test_llama_3s_texts_begin_with_bos_unless_told_not_to(given, begins):
    fields = {"token_type": [NORMAL] * len(ALPHABET) + [CONTROL], "bos_token_id": len(ALPHABET), **given}
    ids = language.from_gguf(byte_level("llama-bpe", extra=["<s>"], **fields), "a.gguf").prompt("a")
    assert ids[:-1] == ([len(ALPHABET)] if begins else [])


PIECES = [  # token, score: more frequent pieces have higher scores
    ("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{i:02X}>", 0.0) for i in range(256)),
    ("\u2581a", -1.0), ("ab", -2.0), ("aab", -2.5), ("ba", -3.0), ("\u2581aa", -3.5), ("abab", -4.0), ("bab", -5.0),
    ("\u2581", -10.0), ("a", -11.0), ("b", -12.0), ("c", -13.0),
]  # fmt: skip


def sentence_piece(**fields):
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(PIECES) - 259)]
    values = {
        "model": "llama", "tokens": [token for token, _ in PIECES], "scores": [score for _, score in PIECES],
        "token_type": kinds, "bos_token_id": 1, "eos_token_id": 2, **fields,
    }  # fmt: skip
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def by_rule(text: str) -> list[str]:
    """SentencePiece's BPE: of all neighbours, those whose union has the best score are merged, the leftmost first."""
    scores = dict(PIECES[259:])
    pieces = list(("\u2581" + text.replace(" ", "\u2581")) if text else "")
    while True:
        unions = [
            (scores.get(a + b, float("-inf")), -i) for i, (a, b) in enumerate(zip(pieces, pieces[1:], strict=False))
        ]
        best, at = max(unions, default=(float("-inf"), 0))
        if best == float("-inf"):
            break
        pieces[-at : 2 - at] = ["".join(pieces[-at : 2 - at])]
    return [t for piece in pieces for t in ([piece] if piece in scores else [f"<0x{b:02X}>" for b in piece.encode()])]


@pytest.mark.parametrize(
    "text", ["", "a", "aab", "abab aab b", "ababab bab aaab", "c aé b", "🙂a", "  aa  b", "abcab babab aabab"]
)
def test_sentence_piece_merges_by_score_and_falls_back_to_bytes(text):
    core = core_of(sentence_piece())
    assert core.encode(text, add_special_tokens=False).tokens == by_rule(text)
    assert core.decode(core.encode(text).ids) == text


def test_sentence_piece_merges_random_texts_as_the_rule_says():
    core, rng = core_of(sentence_piece()), random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("aabbc ", k=rng.randint(1, 20)))
        assert core.encode(text, add_special_tokens=False).tokens == by_rule(text), text


def test_sentence_piece_begins_with_bos_unless_told_not_to():
    assert core_of(sentence_piece()).encode("a").tokens == ["<s>", "\u2581a"]
    assert core_of(sentence_piece(add_bos_token=False)).encode("a").tokens == ["\u2581a"]
    assert core_of(sentence_piece(add_space_prefix=False)).encode("a").tokens == ["<s>", "a"]


def test_ends_are_those_of_text_and_of_turn():
    assert language.from_gguf(sentence_piece(eot_token_id=5), "a.gguf").stop_ids == (2, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert', supported are gpt2, llama"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre is 'tekken', supported are gpt-2, smollm, llama-bpe"),
        ({"token_type": [1, 1]}, "tokenizer.ggml.token_type has 2 entries for 256 tokens"),
        ({"eos_token_id": 999}, "tokenizer.ggml.eos_token_id is 999, but there are 256 tokens"),
    ],
)
def test_what_is_not_supported_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        language.from_gguf(byte_level(**{"pre": "gpt-2", **change}), "a.gguf")


@pytest.mark.parametrize("name", ["model", "tokens", "merges"])
def test_what_is_missing_is_named(name):
    metadata = byte_level("gpt-2")
    del metadata[f"tokenizer.ggml.{name}"]
    with pytest.raises(ValueError, match=rf"a\.gguf has no tokenizer\.ggml\.{name}, so it cannot read text"):
        language.from_gguf(metadata, "a.gguf")
