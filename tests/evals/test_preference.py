"""How often a reward model agrees with people: on pairs whose scores are known, and in words for `sample`."""

import types

import jax
import numpy as np
import pytest

from mmjax.data.emoji_questions import EmojiPreferences
from mmjax.evals import preference
from mmjax.evals.preference import RewardAccuracy, Score
from mmjax.nn.outputs import Request


@pytest.fixture
def by_first_id(monkeypatch):
    """A judge that gives an answer its first id as its score."""
    monkeypatch.setattr(preference, "scores", lambda model, variables, ids, mask: np.asarray(ids)[:, 0])


def test_accuracy_counts_pairs_and_tells_wrong_from_wordy(by_first_id):
    def column(*values: int) -> np.ndarray:
        return np.asarray(values)[:, None]

    pairs = {"input_ids": column(3, 1, 2, 5), "rejected_input_ids": column(1, 2, 2, 4)}
    pairs |= {"attention_mask": column(1, 1, 1, 1), "rejected_attention_mask": column(1, 1, 1, 1)}
    data = types.SimpleNamespace(pairs=lambda split: ([True, True, True, False], pairs))
    metrics = RewardAccuracy("held_out")(None, {}, data, jax.random.key(0)).metrics
    assert metrics == {  # a tie is no preference
        "held_out/reward_accuracy": 0.5,
        "held_out/reward_accuracy/wrong": 1 / 3,
        "held_out/reward_accuracy/wordy": 1.0,
    }


def test_a_sample_shows_the_score_of_each_answer(monkeypatch):
    monkeypatch.setattr(preference, "scores", lambda model, variables, ids, mask: np.asarray(mask).sum(-1))
    words = (
        "Which group does fox belong to?",
        "Animals & Nature",
        "Well, let me think about it. It should be Objects.",
    )
    text = Score()(None, {}, Request(words), EmojiPreferences(), jax.random.key(0)).text
    lines = text.splitlines()
    assert len(lines) == 2
    assert words[1] in lines[0]
    assert words[2] in lines[1]
    with pytest.raises(ValueError, match="give a question, and after it one or more answers"):
        Score()(None, {}, Request(words[:1]), EmojiPreferences(), jax.random.key(0))
