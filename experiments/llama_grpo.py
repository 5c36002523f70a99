"""GRPO: the LLaMA of llama_sft answers each question eight times, and a few lines of Python say what is right.

tiny    seconds: does everything once, learns nothing
small   about 5 minutes on 2 CPU cores; win rate against the SFT model on held-out questions, and the divergence from it
        that this costs (numbers: README)
paper   LLaMA-7B with the hyper-parameters of DeepSeekMath (Shao et al. 2024, section 4.2)

The reward is `emoji_questions.quality`: 1 for a right and short answer, 0.5 for a right and wordy one, else 0. It needs
no reward model, since it knows the right answers of training questions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmjax.data import emoji_questions
from mmjax.data.docs import tokenizer
from mmjax.data.emoji_questions import EmojiPrompts, stop_ids
from mmjax.evals.answers import Answers, Talk, WinRate
from mmjax.models import llama
from mmjax.nn.sampling import Generated, Sampling, generate
from mmjax.objectives import log_probs, rollout
from mmjax.objectives.grpo import GRPO, group_advantages
from mmjax.ops import sharding
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment, Source
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

ANSWER = 32  # most tokens of an answer


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Task.prepare: P prompts become P x group answers with their advantages."""

    grpo: GRPO
    group: int = 8  # answers to each prompt

    def __call__(self, model: llama.Llama, variables: dict, batch: dict, rng: jax.Array, step: int) -> dict:
        sampling = Sampling(temperature=self.grpo.temperature, stop_ids=stop_ids())
        rows, said, index = _answers(model, self, sampling, variables, batch, rng)
        questions = emoji_questions.questions("train")
        asked = [questions[one] for one in np.repeat(np.asarray(index), self.group)]
        rewards = score(asked, said)
        advantages = group_advantages(jnp.asarray(rearrange(rewards, "(p g) -> p g", g=self.group)))
        return rows | {"advantages": advantages.ravel()}


def score(asked: list[emoji_questions.Question], said: Generated) -> np.ndarray:  # -> [B] float32
    texts = emoji_questions.decode(np.asarray(said.tokens))
    return np.array([emoji_questions.quality(*one) for one in zip(asked, texts, strict=True)], np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _answers(
    model: llama.Llama, how: Rollout, sampling: Sampling, variables: dict, batch: dict, rng: jax.Array
) -> tuple[dict, Generated, jax.Array]:
    """The rows to learn from, and what was said to which question: whole on every device, so that each process can read
    and score all of it."""
    params = variables["params"]
    prompts = [jnp.repeat(batch[name], how.group, axis=0) for name in ("input_ids", "attention_mask")]
    said = generate(model, {"params": params}, *prompts, max_new_tokens=ANSWER, sampling=sampling, rng=rng)
    rows = rollout.rows(*prompts, said)
    rows |= {"old_log_probs": log_probs.of_labels(model, params, rows, how.grpo.temperature)}
    whole = jax.tree.map(lambda x: sharding.constrain(x, *[None] * x.ndim), (said, batch["index"]))
    return rows, *whole


def experiment(size: str) -> Experiment:
    config = llama.of_size(size, tokenizer().get_vocab_size())
    model, data, grpo = llama.Llama(config), EmojiPrompts(), GRPO(beta=0.04)
    wiring = {
        "evals": (Answers("held_out"), WinRate("held_out")),
        "sample": Talk(),
        "init_from": (Source("llama_sft", "params", "params"), Source("llama_sft", "params", "reference")),
    }
    if size == "tiny":
        task, every = Task(model, grpo, prepare=Rollout(grpo)), {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=4, **every, **wiring)
    if size == "small":
        task = Task(model, grpo, prepare=Rollout(grpo), updates=2)
        adamw, every = AdamW(peak=3e-5, warmup=10, end=0.1, clip=1.0), {"eval_every": 60, "log_every": 2}
        return Experiment(task, data, adamw, steps=240, batch_size=8, **every, **wiring)
    task, adamw = Task(model, grpo, prepare=Rollout(grpo, group=64)), AdamW(peak=1e-6, decay="constant", clip=1.0)
    return Experiment(task, data, adamw, 9_000, 16, mesh=MeshShape(fsdp=-1, data=1), **wiring)
