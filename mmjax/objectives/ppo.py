"""PPO: the policy writes, the reward model scores, and what went better than expected becomes more likely.

Sources: Schulman et al. 2017, arXiv:1707.06347 (PPO), equation 7; Schulman et al. 2016, arXiv:1506.02438 (GAE);
Ziegler et al. 2019, arXiv:1909.08593 (language); Huang et al. 2024, arXiv:2403.17031 (details).
B answers, T positions; entry t belongs to the token that position t predicts, `mask` says which are the answer's.

    answer -> log-probabilities of policy and reference, values V, score -experience-> A, returns R -loss-> update

    r_t = -beta (log p - log ref)_t + [last t] score        delta_t = r_t + gamma V_{t+1} - V_t
    A_t = delta_t + gamma lambda A_{t+1}                     R_t = A_t + V_t

TRL (0.24) computes the same where every answer fills its row. Where one is shorter, its score comes there with the
padding after the last token: the value at that place is learned, its reward is whitened with the others, and A runs
through it. Here nothing counts but the answer's own tokens, and the score comes with the last of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.nn.outputs import Aux
from mmjax.objectives import log_probs
from mmjax.objectives.log_probs import masked_mean, masked_variance
from mmjax.ops.sharding import BATCH, constrain


def token_rewards(score: jax.Array, log_ratio: jax.Array, mask: jax.Array, beta: float) -> jax.Array:
    """score [B], log(policy / reference) [B T] of the sampled tokens, mask [B T] -> r [B T].

    The mean of log_ratio under the policy is its divergence from the reference ("k1"). The score comes with the
    answer's last token.
    """
    last = mask & (jnp.cumsum(mask, axis=-1) == mask.sum(-1, keepdims=True))
    return jnp.where(mask, -beta * log_ratio, 0) + last * score[:, None]


def advantages(rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float) -> jax.Array:
    """GAE, from the answer's end to its start: [B T] each -> A [B T], 0 outside of the answer."""
    values = jnp.where(mask, values, 0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))  # nothing is expected after the end
    delta = jnp.where(mask, rewards + gamma * following - values, 0)

    def back(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, inside = now
        advantage = jnp.where(inside, delta + gamma * lam * later, 0)
        return advantage, advantage

    columns = rearrange(delta, "b t -> t b"), rearrange(mask, "b t -> t b")
    _, result = jax.lax.scan(back, jnp.zeros_like(delta[:, 0]), columns, reverse=True)
    return rearrange(result, "t b -> b t")


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
    """Mean 0 (or as it was) and variance 1 over the tokens that count."""
    mean = masked_mean(x, mask)
    white = (x - mean) * jax.lax.rsqrt(masked_variance(x, mask) + 1e-8)
    return jnp.where(mask, white if shift_mean else white + mean, 0)


def policy_loss(ratio: jax.Array, advantage: jax.Array, clip: float, high: float | None = None) -> jax.Array:
    """The clipped objective's negative per token: no gain from moving further than the clip. high: the bound above 1,
    where it differs."""
    bounded = jnp.clip(ratio, 1 - clip, 1 + (clip if high is None else high))
    return jnp.maximum(-advantage * ratio, -advantage * bounded)


def value_loss(values: jax.Array, old_values: jax.Array, returns: jax.Array, clip: float) -> jax.Array:
    """Half the squared error per token, the worse of the new value's and its clipped form's."""
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)


@dataclasses.dataclass(frozen=True)
class PPO:
    """Task.loss of a `models.reward.ActorCritic`; `experience` is its part of Task.prepare."""

    beta: float = 0.05  # weight of the divergence from the reference
    gamma: float = 1.0
    lam: float = 0.95  # lambda of GAE
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    temperature: float = 1.0  # at which the answers were sampled
    whiten_rewards: bool = False
    minibatches: int = 1  # an update takes every n-th row of the prepared batch, in turns

    def experience(self, old: jax.Array, reference: jax.Array, values: jax.Array, score: jax.Array, mask: jax.Array):
        """What the updates on these answers share: log-probabilities of policy and reference, values and mask [B T],
        score [B] -> entries of the batch, [B T] each."""
        rewards = token_rewards(score, old - reference, mask, self.beta)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantage = advantages(rewards, values, mask, self.gamma, self.lam)
        returns = advantage + jnp.where(mask, values, 0)  # before whitening
        return {
            "old_log_probs": old, "old_values": values, "returns": returns, "advantages": whiten(advantage, mask),
        }  # fmt: skip

    def __call__(self, model: Any, variables: dict, batch: dict, rng: jax.Array, step: jax.Array):
        """batch: input_ids, attention_mask and labels [B T] of prompts with answers, and what `experience` gives."""
        batch = {name: self.minibatch(x, step) for name, x in batch.items()}
        params, mask = variables["params"], log_probs.counted(batch)
        new = log_probs.of_labels(model.policy, params["policy"], batch, self.temperature)
        values = model.critic.apply({"params": params["critic"]}, batch["input_ids"], batch["attention_mask"]).values
        log_ratio = new - batch["old_log_probs"]
        policy = masked_mean(policy_loss(jnp.exp(log_ratio), batch["advantages"], self.clip), mask)
        value = masked_mean(value_loss(values, batch["old_values"], batch["returns"], self.value_clip), mask)
        total = policy + self.value_weight * value
        clipped = jnp.abs(jnp.exp(log_ratio) - 1) > self.clip
        metrics = {
            "policy_loss": policy,
            "value_loss": value,
            "approx_kl": 0.5 * masked_mean(log_ratio**2, mask),  # of this policy from the one that wrote
            "clip_fraction": masked_mean(clipped.astype(jnp.float32), mask),
        }
        return total, Aux(metrics, weight=mask.sum())

    def minibatch(self, x: jax.Array, step: jax.Array) -> jax.Array:
        """[B ...] -> [B/n ...]: each device keeps rows that it holds."""
        parts = rearrange(x, "(b n) ... -> n b ...", n=self.minibatches)
        return constrain(parts, None, BATCH)[step % self.minibatches]
