"""Perplexity: exp of the mean negative log-likelihood of a text's tokens, given those before them.

Metrics of a split "held_out":
    held_out/perplexity      1 = knows every token; the size of the vocabulary = guesses
    held_out/bits_per_token
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mmjax.nn.outputs import Result
from mmjax.objectives import pretrain


@functools.partial(jax.jit, static_argnames="model")
def total(model: Any, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Sum of the negative log-likelihoods of a batch, and how many tokens that is of."""
    mean, aux = pretrain.loss(model, variables, batch, None, None)
    return mean * aux.weight, aux.weight


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Of `data.texts(split)`: rows as pretraining reads them, in batches of `rows`."""

    split: str
    rows: int = 32

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        texts = data.texts(self.split)
        short = -len(texts["input_ids"]) % self.rows  # rows of padding, so that one program serves all batches
        texts = {name: np.pad(x, ((0, short), (0, 0))) for name, x in texts.items()}
        sums = [
            total(model, variables, {name: x[i : i + self.rows] for name, x in texts.items()})
            for i in range(0, len(texts["input_ids"]), self.rows)
        ]
        nll, tokens = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
        bits = nll / tokens / np.log(2)
        return Result({f"{self.split}/perplexity": 2**bits, f"{self.split}/bits_per_token": bits})
