"""What the objectives share: how likely a model finds the tokens of its rows, and means over those that count.

B rows, T tokens. All values of tokens stand where the token is PREDICTED: entry t belongs to the token t + 1, and
`labels[:, t]` is its id, IGNORED where it doesn't count. That is where the log-probability, the value and the advantage
of a token meet without an offset.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.ops.cross_entropy import IGNORED, linear_nll

NAMES = ("input_ids", "attention_mask", "positions", "segments")  # what a causal language model is called with


def of_labels(model: Any, params: dict, batch: dict, temperature: float = 1.0) -> jax.Array:
    """log p(batch["labels"]) float32 [B T], 0 where the label is IGNORED; of softmax(logits / temperature)."""
    hidden = model.apply({"params": params}, *(batch.get(name) for name in NAMES)).last_hidden_state
    return -linear_nll(hidden / temperature, model.head(params), batch["labels"])


def counted(batch: dict) -> jax.Array:  # -> bool [B T]
    return batch["labels"] != IGNORED


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x where mask is True; 0 where nothing counts."""
    return jnp.where(mask, x, 0).sum() / jnp.maximum(mask.sum(), 1)


def masked_variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Around the masked mean, with Bessel's correction as in TRL."""
    count = jnp.maximum(mask.sum(), 2)
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask) * count / (count - 1)
