"""The pack's texts: splits that share no concept, sentences that follow or not, tags at the words they belong to."""

import numpy as np
import pytest

from mmjax.data import build_emoji_wordpiece, emoji, emoji_text, pipeline

CONCEPTS = emoji.pack().concepts
DATA = (emoji_text.SentencePairs(), emoji_text.Names(), emoji_text.Mentions())


def test_splits_share_no_concept_and_hold_out_those_of_the_pictures():
    members = {split: set(emoji_text.members(split).tolist()) for split in emoji_text.SPLITS}
    assert {split: len(rows) for split, rows in members.items()} == {"train": 1253, "validation": 142, "concepts": 160}
    assert set.union(*members.values()) == set(range(len(CONCEPTS)))
    drawn = {split: set(emoji.pack().split(split)[1].tolist()) for split in ("train", "twemoji_concepts")}
    assert members["concepts"] >= drawn["twemoji_concepts"]
    assert not members["concepts"] & drawn["train"]
    with pytest.raises(ValueError, match="no split 'test' of the pack's texts"):
        emoji_text.members("test")


@pytest.mark.parametrize("data", DATA, ids=lambda data: type(data).__name__)
def test_batches_depend_on_seed_and_number_only_and_processes_build_their_rows(data):
    a, b = data.batches(6, seed=1)[3], data.batches(6, seed=1)[3]
    part, other = data.batches(6, seed=1, rows=slice(2, 4))[3], data.batches(6, seed=2)[3]
    assert pipeline.spec(data, 6).keys() == a.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(a[name][2:4], part[name])
    assert (a["input_ids"] != other["input_ids"]).any()


def test_training_rows_never_hold_a_name_of_another_split():
    seen = set()
    for step in range(20):
        batch = DATA[1].batches(64, seed=0)[step]
        seen |= {DATA[1].tokenizer.decode(row) for row in batch["input_ids"]}
    train = {DATA[1].tokenizer.decode(row) for row in DATA[1].examples("train")["input_ids"]}
    assert seen == train
    assert len(train) > 1200


def test_sentences_of_a_share_are_of_fewer_concepts_and_the_same_as_of_the_drawings():
    few, all_rows = (emoji_text.Sentences(share=share).batches(400, seed=0)[0]["input_ids"] for share in (0.25, 1.0))
    colon = emoji_text.vocabulary("").core.token_to_id(":")
    names = [{tuple(row[: list(row).index(colon)]) for row in rows.tolist()} for rows in (few, all_rows)]
    assert 0.2 * 1253 < len(names[0]) < 0.3 * 1253  # a batch of 400 holds each of them
    assert len(names[1]) > 390
    quarter, sixteenth = (emoji.among(np.arange(1555), share) for share in (1 / 4, 1 / 16))
    assert sixteenth.any()
    assert not (sixteenth & ~quarter).any()
    assert emoji.among(np.arange(1555), 1.0).all()
    mine = emoji_text.members("train")[quarter[emoji_text.members("train")]]
    wanted = emoji_text.Sentences().tokenize([f"{emoji.pack().names[n]}:" for n in mine])["input_ids"]
    assert names[0] == {tuple(row[: list(row).index(colon)]) for row in wanted.tolist()}


def test_sentences_keep_all_words_but_of_the_longest():
    texts = emoji_text.Sentences().texts("validation")
    assert texts.keys() == {"input_ids", "attention_mask"}
    cut = (texts["attention_mask"].all(1)).mean()
    assert 0 < cut < 0.1


def test_half_of_the_second_sentences_follow_and_the_others_are_of_another_subgroup():
    data = emoji_text.SentencePairs(length=200)  # nothing is cut
    by_name = {_words(concept.name): concept for concept in CONCEPTS}
    train = emoji_text.members("train")
    follows = []
    for step in range(5):
        batch = data.batches(64, seed=0)[step]
        for ids, types, label in zip(
            batch["input_ids"], batch["token_type_ids"], batch["next_sentence_label"], strict=True
        ):
            split = int(np.argmax(ids == data.tokenizer.sep)) + 1
            assert (types[:split] == 0).all()
            first, second = (data.tokenizer.decode(part) for part in (ids[:split], ids[split:]))
            # Names and keywords hold colons too ("man: beard", "6:30").
            names = [max((x for x in by_name if text.startswith(f"{x} :")), key=len) for text in (first, second)]
            a, b = (by_name[name] for name in names)
            if label == 0:
                here = int(np.flatnonzero(train == CONCEPTS.index(a))[0])
                assert CONCEPTS[train[here + 1]] == b
                assert a.subgroup == b.subgroup
            else:
                assert a.subgroup != b.subgroup
            follows.append(label == 0)
    assert 0.4 < np.mean(follows) < 0.6


def _words(name: str) -> str:
    """A name as the tokenizer gives it back."""
    tokenizer = DATA[0].tokenizer
    return tokenizer.decode(tokenizer.rows([name])["input_ids"][0])


def test_names_carry_their_subgroup():
    examples = DATA[1].examples("concepts")
    for n, label in zip(emoji_text.members("concepts"), examples["labels"], strict=True):
        assert DATA[1].labels[label] == CONCEPTS[n].subgroup


def test_tags_begin_and_go_on_at_first_pieces_of_mentions():
    data = DATA[2]
    assert len(data.labels) == 17
    text, tags = data._tagged(4, np.array([CONCEPTS.index(_named("fox")), CONCEPTS.index(_named("red apple")), 0]))
    assert text == ["a", "fox", "next", "to", "a", "red", "apple"]
    assert [data.labels[tag] for tag in tags] == [
        "O", "B-Animals & Nature", "O", "O", "O", "B-Food & Drink", "I-Food & Drink",
    ]  # fmt: skip
    batch = data.batches(32, seed=0)[0]
    tokens = [data.tokenizer.tokens(row) for row in batch["input_ids"]]
    for row, labels in zip(tokens, batch["labels"], strict=True):
        for token, label in zip(row, labels, strict=True):
            assert (label == -100) == (token in ("[CLS]", "[SEP]", "[PAD]") or token.startswith("##")) or label == -100
        assert (labels > 0).any()


def _named(name: str) -> emoji.Concept:
    return next(concept for concept in CONCEPTS if concept.name == name)


def test_the_vocabulary_is_what_its_script_builds(tmp_path):
    build_emoji_wordpiece.build().save(tmp_path / "again.txt")
    committed = emoji.ASSETS / "emoji_wordpiece.txt"
    assert (tmp_path / "again.txt").read_bytes() == committed.read_bytes()


def test_the_vocabulary_knows_every_training_word():
    for data in DATA:
        for split in emoji_text.SPLITS:
            examples = data.examples(split)
            assert np.mean(examples["input_ids"] == data.tokenizer.unknown) == 0, split
            assert (examples["attention_mask"].sum(1) < data.length).mean() > 0.9  # little is cut
