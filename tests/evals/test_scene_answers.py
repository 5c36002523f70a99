"""Scores of answers about scenes: those of somebody who knows, of somebody who cannot write, and of the commonest."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mmjax.data import scene_text
from mmjax.data.scene_questions import SceneQuestions
from mmjax.evals import scene_answers
from mmjax.evals.scene_answers import Reply, SceneAnswers
from mmjax.nn.outputs import Request

DATA = SceneQuestions()
BOXED = ("where", "which")


def replies(change, model, variables, data, examples, conversations, tokens):
    """The true answers, as `change` writes them."""
    found = []
    for example, conversation in zip(examples, conversations, strict=True):
        text = data.form.write(conversation[-1], example.things).answer
        text = change(text)
        found.append(Reply(text, [box for group in scene_answers.read_boxes(data, text) for box in group]))
    return found


@pytest.fixture(scope="module")
def measured():
    def run(change, split="twemoji"):
        evaluate = SceneAnswers(split, 60, functools.partial(replies, change))
        return evaluate(None, {}, DATA, jax.random.key(0))

    return run


def kinds_of(metrics: dict) -> set[str]:
    return {name.split("/")[1] for name in metrics}


def test_who_knows_everything_is_right_everywhere(measured):
    result = measured(lambda text: text)
    kinds = kinds_of(result.metrics)
    assert len(kinds) > 12
    assert {kind for kind in kinds if result.metrics[f"twemoji/{kind}"] != 1} == set()
    # Places of two decimals are not quite the true ones.
    assert 0.9 < result.metrics["twemoji/where/iou"] < 1
    assert result.metrics["twemoji/where/failed"] == 0
    assert result.metrics["twemoji/spotting/recall"] == 1
    assert result.metrics["twemoji/caption/chrf"] == pytest.approx(100)
    assert result.pictures["twemoji answers"].dtype == np.uint8


@pytest.mark.parametrize("wrong", ["", "[0.1", "[0.10,0.20]", "[0.90,0.90,0.10,0.10]", "[a, b]", "<boxes>"])
def test_who_cannot_write_is_wrong_and_nothing_breaks(measured, wrong):
    result = measured(lambda text: wrong)
    metrics = result.metrics
    assert all(metrics[f"twemoji/{kind}"] == 0 for kind in kinds_of(metrics))


def test_two_boxes_for_one_thing_are_no_answer(measured):
    metrics = measured(lambda text: f"{text} {text}" if text.startswith("[") else text).metrics
    assert metrics["twemoji/where"] == 0
    assert metrics["twemoji/where/failed"] == 1
    assert metrics["twemoji/what"] == 1


def test_a_caption_with_places_needs_names_and_places(measured):
    def moved(text: str) -> str:
        return text.replace("[0.", "[9.") if "and" in text or text.count("[") == 1 else text

    metrics = measured(moved).metrics
    assert metrics["twemoji/spotting"] < 0.5
    assert metrics["twemoji/chain"] == 1  # the number at its end is right
    assert scene_answers.names_of("key [0.10,0.20,0.30,0.40], cat <at><boxes> and light bulb [1, 2, 3, 4]") == [
        "key", "cat", "light bulb",
    ]  # fmt: skip


def test_the_commonest_answer_is_that_of_training(measured):
    metrics = measured(lambda text: text).metrics
    assert scene_answers.commonest(DATA)["is"] in ("yes", "no")
    assert 0.3 < metrics["twemoji/is/majority"] < 0.7
    assert metrics["twemoji/count/majority"] <= 0.45
    assert metrics["twemoji/what/majority"] < 0.2
    x0, y0, x1, y1 = scene_answers.commonest(DATA)["where"]
    assert x0 + x1 == pytest.approx(1)
    assert 0.15 < x1 - x0 < 0.5
    assert y0 < y1


def test_answers_end_where_they_say():
    end = scene_text.id_of(scene_text.END)
    ids = scene_text.tokenizer().encode("monkey face").ids
    assert scene_answers.words([*ids, end, *ids]) == scene_answers.words(ids) == "monkey face"


def test_prompts_are_padded_without_being_changed():
    examples = DATA.examples("twemoji", 3, ("what",))
    batch = DATA.prompts(examples, [example.conversations[0] for example in examples])
    found = scene_answers.padded(batch, 5)
    assert found["input_ids"].shape[1] % scene_answers.PROMPT == 0
    assert all(len(x) == 5 for x in found.values())
    for row in range(3):
        kept = [one["input_ids"][row][one["attention_mask"][row]] for one in (batch, found)]
        np.testing.assert_array_equal(*kept)


def test_an_experiments_evals_choose_without_the_held_out_artist():
    for tiny in (False, True):
        evals = scene_answers.measured(tiny)
        assert [one.split for one in evals["evals"]] == ["validation"]
        assert [one.split for one in evals["final_evals"]] == ["twemoji", "combinations"]
    assert dataclasses.replace(evals["evals"][0], split="train").count == 8
    related = dataclasses.replace(evals["final_evals"][1], replies=functools.partial(replies, str))
    assert (
        related(None, {}, dataclasses.replace(DATA, vocabulary=16), jax.random.key(0)).metrics["combinations/left"] == 1
    )


def test_a_split_in_which_nothing_can_be_asked_is_refused():
    nothing = SceneAnswers("combinations", 5, functools.partial(replies, str), ("what", "is"))
    with pytest.raises(ValueError, match="of 5 scenes of combinations none can be asked what, is"):
        nothing(None, {}, DATA, jax.random.key(0))


def test_who_always_agrees_is_seen_to(measured):
    metrics = measured(lambda text: "yes").metrics
    assert metrics["twemoji/is"] == metrics["twemoji/is/precision"]
    assert metrics["twemoji/is/recall"] == metrics["twemoji/is/yes_ratio"] == 1


def test_the_end_of_a_chain_is_what_counts_for_the_commonest_too():
    common = scene_answers.commonest(DATA)
    assert common["chain"] in "1234"
    assert ":" not in common["chain_left"]


# A person's questions


IMAGES, KEY = (np.zeros((40, 80, 3), np.uint8),), Reply("key", [])


def asked(texts, data=DATA, images=IMAGES, said=KEY):
    """What a model is shown that answers all alike, and the answer."""
    given = {}

    def tell(model, variables, data, examples, conversations, tokens):
        given.update(examples=examples, conversations=conversations)
        given["prompts"] = data.prompts(examples, conversations)
        return [said] * len(examples)

    answer = scene_answers.AskScenes("twemoji", tell)(None, {}, Request(texts, images), data, jax.random.key(0))
    return given, answer


@pytest.mark.parametrize("form", [scene_text.Numbers(), scene_text.Regions(), scene_text.Embedded()])
def test_a_place_in_a_persons_question_is_one_for_every_system(form):
    data = SceneQuestions(form, region_points=16)
    given, _ = asked(("What is at [0.25, 0.5,0.75,1]?", "and at [0.1,0.2]?"), data)
    (turn,), example = given["conversations"][0], given["examples"][0]
    text = form.write(turn, example.things).question
    assert text.removeprefix("what is at ") in (
        "[0.25,0.50,0.75,1.00]?",
        "[25, 50, 75, 99] <region_fea>?",
        "<at><boxes>?",
    )
    np.testing.assert_allclose(given["prompts"]["places"][:, 0], [[0.25, 0.5, 0.75, 1], [0.1, 0.2, 0.1, 0.2]])
    box, point = given["prompts"]["points"][:, 0]
    assert (box >= [0.25, 0.5]).all()
    assert (box <= [0.75, 1]).all()
    assert (np.abs(point - [0.1, 0.2]) < 0.05).all()


@pytest.mark.parametrize("wrong", ["[0.5,0.5,0.2,0.9]", "[12, 30, 48, 90]", "[0.1,0.2,0.3]", "[a]", "[-0.1,0.2]"])
def test_a_place_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=r"a place is \[x0,y0,x1,y1\] or \[x,y\] of numbers from 0 to 1"):
        asked((f"what is at {wrong}?",))
    with pytest.raises(ValueError, match="write a place as .*, not <boxes>"):
        asked(("what is at <boxes>?",))


def test_an_answer_shows_masks_and_says_numbers():
    mask = np.zeros((64, 64), bool)
    mask[:20, :20] = True
    plain, cut = (
        asked(("find the key.",), said=Reply(f"{scene_text.AT}<boxes>", [[0.1, 0.2, 0.3, 0.4]], masks))[1]
        for masks in (None, [mask])
    )
    assert plain.text == cut.text == "[0.10,0.20,0.30,0.40]"
    assert (plain.pictures["answer"] != cut.pictures["answer"]).any()


def test_who_sees_nothing_is_shown_nothing():
    blind = dataclasses.replace(DATA, image_tokens=0)
    with pytest.raises(ValueError, match="looks at no picture, got 1"):
        asked(("is the key there?",), blind)
    given, _ = asked(("is the key there?",), blind, images=())
    assert (given["examples"][0].image == 255).all()


def test_a_point_must_lie_on_what_was_asked_for():
    data = SceneQuestions(kinds=("spot",))
    asked = [(e, c) for e in data.examples("validation", 6, ("spot",)) for c in e.conversations][:3]
    examples, conversations = zip(*asked, strict=True)
    (example, conversation), *_ = asked
    written = data.form.write(conversation[-1], example.things)
    assert written.answer.startswith("[")
    outside = np.argwhere(~example.masks[conversation[-1].points[-1][0]])[0] / example.image.shape[0]
    texts = [written.answer, "[0.1,0.2,0.3,0.4]", "there"]
    replies = [scene_answers.Reply(text, []) for text in texts]
    right, more = scene_answers.scored(data, "spot", examples, conversations, replies)
    np.testing.assert_array_equal(right, [True, False, False])
    assert more["/failed"] == pytest.approx(2 / 3)
    wrong = data.form.form.write(((outside[1] + 0.001, outside[0] + 0.001),))
    right, _ = scene_answers.scored(
        data, "spot", examples[:1], conversations[:1], [scene_answers.Reply(wrong, [])]
    )  # fmt: skip
    assert not right[0]
    assert 0 <= scene_answers.majority(data, "spot", examples, conversations) < 1
