"""Pairs of scenes and captions: every row has its caption, and rows that say the same are known to."""

import numpy as np
import pytest

from mmjax.data import scene_text
from mmjax.data.scene_captions import SceneCaptions
from mmjax.data.scene_questions import SceneQuestions


@pytest.fixture(scope="module")
def data():
    return SceneCaptions()


@pytest.fixture(scope="module")
def batch(data):
    return data.batches(40, seed=1)[0]


def said(batch) -> list[str]:
    texts = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        *words, last = ids[mask]
        assert (words[0], last) == (scene_text.id_of("<start>"), scene_text.id_of("<end>"))
        assert not ids[~mask].any()
        texts.append(scene_text.tokenizer().decode(words[1:]).strip())
    return texts


def test_every_row_has_a_caption_and_equal_ones_share_an_id(batch):
    texts = said(batch)
    assert all(texts)
    assert 10 < len(set(texts)) < 40  # some are of one thing, and seen twice
    assert any(" and " in text for text in texts)
    ids = batch["image_id"]
    equal = np.array(texts)[:, None] == np.array(texts)
    np.testing.assert_array_equal(ids[:, None] == ids, equal)


def test_rows_do_not_depend_on_who_builds_them(data, batch):
    halves = [data.batches(40, 1, rows)[0] for rows in (slice(0, 7), slice(7, 40))]
    for name, x in batch.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), x)


def test_captions_name_what_is_seen_from_left_to_right(data):
    pairs = data.pairs("validation", 30)
    assert 10 < len(pairs.captions) < 30  # of the others nothing is left of anything
    examples = [example for example in data.examples("validation", 30) if example.conversations]
    for n, example in enumerate(examples):
        names = [thing.name for thing in sorted(example.things, key=lambda thing: thing.centre[0])]
        assert pairs.captions[n].replace(" and ", ", ").split(", ") == names
        assert pairs.names[pairs.labels[n]] == pairs.captions[n]
        np.testing.assert_array_equal(pairs.images[n], example.image)
    assert len(set(pairs.names)) == len(pairs.names)


def test_a_long_caption_is_cut_before_its_end(data):
    text = ", ".join(["fox"] * 20)
    row = data.tokenize([text])
    assert row["attention_mask"].all()
    assert said(row) == ["fox, fox, fox, fox, fox, fox, fox,"]


def test_rows_that_shall_have_a_question_have_one():
    kinds = {"kinds": ("caption",), "image_tokens": 0, "length": 32}
    plain, sure = (SceneQuestions(**kinds, answered=answered).batches(20, seed=0)[0] for answered in (False, True))
    asked = plain["spoken"].any(1)
    assert 0 < asked.sum() < 20
    assert sure["spoken"].any(1).all()
    for name, x in plain.items():  # the scenes that could be asked stay
        np.testing.assert_array_equal(sure[name][asked], x[asked])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="pairs need captions"):
        SceneCaptions(kinds=("what",))
    never = SceneQuestions(kinds=("which",), answered=True, twins=0.0, vocabulary=16)
    with pytest.raises(ValueError, match="none could be asked which"):
        never.batches(1, seed=0)[0]
