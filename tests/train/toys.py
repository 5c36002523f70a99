"""Toy systems of a few lines, for the trainer's tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.data import pipeline
from mmjax.nn.outputs import Aux
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


@dataclasses.dataclass(frozen=True)
class Points:
    """Rows `x` [B 8] of noise and `y` [B 4], a fixed function of them."""

    count: int = 64

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        x = np.random.default_rng(7).normal(size=(self.count, 8)).astype(np.float32)
        y = np.sin(x[:, :4] * 2 + x[:, 4:])

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> dict:
            noise = rng.normal(size=(len(indices), 8)).astype(np.float32) * 0.01
            return {"x": (x[indices] + noise)[rows], "y": y[indices][rows]}

        return pipeline.Batches(self.count, batch_size, seed, rows, make)


class Net(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B 8] -> [B 4]
        return nn.Dense(4, name="down")(nn.tanh(nn.Dense(self.width, name="up")(x)))


def regression(model, variables, batch, rng, step):
    """Rows count alike, so the mean divides by their number. Noise makes the loss depend on the step's key."""
    x = batch["x"] + 0.1 * jax.random.normal(rng, batch["x"].shape)
    error = jnp.mean((model.apply(variables, x) - batch["y"]) ** 2)
    return error, Aux({"error": error}, weight=jnp.float32(len(batch["x"])))


def experiment(**changes) -> Experiment:
    start = Experiment(
        Task(Net(), regression), Points(), AdamW(1e-2, weight_decay=0.1, clip=1.0), steps=6, batch_size=16,
        save_every=2, eval_every=3, log_every=1,
    )  # fmt: skip
    return dataclasses.replace(start, **changes)
