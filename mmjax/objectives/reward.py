"""The reward model: a number for an answer, learned from which of two people preferred.

Source: Bradley & Terry 1952; Stiennon et al. 2020, arXiv:2009.01325, section 3.4; Ouyang et al. 2022,
arXiv:2203.02155, equation 1. B pairs of answers to the same prompt.

    p(chosen is better) = sigmoid(score of chosen - score of rejected)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.nn.outputs import Aux

REJECTED = "rejected_"  # how a batch calls the entries of the worse answer; the better one's have no prefix


def bradley_terry(chosen: jax.Array, rejected: jax.Array, margin: jax.Array | float = 0.0) -> jax.Array:
    """Scores [B], [B] -> losses [B]; margin [B]: by how much the better one has to win (Llama 2, section 3.2.2)."""
    return -jax.nn.log_sigmoid(chosen - rejected - margin)


def side_by_side(batch: dict, names: tuple[str, ...]) -> dict:
    """Both answers as rows of one batch, [B ...] and [B ...] -> [2B ...], so that the model runs once.

    Row 2b is chosen and row 2b + 1 rejected: a device that holds some pairs keeps both rows of each.
    """
    return {n: rearrange([batch[n], batch[REJECTED + n]], "two b ... -> (b two) ...") for n in names}


def apart(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Undoes `side_by_side` for one value of each row: [2B] -> chosen [B], rejected [B]."""
    return x[0::2], x[1::2]


@dataclasses.dataclass(frozen=True)
class Reward:
    """Task.loss for a `models.reward.RewardModel`."""

    center: float = 0.0  # weight of (chosen + rejected)^2, which keeps scores near 0 (Eisenstein et al. 2023)

    def __call__(self, model: Any, variables: dict, batch: dict, rng: jax.Array, step: jax.Array):
        """batch: input_ids int and attention_mask bool [B T], the same with REJECTED; margin [B] if pairs have one."""
        rows = side_by_side(batch, ("input_ids", "attention_mask"))
        chosen, rejected = apart(model.apply(variables, rows["input_ids"], rows["attention_mask"]).scores)
        preference = bradley_terry(chosen, rejected, batch.get("margin", 0.0)).mean()
        total = preference + self.center * jnp.mean((chosen + rejected) ** 2)
        metrics = {"accuracy": (chosen > rejected).mean(), "margin": (chosen - rejected).mean()}
        return total, Aux(metrics, weight=jnp.float32(chosen.shape[0]))
