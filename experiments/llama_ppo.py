"""PPO: the LLaMA of llama_sft writes, the model of llama_reward scores, and what scored better becomes likelier.

tiny    seconds: does everything once, learns nothing
small   about 4 minutes on 2 CPU cores; win rate against the SFT model on held-out questions, and the divergence from it
        that this costs (numbers: README)
paper   LLaMA-7B with the hyper-parameters of TRL's PPO (Huang et al. 2024, arXiv:2403.17031)

An answer that does not end within ANSWER tokens scores what the worst answer of its batch does.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mmjax.data.docs import tokenizer
from mmjax.data.emoji_questions import EmojiPrompts, stop_ids
from mmjax.evals.answers import Answers, Talk, WinRate
from mmjax.models import llama
from mmjax.models.reward import ActorCritic, RewardModel
from mmjax.nn.sampling import Sampling, generate
from mmjax.objectives import log_probs, rollout
from mmjax.objectives.ppo import PPO
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment, Source
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

ANSWER = 32  # most tokens of an answer


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Task.prepare: prompts become answers, with all that the updates on them share."""

    ppo: PPO

    def __call__(self, model: ActorCritic, variables: dict, batch: dict, rng: jax.Array, step: int) -> dict:
        sampling = Sampling(temperature=self.ppo.temperature, stop_ids=stop_ids())
        return _experience(model, self.ppo, sampling, variables, batch, rng)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _experience(model: ActorCritic, ppo: PPO, sampling: Sampling, variables: dict, batch: dict, rng: jax.Array) -> dict:
    params, prompts = variables["params"], (batch["input_ids"], batch["attention_mask"])
    actor = {"params": params["policy"]}
    said = generate(model.policy, actor, *prompts, max_new_tokens=ANSWER, sampling=sampling, rng=rng)
    rows = rollout.rows(*prompts, said)
    old = log_probs.of_labels(model.policy, params["policy"], rows, ppo.temperature)
    reference = log_probs.of_labels(model.policy, variables["reference"], rows, ppo.temperature)
    seen = rows["input_ids"], rows["attention_mask"]
    values = model.critic.apply({"params": params["critic"]}, *seen).values
    score = model.critic.apply({"params": variables["judge"]}, *seen).scores
    ended = jnp.isin(said.tokens, jnp.asarray(sampling.stop_ids)).any(-1)
    score = jnp.where(ended, score, score.min())
    return rows | ppo.experience(old, reference, values, score, log_probs.counted(rows))


def experiment(size: str) -> Experiment:
    config = llama.of_size(size, tokenizer().get_vocab_size())
    model = ActorCritic(llama.Llama(config), RewardModel(llama.Llama(config)))
    # A small reward model is easily fooled: the reference is dearer there.
    ppo, data = PPO(beta=0.1 if size == "small" else 0.05), EmojiPrompts()
    task = Task(model, ppo, prepare=Rollout(ppo), updates=4)  # 4 passes over each batch of answers
    wiring = {
        "evals": (Answers("held_out", "policy"), WinRate("held_out", "policy")),
        "sample": Talk("policy"),
        "init_from": (
            Source("llama_sft", "params", "params/policy"),
            Source("llama_sft", "params", "reference"),
            Source("llama_reward", "params", "params/critic"),
            Source("llama_reward", "params", "judge"),
        ),
    }
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=16, **every, **wiring)
    if size == "small":
        adamw = AdamW(peak=2e-5, warmup=10, end=0.1, clip=1.0)
        every = {"save_every": 500, "eval_every": 80, "log_every": 4}
        return Experiment(task, data, adamw, steps=160, batch_size=64, **every, **wiring)
    adamw = AdamW(peak=3e-6, decay="linear", eps=1e-5, clip=1.0)
    return Experiment(task, data, adamw, 8_000, 512, mesh=MeshShape(fsdp=-1, data=1), **wiring)
