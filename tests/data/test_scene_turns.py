"""Questions about scenes against a reader who has nothing but the words and the true boxes (scene_truth.py)."""

import collections
import hashlib
import re

import numpy as np
import pytest
import scene_truth
from scene_truth import Seen

from mmjax.data import scene_questions, scene_turns
from mmjax.data.scene_turns import Thing

SCENES = 150  # of each split
LEAST = 12  # questions of the rarest kind over all splits
NAMES = ("fox", "cat", "dog", "bus")


@pytest.fixture(scope="module")
def examples():
    data = scene_questions.SceneQuestions(kinds=tuple(scene_turns.MIX))
    return {split: data.examples(split, SCENES) for split in scene_questions.SPLITS}


def asked(examples):
    """(things, turn, question with what was said before, answer) of every turn of every split."""
    for split in examples.values():
        for example in split:
            things = [Seen(*thing[:3], thing.point) for thing in example.things]
            for conversation in example.conversations:
                for turn, texts in zip(conversation, scene_truth.written(conversation), strict=True):
                    yield things, turn, *texts


def test_every_question_has_one_answer_and_it_is_the_one_that_is_given(examples):
    counts = collections.Counter()
    for things, turn, question, answer in asked(examples):
        assert scene_truth.answers(question, things) == [answer], (turn, things)
        counts[turn.kind] += 1
    assert set(counts) == set(scene_turns.KINDS) == set(scene_turns.MIX)
    assert min(counts.values()) >= LEAST, counts
    assert sum(counts.values()) > 5_000


def test_no_answer_hangs_on_a_margin(examples):
    """Each thing is pushed by half of the least margin, and each side stretched by the root of the least ratio."""
    rng, push, stretch = np.random.default_rng(0), 0.039, 1.3**0.5 - 0.001
    tried = collections.Counter()
    for things, turn, question, answer in asked(examples):
        if turn.kind in ("what", "point", "behind"):
            continue
        moved = []
        for thing in things:
            x0, y0, x1, y1 = thing.box
            x, y = rng.choice([-push, push], 2) if turn.kind != "bigger" else (0, 0)
            factor = stretch ** rng.choice([-1, 1]) if turn.kind == "bigger" else 1
            box = (x0 + x, y0 + y, x0 + x + (x1 - x0) * factor, y0 + y + (y1 - y0) * factor)
            moved.append(thing._replace(box=box))
        assert scene_truth.answers(question, moved) == [answer], (turn, things, moved)
        tried[turn.kind] += 1
    assert len(tried) == len(scene_turns.KINDS) - 3


def test_nothing_is_asked_of_what_is_hardly_seen(examples):
    for things, turn, _, answer in asked(examples):
        spoken = [i for group in (*turn.boxes, *turn.points) for i in group]
        assert all(things[i].visible >= 0.45 for i in spoken)
        if turn.kind in ("count", "caption", "spotting", "chain"):
            assert all(thing.visible >= 0.45 for thing in things)
        if turn.kind == "behind":
            (hidden,) = [thing for thing in things if thing.name == answer]
            assert 0.45 <= hidden.visible < 0.9
    for split in examples.values():
        for example in split:
            for one in example.conversations:
                for i in (i for turn in one for group in turn.points for i in group):
                    x, y = (int(v * 64) for v in example.things[i].point)
                    assert [j for j, mask in enumerate(example.masks) if mask[y, x]] == [i]


def test_no_answer_can_be_guessed(examples):
    found = collections.defaultdict(collections.Counter)
    first = []
    for _, turn, question, answer in asked(examples):
        found[turn.kind][re.sub(r"#\d+", "#", answer)] += 1
        if turn.kind == "bigger":
            first.append(question.index(answer) < question.index(" or "))
    for kind, answers in found.items():
        commonest = answers.most_common(1)[0][1] / answers.total()
        # The last three say a place.
        bound = {"is": 0.56, "where": 1.0, "which": 1.0, "spot": 1.0}.get(kind, 0.4)
        assert commonest <= bound, (kind, answers.most_common(3))
    assert 0.44 < found["is"]["no"] / found["is"].total() < 0.56  # 3 standard deviations of 750
    assert 0.4 < np.mean(first) < 0.6
    assert set(found["count"]) == {"1", "2", "3", "4"}


def combination(turn, question: str, answer: str) -> str | None:
    """The relation and the name that the words ask about together, read off the text."""
    if match := re.search(r"(left of|right of|above|below|behind) the (.+?)(?:\?|\.$)", question):
        return f"{match[1].removesuffix(' of')}/{match[2]}"
    if turn.kind == "dialogue":
        return "left/" + re.match(r"(?:where is|find|show me) the (.+?)[.?] #", question)[1]
    return None


def test_held_out_combinations_are_asked_in_their_split_only(examples):
    counts = collections.Counter()
    for split in ("train", "validation", "twemoji", "combinations"):
        for _, turn, question, answer in asked({split: examples[split]}):
            if (words := combination(turn, question, answer)) is None:
                assert split != "combinations" or turn.kind in ("where", "bigger")
                continue
            digest = hashlib.sha256(f"combination/{words}".encode()).hexdigest()
            held_out = int(digest[:8], 16) / 2**32 < 0.1
            assert held_out == (split == "combinations"), (turn, words)
            counts[split, turn.kind] += 1
    assert {kind for split, kind in counts if split == "train"} == {
        *("which", "left", "right", "above", "below", "behind", "chain_left", "dialogue")
    }
    assert sum(n for (split, _), n in counts.items() if split == "combinations") > 30
    assert counts["combinations", "dialogue"]


# Scenes made by hand


def thing(name, x, y, side=0.2, visible=1.0):
    return Thing(name, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), visible)


def ask(kind, things, names=NAMES, times=30):
    """All different conversations of a kind."""
    rng = np.random.default_rng(0)
    return {scene_turns.ask(kind, things, names, rng) for _ in range(times)}


FOX, CAT, DOG = thing("fox", 0.2, 0.2), thing("cat", 0.5, 0.6), thing("dog", 0.8, 0.8)


def test_a_clear_scene_has_all_but_what_needs_twins_or_hiding():
    things = [FOX, CAT._replace(box=(0.4, 0.4, 0.6, 0.8)), DOG]
    assert {kind for kind in scene_turns.KINDS if None in ask(kind, things, times=1)} == {"which", "behind"}
    answers = {one[0].answer for one in ask("left", things)}
    assert answers == {"fox"}  # of the cat; two are left of the dog
    assert {one[0].answer for one in ask("bigger", things)} == {"cat"}
    (one,) = {turns[0].answer for turns in ask("caption", things)}
    assert one == "fox, cat and dog"
    (one,) = {turns[0].answer for turns in ask("chain_left", things)}
    assert one == "cat <boxes>, left of it <boxes>: fox"


@pytest.mark.parametrize(
    ("kind", "things"),
    [
        ("left", [FOX, thing("cat", 0.27, 0.8)]),  # 0.07 apart
        ("above", [FOX, thing("cat", 0.8, 0.27)]),
        ("caption", [FOX, thing("cat", 0.27, 0.8)]),
        ("left", [FOX, thing("fox", 0.8, 0.8)]),  # no name of one thing only
        ("where", [FOX, thing("fox", 0.8, 0.8)]),
        ("bigger", [FOX, thing("cat", 0.8, 0.8, side=0.25)]),
        ("count", [FOX, thing("cat", 0.8, 0.8, visible=0.4)]),
        ("spotting", [FOX, thing("cat", 0.8, 0.8, visible=0.4)]),
        ("what", [thing("cat", 0.8, 0.8, visible=0.4)]),
        ("point", [thing("fox", 0.4, 0.4, 0.5), thing("cat", 0.4, 0.4, 0.5)]),
        ("which", [FOX, thing("fox", 0.8, 0.2)]),  # no third thing
        ("which", [thing("fox", 0.2, 0.2), thing("fox", 0.3, 0.3), thing("dog", 0.8, 0.8)]),  # both on all sides
        ("behind", [FOX, thing("cat", 0.3, 0.3)]),  # nothing hidden
        *((kind, []) for kind in scene_turns.KINDS if kind not in ("is", "count")),
    ],
)
def test_what_has_no_clear_answer_is_not_asked(kind, things):
    assert ask(kind, things) == {None}


def test_what_is_behind_is_asked_where_one_thing_is():
    hidden = thing("fox", 0.4, 0.4, visible=0.7)
    (answer,) = {one[0].answer for one in ask("behind", [hidden, thing("cat", 0.5, 0.5)])}
    assert answer == "fox"
    # The dog is behind the cat too, though it can't be named: another has its name.
    twins = [thing("dog", 0.6, 0.6, visible=0.8), thing("dog", 0.1, 0.9, 0.1)]
    assert ask("behind", [hidden, *twins, thing("cat", 0.5, 0.5)]) == {None}
    assert ask("behind", [thing("cat", 0.5, 0.5), hidden]) == {None}  # it lies on top


def test_which_tells_twins_apart_by_a_third_thing():
    things = [thing("fox", 0.2, 0.5), thing("fox", 0.8, 0.5), thing("cat", 0.5, 0.1)]
    found = {(one[0].question.split(" the ", 1)[1], one[0].boxes) for one in ask("which", things)}
    assert {(text.rstrip("?."), boxes) for text, boxes in found} == {
        ("fox left of the cat", ((0,),)),
        ("fox right of the cat", ((1,),)),
    }
    assert {scene_turns.relation(one[0]) for one in ask("which", things)} == {"left/cat", "right/cat"}


def test_a_vocabulary_that_is_all_there_has_nothing_absent():
    assert {one and one[0].answer for one in ask("is", [FOX, CAT], ("fox", "cat"))} == {"yes", None}
