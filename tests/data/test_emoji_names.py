"""Names to translate: pairs of one concept, rows that are shifted by one, and nothing held out in training."""

import numpy as np
import pytest

from mmjax.data import build_emoji_names_bpe, emoji, emoji_names, emoji_text, pipeline
from mmjax.models import transformer

DATA = emoji_names.EmojiNames()
TOKENIZER = DATA.tokenizer


def test_pairs_are_names_of_one_concept_in_every_language():
    pack = emoji.pack()
    assert {split: len(DATA.pairs(split)) for split in emoji_text.SPLITS} == {
        "train": 3 * 1253, "validation": 3 * 142, "concepts": 3 * 160,
    }  # fmt: skip
    for split in emoji_text.SPLITS:
        expected = [
            (language, pack.names[n].lower(), pack.languages[language][n]["name"].lower())
            for n in emoji_text.members(split) for language in ("de", "es", "fr")
        ]  # fmt: skip
        assert [tuple(" ".join(text.split()) for text in pair) for pair in expected] == list(
            map(tuple, DATA.pairs(split))
        )


def test_training_rows_never_hold_a_name_of_another_split():
    seen = set()
    for step in range(15):
        batch = DATA.batches(256, seed=0)[step]
        seen |= {TOKENIZER.decode(row[1:]) for row in batch["input_ids"]}
    names = {split: {pair.source for pair in DATA.pairs(split)} for split in emoji_text.SPLITS}
    assert seen == names["train"]
    assert not seen & (names["validation"] | names["concepts"])


def test_a_row_asks_for_its_language_and_is_answered_one_token_later():
    batch = DATA.batches(8, seed=3)[2]
    assert {name: x.shape for name, x in batch.items()} == {
        "input_ids": (8, 16), "attention_mask": (8, 16), "decoder_input_ids": (8, 26), "labels": (8, 26),
    }  # fmt: skip
    pairs = {(pair.language, pair.source): pair.target for pair in DATA.pairs("train")}
    tags = {TOKENIZER.core.token_to_id(f"<{language}>"): language for language in ("de", "es", "fr")}
    for ids, mask, written, labels in zip(*batch.values(), strict=True):
        target = pairs[tags[ids[0]], TOKENIZER.decode(ids[1:])]
        count = int(mask.sum())
        assert ids[count - 1] == TOKENIZER.end
        assert (ids[count:] == TOKENIZER.pad).all()
        length = int((labels != -100).sum())
        assert labels[length - 1] == TOKENIZER.end
        assert (labels[length:] == -100).all()
        assert TOKENIZER.decode(labels[: length - 1]) == target
        assert written[0] == TOKENIZER.start
        np.testing.assert_array_equal(written[1:length], labels[: length - 1])
        np.testing.assert_array_equal(
            transformer.shift_right(labels[None], TOKENIZER.start)[0, :length], written[:length]
        )


def test_nothing_is_cut():
    for split in emoji_text.SPLITS:
        rows = DATA.rows(DATA.pairs(split))
        assert [TOKENIZER.decode(ids[1:]) for ids in rows["input_ids"]] == [pair.source for pair in DATA.pairs(split)]
        labels = np.where(rows["labels"] == -100, TOKENIZER.pad, rows["labels"])
        assert [TOKENIZER.decode(ids) for ids in labels] == [pair.target for pair in DATA.pairs(split)]


def test_batches_depend_on_seed_and_number_only_and_processes_build_their_rows():
    a, b = DATA.batches(6, seed=1)[3], DATA.batches(6, seed=1)[3]
    part, other = DATA.batches(6, seed=1, rows=slice(2, 4))[3], DATA.batches(6, seed=2)[3]
    assert pipeline.spec(DATA, 6).keys() == a.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(a[name][2:4], part[name])
    assert (a["input_ids"] != other["input_ids"]).any()


def test_one_language_alone_and_one_that_is_not_there():
    assert {pair.language for pair in emoji_names.EmojiNames(languages=("fr",)).pairs("train")} == {"fr"}
    with pytest.raises(ValueError, match=r"languages must be some of de, es, fr, got \['it'\]"):
        emoji_names.EmojiNames(languages=("it",))


def test_a_text_that_spells_a_tag_does_not_ask_for_a_language():
    ids = DATA.sources(["fr"], ["<de> wolf"])["input_ids"][0]
    assert TOKENIZER.core.token_to_id("<de>") not in ids
    assert TOKENIZER.decode(ids[1:]) == "<de> wolf"


def test_the_vocabulary_is_what_its_script_builds_from_training_names(tmp_path):
    build_emoji_names_bpe.build().save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (emoji.ASSETS / "emoji_names_bpe.json").read_bytes()
    used = np.unique(np.concatenate([DATA.rows(DATA.pairs("train"))[name] for name in ("input_ids", "labels")], axis=1))
    pieces = np.arange(257, TOKENIZER.vocab_size)  # all but single bytes
    assert np.isin(pieces, [*used, TOKENIZER.start]).mean() > 0.95
