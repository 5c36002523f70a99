"""Rows of scenes: what is packed behind a picture, where its places are, and who may be in it."""

import dataclasses

import numpy as np
import pytest

from mmjax.data import augment, emoji, scene_questions, scene_text, scenes
from mmjax.data.scene_questions import SceneQuestions
from mmjax.text import coordinates

PACK = emoji.pack()
FRONT = 1 + 64
START, ANSWER, END, IMAGE, BOXES, REGION = (
    scene_text.id_of(x) for x in ("<start>", "<answer>", "<end>", "<image>", "<boxes>", "<region_fea>")
)


@pytest.fixture(scope="module")
def numbers():
    return SceneQuestions()


@pytest.fixture(scope="module")
def examples(numbers):
    return numbers.examples("train", 60)


def packed(data, examples):
    return data.batch(examples, range(len(examples)))


def text(ids) -> str:
    return scene_text.tokenizer().decode(list(ids), skip_special_tokens=False)


def own_ids(data, conversation, things) -> list[int]:
    ids = []
    for turn in conversation:
        question, answer = (
            scene_text.tokenizer().encode(words, add_special_tokens=False).ids
            for words in data.form.write(turn, things)
        )
        ids += [*question, ANSWER, *answer, END]
    return ids


def test_rows_are_a_pure_function_of_seed_and_number_whoever_builds_them(numbers):
    whole = numbers.batches(6, seed=5)[3]
    assert {name: (x.shape, x.dtype.name) for name, x in whole.items()} == {
        "images": ((6, 64, 64, 3), "uint8"),
        "input_ids": ((6, 65 + numbers.length), "int32"),
        "segments": ((6, 65 + numbers.length), "int32"),
        "spoken": ((6, 65 + numbers.length), "bool"),
        "attention_mask": ((6, 65 + numbers.length), "bool"),
        "places": ((6, 24, 4), "float32"),
        "place_count": ((6,), "int32"),
        "cells": ((6, 8, 8), "int32"),
        "cell_boxes": ((6, 8, 8, 4), "float32"),
    }
    again = numbers.batches(6, seed=5)
    again[0]
    halves = [numbers.batches(6, 5, rows)[3] for rows in (slice(0, 2), slice(2, 6))]
    for name, x in whole.items():
        np.testing.assert_array_equal(again[3][name], x)
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), x)
    for other in (numbers.batches(6, seed=5)[4], numbers.batches(6, seed=6)[3]):
        assert all((other[name] != whole[name]).any() for name in ("images", "input_ids", "cells"))


def test_regions_too_do_not_depend_on_who_builds_them():
    data = SceneQuestions(scene_text.Regions(), region_points=9)
    whole = data.batches(6, seed=5)[0]
    halves = [data.batches(6, 5, rows)[0] for rows in (slice(0, 2), slice(2, 6))]
    assert whole["points"].shape == (6, 12, 9, 2)
    for name, x in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), x)


def test_training_recolours_things_and_nothing_else():
    plain = SceneQuestions(place_masks=True, recolour=None)
    tinted = dataclasses.replace(plain, recolour=augment.Augment())
    before, after = (data.batches(6, seed=5)[0] for data in (plain, tinted))
    assert (before["images"] != after["images"]).any()
    for name in before.keys() - {"images"}:
        np.testing.assert_array_equal(before[name], after[name])
    halves = [tinted.batches(6, 5, rows)[0] for rows in (slice(0, 2), slice(2, 6))]
    np.testing.assert_array_equal(np.concatenate([half["images"] for half in halves]), after["images"])
    for one, other in zip(plain.examples("validation", 3), tinted.examples("validation", 3), strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_the_kth_mask_is_that_of_the_kth_place(examples):
    data = SceneQuestions(scene_text.Embedded(), place_masks=True)
    batch = packed(data, examples)
    assert batch["masks"].shape == (len(examples), 24, 64, 64)
    for b, count in enumerate(batch["place_count"]):
        assert not batch["masks"][b, count:].any()
        boxes, present = scenes.enclosing(batch["masks"][b, :count])
        assert present.all()
        of_size = batch["places"][b, :count, 0] < batch["places"][b, :count, 2]  # the others are points
        np.testing.assert_allclose(boxes[of_size], batch["places"][b, :count][of_size], atol=1e-6)


def test_questions_of_a_split_stay_the_same(numbers):
    first, again = (numbers.examples("validation", 4) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.things == other.things
        assert one.conversations == other.conversations


@pytest.mark.parametrize(
    ("form", "length", "most", "answers"),
    [
        (scene_text.Numbers(), 144, 24, 400),
        (scene_text.Numbers(), 400, 24, 40),
        (scene_text.Regions(), 60, 24, 56),
        (scene_text.Embedded(), 400, 6, 400),
    ],
)
def test_rows_hold_whole_conversations_one_behind_the_other(examples, form, length, most, answers):
    data = SceneQuestions(form, length=length, places=most, answers=answers)
    batch = packed(data, examples)
    held, left_out = 0, 0
    for b, example in enumerate(examples):
        ids, segments, spoken = (batch[name][b] for name in ("input_ids", "segments", "spoken"))
        assert ids[:FRONT].tolist() == [START] + [IMAGE] * 64
        assert segments[:FRONT].max() == 0
        at, segment, places, heard = FRONT, 0, 0, 0
        for conversation in example.conversations:
            wanted = own_ids(data, conversation, example.things)
            said, saying = [], False
            for i in wanted:  # what follows <answer>, up to <end>
                said.append(saying)
                saying = i == ANSWER or (saying and i != END)
            count = sum(t.question.count("<") + t.answer.count("<") for t in conversation)
            if at + len(wanted) > FRONT + length or places + count > most or heard + sum(said) > answers:
                left_out += 1
                continue
            segment, stop = segment + 1, at + len(wanted)
            assert ids[at:stop].tolist() == wanted
            assert (segments[at:stop] == segment).all()
            assert spoken[at:stop].tolist() == said
            at, places, heard, held = stop, places + count, heard + sum(said), held + 1
        assert batch["place_count"][b] == places
        np.testing.assert_array_equal(batch["attention_mask"][b], np.arange(FRONT + length) < at)
        assert not any(batch[name][b, at:].any() for name in ("input_ids", "segments", "spoken"))
    assert held > 100
    assert left_out > 30


def test_the_kth_place_belongs_to_the_kth_number(numbers, examples):
    batch, plain = packed(numbers, examples), coordinates.Plain(precision=2)
    seen, points = 0, 0
    for b in range(len(examples)):
        words = text(batch["input_ids"][b][batch["attention_mask"][b]])
        found = []
        for group in words.split("[")[1:]:
            group = f"[{group.split(']')[0]}]"
            at = plain.read_points(group)
            points += bool(at)
            found.append([*at[0][0], *at[0][0]] if at else plain.read_boxes(group)[0][0])
        assert len(found) == batch["place_count"][b]
        np.testing.assert_allclose(found, batch["places"][b, : len(found)], atol=0.0051)
        assert not batch["places"][b, len(found) :].any()
        seen += len(found)
    assert seen > 150
    assert points > 10


def test_the_kth_place_belongs_to_the_kth_token(examples):
    batch = packed(SceneQuestions(scene_text.Embedded()), examples)
    np.testing.assert_array_equal((batch["input_ids"] == BOXES).sum(1), batch["place_count"])
    wanted = packed(SceneQuestions(scene_text.Embedded(), length=400, places=60, answers=400), examples)
    for b, example in enumerate(examples):
        boxes = []
        for conversation in example.conversations[: wanted["segments"][b].max()]:
            for turn in conversation:
                boxes += [(*example.things[i].point,) * 2 for (i,) in turn.points]  # in questions only
                boxes += [example.things[i].box for (i,) in turn.boxes]
        assert len(boxes) == wanted["place_count"][b]
        np.testing.assert_allclose(wanted["places"][b, : len(boxes)], boxes)


def test_the_kth_region_belongs_to_the_kth_question(examples):
    data = SceneQuestions(scene_text.Regions(), region_points=20)
    batch = packed(data, examples)
    np.testing.assert_array_equal((batch["input_ids"] == REGION).sum(1), batch["region_count"])
    assert batch["region_count"].sum() > 60
    for b, example in enumerate(examples):
        pointed = [g[0] for one in example.conversations for turn in one if turn.kind in ("what", "point")
                   for g in (*turn.boxes, *turn.points)]  # fmt: skip
        for i, points in zip(pointed, batch["points"][b, : batch["region_count"][b]], strict=False):
            x, y = (points * 64).astype(int).T
            assert example.masks[i][y, x].all()
        assert not batch["points"][b, batch["region_count"][b] :].any()


def test_more_regions_than_a_row_has_room_for_are_left_out_whole(examples):
    data = SceneQuestions(scene_text.Regions(), region_points=2, places=2)
    batch = packed(data, examples)
    assert batch["points"].shape[1] == 1
    assert batch["region_count"].max() == 1
    np.testing.assert_array_equal((batch["input_ids"] == REGION).sum(1), batch["region_count"])


def test_boxes_masks_and_cells_agree(numbers, examples):
    examples = examples[:20]
    batch, several = packed(numbers, examples), 0
    index = {name: n for n, name in enumerate(scene_questions.names(64))}
    for b, example in enumerate(examples):
        assert len(example.things) == len(example.masks)
        for thing, mask in zip(example.things, example.masks, strict=True):
            y, x = np.nonzero(mask)
            np.testing.assert_allclose(thing.box, np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / 64)
        boxes = np.zeros((8, 8, 4))
        for row in range(8):
            for column in range(8):
                shares = example.masks[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].mean((1, 2))
                top = shares.argmax()
                shown = shares[top] > 0.35
                several += (shares > 0.1).sum() > 1
                assert batch["cells"][b, row, column] == (index[example.things[top].name] if shown else -1)
                boxes[row, column] = example.things[top].box if shown else 0
        np.testing.assert_allclose(batch["cell_boxes"][b], boxes)
    assert several > 5


def test_later_things_lie_on_top():
    """Things are in the order in which they are painted: where boxes meet, what is hidden is the earlier one."""
    things = [e.things for e in SceneQuestions().examples("validation", 100)]
    first = np.mean([scene[0].visible for scene in things if len(scene) == 4])
    assert all(scene[-1].visible > 0.999 for scene in things)
    assert first < 0.95


def drawings(split, monkeypatch):
    """(artist, concept) of every drawing that a split may show."""
    seen = []

    def recorded(artists, concepts, cutouts=emoji.cutouts):
        seen.extend(zip(artists.tolist(), concepts.tolist(), strict=True))
        return cutouts(artists[:1], concepts[:1]).repeat(len(artists), 0)

    monkeypatch.setattr(emoji, "cutouts", recorded)
    pool = scene_questions._pool.__wrapped__(split, 64, scene_questions.COMPOSER)
    assert pool.concepts.tolist() == [concept for _, concept in seen]
    return set(seen)


def test_splits_show_their_own_drawings(monkeypatch):
    named = set(scene_questions.concepts(64).tolist())
    pools = {split: drawings(split, monkeypatch) for split in ("train", "validation", "twemoji", "concepts")}
    twemoji = emoji.ARTISTS.index("twemoji")
    for split, pool in pools.items():
        assert pool <= set(zip(*(x.tolist() for x in PACK.split(split)), strict=True))
        assert {artist == twemoji for artist, _ in pool} == {split == "twemoji"}
        concepts = {concept for _, concept in pool}
        assert concepts.isdisjoint(named) if split == "concepts" else concepts <= named
    assert {concept for _, concept in pools["train"]} == {concept for _, concept in pools["twemoji"]} == named
    assert len(set.union(*pools.values())) == sum(map(len, pools.values()))


def test_names_are_those_of_the_vocabulary_but_for_the_concepts_that_have_none():
    data = SceneQuestions()
    for split in scene_questions.SPLITS:
        names = {thing.name for example in data.examples(split, 20) for thing in example.things}
        assert len(names) > 10
        known = scene_questions.names(600 if split == "concepts" else 64)
        assert names.isdisjoint(known) if split == "concepts" else names <= set(known)
    batch = packed(data, data.examples("concepts", 20))
    assert set(np.unique(batch["cells"])) == {-2, -1}


def test_a_name_comes_twice_in_some_scenes_only(examples):
    twice = np.mean([len({t.name for t in e.things}) < len(e.things) for e in examples])
    assert 0.05 < twice < 0.45  # 0.3 of those with two things or more
    for example in SceneQuestions(twins=0).examples("train", 60):
        assert len({t.name for t in example.things}) == len(example.things)


def test_kinds_can_be_chosen(numbers):
    only = SceneQuestions(kinds=("is",)).batches(4, 0)[0]
    for ids, mask in zip(only["input_ids"], only["attention_mask"], strict=True):
        for row in text(ids[mask][FRONT:]).split("<end>")[:-1]:
            assert row.split("<answer>")[1].strip() in ("yes", "no")
    found = {c[-1].kind for e in numbers.examples("train", 8, ("count", "where")) for c in e.conversations}
    assert found == {"count", "where"}


def test_without_a_picture_the_text_is_the_same(examples):
    whole, blind = (packed(SceneQuestions(image_tokens=n), examples[:4]) for n in (64, 0))
    for name in ("input_ids", "segments", "spoken", "attention_mask"):
        np.testing.assert_array_equal(whole[name][:, FRONT:], blind[name][:, 1:])
    assert (blind["input_ids"] != IMAGE).all()


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="no split 'test' of scenes; there are train, validation, twemoji"):
        SceneQuestions().examples("test", 1)
    with pytest.raises(ValueError, match="cells must divide the side of 64 pixels, got cells=7"):
        SceneQuestions(cells=7)
    with pytest.raises(ValueError, match="no kind of question 'why'; there are what, point, "):
        SceneQuestions(kinds=("is", "why"))
    with pytest.raises(ValueError, match=r"scenes of 4 things need as many concepts, .* vocabulary=2 is too small"):
        SceneQuestions(vocabulary=2).batches(2, 0)[0]
    with pytest.raises(ValueError, match="1 to 600 concepts, got 700"):
        SceneQuestions(vocabulary=700).batches(2, 0)
    empty = scene_questions.Example(np.zeros((64, 64, 3), np.uint8), (), np.zeros((0, 64, 64), bool), ())
    batch = packed(SceneQuestions(), [empty])
    assert (batch["cells"] == -1).all()
    assert batch["attention_mask"].sum() == FRONT


def test_kinds_may_be_asked_more_often_than_the_mix_says():
    plain, often = SceneQuestions(), SceneQuestions(often=(("count", 300.0),))
    share = []
    for data in (plain, often):
        rows = scene_text.tokenizer().decode_batch(data.batches(16, 0)[0]["input_ids"].tolist())
        share.append(np.mean(["how many things are there?" in row or "count the things." in row for row in rows]))
    assert share[0] < 0.7
    assert share[1] > 0.9
    with pytest.raises(ValueError, match="no kind of question 'counting'"):
        SceneQuestions(often=(("counting", 1.0),))
