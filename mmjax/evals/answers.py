"""What a chat model answers: how often it is right, and how often its answer is better than another model's.

`data.asked(split)` gives questions and their prompts, `emoji_questions.quality` says what an answer is worth. Metrics
of a split "held_out", with greedy decoding, and for `WinRate` at temperature 1:
    held_out/accuracy              right answers, wordy ones too; with /group etc. of one kind of question
    held_out/accuracy_majority     what the commonest answer of the training questions would score
    held_out/short                 answers that are not wordy
    held_out/win_rate              against the collection `reference` (the policy before): wins + ties / 2
    held_out/kl                    nats per answer of the divergence from it, as the mean of log(policy / reference)
"""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data import emoji_questions
from mmjax.data.emoji_questions import KINDS, Question, quality
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.nn.sampling import Generated, Sampling, generate
from mmjax.objectives import log_probs, rollout


def part(model: Any, variables: dict, policy: str) -> tuple[Any, dict]:
    """The language model and its parameters: all there is, or the submodule `policy`."""
    return (getattr(model, policy), variables["params"][policy]) if policy else (model, variables["params"])


def answer(model: Any, params: dict, prompts: dict, rng: jax.Array, tokens: int, temperature: float) -> Generated:
    """Answers to prompts [B P], which end with their turn."""
    sampling = Sampling(temperature=temperature, stop_ids=emoji_questions.stop_ids())
    inputs = prompts["input_ids"], prompts["attention_mask"]
    return generate(model, {"params": params}, *inputs, max_new_tokens=tokens, sampling=sampling, rng=rng)


@dataclasses.dataclass(frozen=True)
class Answers:
    split: str
    policy: str = ""  # the submodule that speaks, where the model holds more
    tokens: int = 32  # that an answer may have

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        asked, prompts = data.asked(self.split)
        said = answer(*part(model, variables, self.policy), prompts, rng, self.tokens, 0.0)
        texts = emoji_questions.decode(np.asarray(said.tokens))
        right = np.array([emoji_questions.is_right(*one) for one in zip(asked, texts, strict=True)])
        kinds = np.array([question.kind for question in asked])
        metrics = {f"accuracy/{KINDS[kind]}": right[kinds == kind].mean() for kind in np.unique(kinds)}
        metrics |= {
            "accuracy": right.mean(),
            "accuracy_majority": np.mean([commonest()[one.kind] in one.right for one in asked]),
            "short": np.mean([emoji_questions.core_of(text)[1] for text in texts]),
            "tokens": float(np.mean(said.lengths)),
        }
        return Result({f"{self.split}/{name}": float(value) for name, value in metrics.items()})


@functools.cache
def commonest() -> tuple[str, ...]:
    """The commonest right answer of the training questions to each kind."""
    counts = [collections.Counter() for _ in KINDS]
    for question in emoji_questions.questions("train"):
        counts[question.kind].update(question.right)
    return tuple(count.most_common(1)[0][0] for count in counts)


@functools.partial(jax.jit, static_argnames="model")
def divergence(model: Any, params: dict, reference: dict, prompts: dict, said: Generated) -> jax.Array:
    """Mean over answers of log(policy / reference)."""
    rows = rollout.rows(prompts["input_ids"], prompts["attention_mask"], said)
    return jnp.mean(
        log_probs.of_labels(model, params, rows).sum(-1) - log_probs.of_labels(model, reference, rows).sum(-1)
    )


@dataclasses.dataclass(frozen=True)
class WinRate:
    split: str
    policy: str = ""
    tokens: int = 32

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        asked, prompts = data.asked(self.split)
        lm, params = part(model, variables, self.policy)
        said = answer(lm, params, prompts, rng, self.tokens, 1.0)
        # Always the same answers, so that runs which start from one reference are measured against the same.
        before = answer(lm, variables["reference"], prompts, jax.random.key(0), self.tokens, 1.0)
        new, old = (worth(asked, one) for one in (said, before))
        kl = divergence(lm, params, variables["reference"], jax.tree.map(jnp.asarray, prompts), said)
        metrics = {
            "win_rate": np.mean((new > old) + 0.5 * (new == old)),
            "kl": kl,
            "quality": new.mean(),
            "reference_quality": old.mean(),
        }
        return Result({f"{self.split}/{name}": float(value) for name, value in metrics.items()})


def worth(asked: tuple[Question, ...], said: Generated) -> np.ndarray:  # -> [B] in [0, 1]
    texts = emoji_questions.decode(np.asarray(said.tokens))
    return np.array([quality(*one) for one in zip(asked, texts, strict=True)])


@dataclasses.dataclass(frozen=True)
class Talk:
    """An Experiment's `sample`: answers a person's questions, one by one."""

    policy: str = ""
    tokens: int = 32
    temperature: float = 0.0

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        if not request.texts:
            raise ValueError('there is no question; ask one, such as "Which group does fox belong to?"')
        prompts = data.tokenize(request.texts)
        said = answer(*part(model, variables, self.policy), prompts, rng, self.tokens, self.temperature)
        return Answer("\n".join(emoji_questions.decode(np.asarray(said.tokens))))
