"""GRPO: PPO without a critic; an answer is as good as it beats the other answers to the same prompt.

Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, equations 3 and 4. B answers in groups of G to one prompt,
T positions; entry t belongs to the token that position t predicts, `mask` says which are the answer's.

    rewards [P G] -group_advantages-> A [P G]      max(-A ratio, -A clip(ratio)) + beta k3 per token -> one of MEANS
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.nn.outputs import Aux
from mmjax.objectives import log_probs
from mmjax.objectives.log_probs import masked_mean
from mmjax.objectives.ppo import policy_loss

EPSILON = 1e-4  # TRL's: equal rewards give 0, not 0 / 0


def group_advantages(rewards: jax.Array, *, scale: bool = True) -> jax.Array:
    """rewards [P G] -> [P G]: above the group's mean, in its standard deviations (with Bessel's correction).

    scale=False leaves out the deviation, which weighs easy and hard prompts alike (Dr. GRPO, arXiv:2503.20783).
    """
    centered = rewards - rewards.mean(-1, keepdims=True)
    return centered / (rewards.std(-1, ddof=1, keepdims=True) + EPSILON) if scale else centered


def k3(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """An estimate of the divergence from the reference that is never negative (equation 4)."""
    log_ratio = reference - log_probs
    return jnp.exp(log_ratio) - log_ratio - 1


# How the losses of tokens [B T] become one number, and what that mean divides by


def per_answer(losses: jax.Array, mask: jax.Array, longest: int) -> tuple[jax.Array, jax.Array]:
    """Equation 3: the mean over answers of each answer's mean."""
    means = (losses * mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)
    return means.mean(), jnp.float32(mask.shape[0])


def per_token(losses: jax.Array, mask: jax.Array, longest: int) -> tuple[jax.Array, jax.Array]:
    """DAPO (Yu et al. 2025, arXiv:2503.14476): the mean over all tokens of the batch; long answers count more."""
    return masked_mean(losses, mask), mask.sum()


def per_length(losses: jax.Array, mask: jax.Array, longest: int) -> tuple[jax.Array, jax.Array]:
    """Dr. GRPO: over the length that answers might have had, so that it does not depend on what was said."""
    return (losses * mask).sum() / (mask.shape[0] * longest), jnp.float32(mask.shape[0])


MEANS = (per_answer, per_token, per_length)


@dataclasses.dataclass(frozen=True)
class GRPO:
    """Task.loss of a causal language model; with beta > 0 its first copy stands in the collection `reference`."""

    beta: float = 0.04  # weight of the divergence from the reference
    clip: float = 0.2
    clip_high: float | None = None  # the bound above 1, where it differs ("clip higher", DAPO)
    temperature: float = 1.0  # at which the answers were sampled
    longest: int = 256  # tokens that an answer may have; for per_length
    mean: Callable = per_answer  # one of MEANS

    def __call__(self, model: Any, variables: dict, batch: dict, rng: jax.Array, step: jax.Array):
        """batch: input_ids, attention_mask and labels [B T] of prompts with answers, old_log_probs [B T] and
        advantages [B]."""
        mask = log_probs.counted(batch)
        new = log_probs.of_labels(model, variables["params"], batch, self.temperature)
        ratio, advantage = jnp.exp(new - batch["old_log_probs"]), batch["advantages"][:, None]
        losses = policy_loss(ratio, advantage, self.clip, self.clip_high)
        divergence = jnp.zeros_like(new)
        if self.beta:
            reference = log_probs.of_labels(model, variables["reference"], batch, self.temperature)
            divergence = k3(new, reference)
        total, weight = self.mean(losses + self.beta * divergence, mask, self.longest)
        metrics = {"kl": masked_mean(divergence, mask), "ratio": masked_mean(ratio, mask)}
        return total, Aux(metrics, weight=weight)
