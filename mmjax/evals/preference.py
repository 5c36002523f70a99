"""How often a reward model prefers what people prefer.

Metrics of a split "held_out":
    held_out/reward_accuracy         pairs whose better answer gets the higher score (chance: 0.5)
    held_out/reward_accuracy/wrong   of those whose worse answer is wrong, and
    held_out/reward_accuracy/wordy   of those where it is right and only wordy
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mmjax.data import emoji_questions
from mmjax.nn.outputs import Answer, Request, Result


@functools.partial(jax.jit, static_argnames="model")
def scores(model: Any, variables: dict, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    return model.apply(variables, input_ids, attention_mask).scores


@dataclasses.dataclass(frozen=True)
class RewardAccuracy:
    """Of a `models.reward.RewardModel`, on `data.pairs(split)`."""

    split: str

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        wrong, pairs = data.pairs(self.split)
        chosen, rejected = (
            np.asarray(scores(model, variables, pairs[f"{side}input_ids"], pairs[f"{side}attention_mask"]))
            for side in ("", "rejected_")
        )
        preferred, wrong, name = chosen > rejected, np.asarray(wrong), f"{self.split}/reward_accuracy"
        return Result(
            {
                name: float(preferred.mean()),
                f"{name}/wrong": float(preferred[wrong].mean()),
                f"{name}/wordy": float(preferred[~wrong].mean()),
            }
        )


@dataclasses.dataclass(frozen=True)
class Score:
    """An Experiment's `sample`: the scores of answers, texts being a question and then its answers."""

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if len(request.texts) < 2:
            raise ValueError("a score is of an answer: give a question, and after it one or more answers")
        question, *answers = request.texts
        rows = emoji_questions.conversations(
            [emoji_questions.messages(question, answer) for answer in answers], data.length
        )
        values = scores(model, variables, rows["input_ids"], rows["attention_mask"])
        return Answer("\n".join(f"{value:+.3f}  {text}" for value, text in zip(values, answers, strict=True)))
