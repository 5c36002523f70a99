"""Supervised fine-tuning: the loss of pretraining, on what the assistant says and on nothing else.

Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, section 3.5. B rows, T tokens.

    user: "which group has fox?"  assistant: "animals & nature" <end>
                                              1 1 1 1 1 1 1 1     1     `spoken`: these tokens are learned
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.nn.outputs import Aux
from mmjax.objectives import pretrain
from mmjax.ops.cross_entropy import IGNORED, next_tokens


def labels_of(input_ids: jax.Array, spoken: jax.Array) -> jax.Array:
    """[B T] int; spoken [B T] bool: the assistant wrote this token -> labels [B T].

    The end of each of its turns has to be among them, or the model never learns to stop. Rows may hold many turns.
    """
    return jnp.where(jnp.roll(spoken, -1, axis=1), next_tokens(input_ids), IGNORED)


def loss(model: Any, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """batch: input_ids int [B T], spoken bool [B T] (see `labels_of`), and as in `pretrain` attention_mask, positions,
    segments. The mean is over all spoken tokens of the global batch."""
    return pretrain.of_labels(model, variables, {**batch, "labels": labels_of(batch["input_ids"], batch["spoken"])})
