"""The tasks of recall ask what they say, and their batches are pure functions of (seed, i)."""

import numpy as np
import pytest

from mmjax.data.recall import InductionHeads, SelectiveCopying
from mmjax.ops.cross_entropy import IGNORED

TASKS = (SelectiveCopying(length=24, vocab_size=8, count=5), InductionHeads(length=20, vocab_size=6))


def test_the_letters_are_due_in_order_behind_the_noise():
    batch = TASKS[0].batches(64, seed=3)[7]
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert (len(ids), len(labels)) == (29, 29)
        assert list(ids[24:]) == [7] * 5  # markers
        letters = [one for one in ids[:24] if one]
        assert list(labels[24:]) == letters
        assert len(letters) == 5
        assert set(letters) <= set(range(1, 7))
        assert (labels[:24] == IGNORED).all()
    used = (batch["input_ids"][:, :24] > 0).mean(0)
    assert used.min() > 0  # any place may hold a letter, the first and the last too
    assert set(np.unique(batch["labels"])) == {IGNORED, 1, 2, 3, 4, 5, 6}


def test_what_followed_the_trigger_is_asked_once_at_the_end():
    batch = TASKS[1].batches(200, seed=3)[7]
    places = set()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        first, last = np.flatnonzero(ids == 5)
        places.add(int(first))
        assert last == 19
        assert labels[-1] == ids[first + 1]
        assert (labels[:-1] == IGNORED).all()
    assert places == set(range(18))
    assert set(np.unique(batch["labels"])) == {IGNORED, 0, 1, 2, 3, 4}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_batch_depends_on_seed_and_number_only_and_rows_are_its_rows(task):
    whole, again = task.batches(8, seed=1)[4], task.batches(8, seed=1)
    again[9]  # no state: the order of asking changes nothing
    part = task.batches(8, seed=1, rows=slice(2, 5))[4]
    for name, x in whole.items():
        assert x.dtype == np.int32
        np.testing.assert_array_equal(again[4][name], x)
        np.testing.assert_array_equal(part[name], x[2:5])
    others = (task.batches(8, seed=2)[4], task.batches(8, seed=1)[5], task.questions(8, task.length))
    for other in others:
        assert (other["input_ids"] != whole["input_ids"]).any()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_text_and_ids_are_the_same_thing(task):
    for ids in task.questions(16, 33)["input_ids"]:
        np.testing.assert_array_equal(task.prompt(task.write(ids)), ids)
    assert task.questions(2, 33)["input_ids"].shape == (2, 33 + getattr(task, "count", 0))


def test_bad_texts_and_lengths_are_named():
    copying, heads = TASKS
    with pytest.raises(ValueError, match=r"'\.\.z' holds z; this task knows \.abcdef\?"):
        copying.prompt("..z")
    with pytest.raises(ValueError, match="holds no letter"):
        copying.prompt("...")
    with pytest.raises(ValueError, match="must hold a trigger >, later end with one"):
        heads.prompt("abc>")
    with pytest.raises(ValueError, match="5 letters do not fit in a length of 4"):
        copying.questions(1, 4)
    with pytest.raises(ValueError, match="need a length of 3, got 2"):
        heads.questions(1, 2)
    with pytest.raises(ValueError, match=r"data\.vocab_size must be from 3 to 26, got 2"):
        InductionHeads(length=8, vocab_size=2)
