"""Questions about the pack: who is right, what is spoken, and that held-out concepts stay out."""

import numpy as np
import pytest

from mmjax.data import docs, emoji, emoji_questions
from mmjax.data.emoji_questions import EmojiChat, EmojiPreferences, EmojiPrompts, Question


def test_held_out_concepts_are_asked_about_in_no_training_batch_and_described_in_no_document():
    held_out = set(emoji.pack().split("concepts")[1].tolist())
    asked = {split: {one.concept for one in emoji_questions.questions(split)} for split in ("train", "held_out")}
    assert asked["held_out"] == held_out
    assert not asked["train"] & held_out
    codes = {f"emoji/{emoji.pack().concepts[n].code}" for n in held_out}
    assert not codes & docs.documents("emoji").keys()
    assert len(docs.documents("emoji")) == len(emoji.pack().concepts) - len(held_out)


def test_an_answer_is_judged_by_what_it_says_and_then_by_how():
    question = Question(0, 0, ("Animals & Nature",))
    wordy = [form.format("Animals & Nature") for form in emoji_questions.WORDY]
    assert emoji_questions.quality(question, " Animals & Nature") == 1
    assert [emoji_questions.quality(question, text) for text in wordy] == [0.5] * len(wordy)
    for text in ("Objects", emoji_questions.WORDY[0].format("Objects"), "Animals & Nature or Objects", ""):
        assert emoji_questions.quality(question, text) == 0


def test_wrong_answers_are_wrong_and_of_the_same_kind():
    for question in emoji_questions.questions("train")[:300]:
        for draw in (0.0, 0.5, 0.999):
            answer = emoji_questions.wrong(question, draw)
            assert not emoji_questions.is_right(question, answer)
            assert answer in emoji_questions.all_answers()[question.kind]


def test_the_assistant_speaks_its_words_and_the_end_of_its_turn():
    core = docs.tokenizer()
    batch = EmojiChat(wordy=0).batches(8, 0)[0]
    for ids, spoken, mask in zip(batch["input_ids"], batch["spoken"], batch["attention_mask"], strict=True):
        said = core.decode(ids[spoken].tolist(), skip_special_tokens=False).split(docs.TURN_END)
        assert len(said) == 3  # two answers, each with its end
        answers = {answer for kind in emoji_questions.all_answers() for answer in kind}
        assert set(said[:2]) <= answers
        assert not said[2]
        assert mask[spoken].all()


def test_the_longest_conversation_fits_and_a_longer_one_is_refused():
    def tokens(question: Question, form: int, answer: str) -> int:
        rows = emoji_questions.conversations([emoji_questions.messages(question.text(form), answer)], 256)
        return int(rows["attention_mask"].sum())

    wordiest, count = max(emoji_questions.WORDY, key=len), lambda text: len(docs.tokenizer().encode(text).ids)
    longest = [max(answers, key=count) for answers in emoji_questions.all_answers()]
    asked = sorted(emoji_questions.questions("train"), key=lambda one: -count(one.text(0)))[:60]
    needed = max(tokens(one, form, wordiest.format(longest[one.kind])) for one in asked for form in range(4))
    assert needed <= 72 <= EmojiPreferences(length=72).length
    assert 2 * needed <= EmojiChat().length
    with pytest.raises(ValueError, match=r"a conversation has \d+ tokens, and at most 20 fit; make data.length larger"):
        EmojiChat(length=20).batches(4, 0)[0]


def test_a_question_longer_than_its_place_is_refused():
    with pytest.raises(ValueError, match=r"a text has \d+ tokens, and at most 44 fit; shorten it"):
        EmojiPrompts().tokenize(["Please, " * 50])


def test_every_turn_of_a_demonstration_ends():
    end = docs.tokenizer().token_to_id(docs.TURN_END)
    for step in range(4):
        batch = EmojiChat().batches(64, 0)[step]
        assert ((batch["input_ids"] == end) & batch["spoken"]).sum(1).tolist() == [2] * 64


def test_prompts_end_where_the_assistant_is_to_speak_and_none_is_cut():
    data, head = EmojiPrompts(), docs.TURN + "assistant\n"
    for split in ("train", "held_out"):
        asked, prompts = data.asked(split)
        assert len(asked) == len(prompts["input_ids"])
        for ids, mask in list(zip(prompts["input_ids"], prompts["attention_mask"], strict=True)):
            text = docs.tokenizer().decode(ids[mask].tolist(), skip_special_tokens=False)
            assert text.startswith(docs.TURN + "user\n")
            assert text.endswith(head)


def test_pairs_prefer_right_and_short_answers():
    data = EmojiPreferences(length=72)
    wrong, pairs = data.pairs("held_out")
    assert 0.3 < np.mean(wrong) < 0.7
    for question, is_wrong, draw in zip(
        emoji_questions.questions("held_out"), wrong, np.random.default_rng(0).random((len(wrong), 8)), strict=True
    ):
        _, chosen, rejected = data.pair(question, draw)
        assert emoji_questions.quality(question, chosen) == 1
        assert emoji_questions.quality(question, rejected) == (0 if is_wrong else 0.5)
    assert not pairs["rejected_attention_mask"].all(1).any()  # none is cut


@pytest.mark.parametrize("data", [EmojiChat(), EmojiPreferences(), EmojiPrompts()])
def test_processes_build_the_rows_of_the_global_batch(data):
    whole, part = data.batches(8, 3)[5], data.batches(8, 3, slice(2, 5))[5]
    assert whole.keys() == part.keys()
    for name, x in whole.items():
        np.testing.assert_array_equal(x[2:5], part[name])


def test_decoding_stops_at_the_end_of_the_turn():
    end, text_end = emoji_questions.stop_ids()
    ids = docs.tokenizer().encode("Objects").ids
    assert emoji_questions.decode([[*ids, end, *ids], [*ids, text_end, text_end]]) == ["Objects", "Objects"]
    assert emoji_questions.decode([[end]]) == [""]


def test_the_vocabulary_knows_its_special_tokens():
    assert docs.tokenizer().get_vocab_size() == 2048
    assert docs.tokenizer().decode(docs.tokenizer().encode("Übung: naïve 🦊\n  x").ids) == "Übung: naïve 🦊\n  x"


def test_unknown_splits_and_corpora_are_errors():
    with pytest.raises(ValueError, match="no split 'test'; there are train and held_out"):
        emoji_questions.questions("test")
    with pytest.raises(ValueError, match="no corpus 'wiki'"):
        docs.documents("wiki")
