"""DPO: from preferences to a policy, without a reward model and without sampling.

Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7. B pairs of answers to the same prompt.
The policy's own reward of an answer is beta log(policy / reference), and the loss is the reward model's on that:

    h = (log p(chosen) - log p(rejected)) - (log ref(chosen) - log ref(rejected));    -log sigmoid(beta h)

Log-probabilities are sums over the answer's tokens, its end included. `FORMS` are the losses of h.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.nn.outputs import Aux
from mmjax.objectives import log_probs, reward, sft

ENTRIES = ("input_ids", "attention_mask", "spoken")


def sigmoid(h: jax.Array, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """Equation 7; with label smoothing "cDPO": a share of the preferences is taken to be the wrong way round."""
    right, wrong = jax.nn.log_sigmoid(beta * h), jax.nn.log_sigmoid(-beta * h)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def robust(h: jax.Array, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """Unbiased under that noise (Chowdhury et al. 2024, arXiv:2403.00409)."""
    right, wrong = jax.nn.log_sigmoid(beta * h), jax.nn.log_sigmoid(-beta * h)
    return (-(1 - label_smoothing) * right + label_smoothing * wrong) / (1 - 2 * label_smoothing)


def hinge(h: jax.Array, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """SLiC (Zhao et al. 2023, arXiv:2305.10425)."""
    return jax.nn.relu(1 - beta * h)


def ipo(h: jax.Array, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """Azar et al. 2023, arXiv:2310.12036: h shall be 1 / (2 beta), no more. Take it with DPO(average=True)."""
    return (h - 1 / (2 * beta)) ** 2


FORMS = (sigmoid, robust, hinge, ipo)
SMOOTHED = (sigmoid, robust)  # those that take label smoothing


@dataclasses.dataclass(frozen=True)
class DPO:
    """Task.loss of a causal language model whose first copy stands in the collection `reference`."""

    beta: float = 0.1  # how dear it is to leave the reference
    label_smoothing: float = 0.0  # share of wrong preferences; for SMOOTHED
    average: bool = False  # log-probabilities per token instead of sums: IPO as TRL computes it
    form: Callable = sigmoid  # one of FORMS

    def __post_init__(self):
        if self.label_smoothing and self.form in FORMS and self.form not in SMOOTHED:
            taken = " and ".join(form.__name__ for form in SMOOTHED)
            raise ValueError(
                f"form {self.form.__name__} takes no label_smoothing, got {self.label_smoothing}: set it to 0, or take "
                f"one of the forms that do, {taken}"
            )
        if not 0 <= self.label_smoothing < (0.5 if self.form is robust else 1):
            raise ValueError(
                "label_smoothing is the share of preferences that are the wrong way round, "
                + (
                    "below 0.5 for robust, which divides by 1 - 2 label_smoothing"
                    if self.form is robust
                    else "in [0, 1)"
                )
                + f", got {self.label_smoothing}"
            )

    def __call__(self, model: Any, variables: dict, batch: dict, rng: jax.Array, step: jax.Array):
        """batch: input_ids int, attention_mask bool and spoken bool [B T] (see `sft`), and the same with
        reward.REJECTED."""
        rows = reward.side_by_side(batch, ENTRIES)
        rows["labels"] = sft.labels_of(rows["input_ids"], rows["spoken"])
        # A row without an answer has the log-probability 0, and not 0 / 0.
        tokens = jnp.maximum(log_probs.counted(rows).sum(-1), 1) if self.average else 1

        def answers(params: dict) -> jax.Array:  # -> [2B]
            return log_probs.of_labels(model, params, rows).sum(-1) / tokens

        # beta log(policy / reference), but for beta: what the policy thinks of each answer
        chosen, rejected = reward.apart(answers(variables["params"]) - answers(variables["reference"]))
        value = self.form(chosen - rejected, self.beta, self.label_smoothing).mean()
        metrics = {
            "accuracy": (chosen > rejected).mean(),
            "chosen_reward": self.beta * chosen.mean(),
            "rejected_reward": self.beta * rejected.mean(),
        }
        return value, Aux(metrics, weight=jnp.float32(chosen.shape[0]))
