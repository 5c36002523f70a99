"""What a model remembers of a text of any length, for the tasks of `data/recall.py`.

Metrics, for each length L:
    length_L/accuracy    share of the answers that are right; 1 / (number of letters) by chance
    length_L/all_right   share of the texts of which all answers are right
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.nn.outputs import Answer, Request, Result
from mmjax.ops.cross_entropy import IGNORED


@functools.partial(jax.jit, static_argnames="model")
def likeliest(model: Any, variables: dict, input_ids: jax.Array) -> jax.Array:
    """int [B L], the id that the model finds likeliest at each token."""
    return jnp.argmax(model.apply(variables, input_ids).logits, -1)


@dataclasses.dataclass(frozen=True)
class Recall:
    """Of `data.questions(rows, length)` for each length; the model reads at most `tokens` tokens at a time."""

    lengths: tuple[int, ...]
    rows: int = 128
    tokens: int = 2**14

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        metrics = {}
        for length in self.lengths:
            batch = data.questions(self.rows, length)
            ids, labels = batch["input_ids"], batch["labels"]
            parts = np.array_split(ids, max(-(-ids.size // self.tokens), 1))
            said = np.concatenate([likeliest(model, variables, part) for part in parts])
            right, asked = said == labels, labels != IGNORED
            metrics[f"length_{length}/accuracy"] = float(right[asked].mean())
            metrics[f"length_{length}/all_right"] = float((right | ~asked).all(1).mean())
        return Result(metrics)


@dataclasses.dataclass(frozen=True)
class Recalling:
    """An Experiment's `sample`: what the model answers to texts written as in `data/recall.py`."""

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        if not request.texts:
            example = data.write(data.questions(1, min(data.length, 24))["input_ids"][0])
            raise ValueError(f"there is nothing to remember; give a text, such as '{example}'")
        lines = []
        for text in request.texts:
            ids = data.prompt(text)
            said = np.asarray(likeliest(model, variables, ids[None]))[0]
            lines.append(f"{data.write(ids)} {data.write(said[data.asked(ids)])}")
        return Answer("\n".join(lines))
