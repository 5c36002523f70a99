"""Pretraining: each token from those before it.

Source: Radford et al. 2018 (GPT), equation 1; Touvron et al. 2023 (LLaMA), arXiv:2302.13971.
B rows, T tokens. Rows may be packed: several documents side by side, told apart by `segments`; attention does not reach
across, and no document predicts the first token of the next.

    input_ids [B T] -model-> hidden [B T D] -head, in chunks-> -log p of the next token, mean over those that have one
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.nn.outputs import Aux
from mmjax.objectives import log_probs
from mmjax.ops.cross_entropy import next_tokens


def loss(model: Any, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """batch: input_ids [B T], and where rows have them attention_mask bool, positions int and segments int, all [B T].

    The mean is over all tokens of the global batch, whatever the number of rows, devices or micro-batches: a mean of
    means would favour the tokens of short rows.
    """
    labels = next_tokens(batch["input_ids"], batch.get("attention_mask"), batch.get("segments"))
    return of_labels(model, variables, {**batch, "labels": labels})


def of_labels(model: Any, variables: dict, batch: dict) -> tuple[jax.Array, Aux]:
    """Mean negative log-likelihood of batch["labels"] [B T]."""
    count = log_probs.counted(batch).sum()
    value = -log_probs.of_labels(model, variables["params"], batch).sum() / jnp.maximum(count, 1)
    return value, Aux({}, weight=count)
