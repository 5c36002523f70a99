"""A system as the trainer sees it: a module, a loss, and what happens around a step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

Variables = dict[str, Any]  # collection -> nested dict of arrays; "params" is what the optimizer may touch
Batch = dict[str, Any]  # name -> array, batch axis first


def init_model(model: nn.Module, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """Fresh variables of `model`, with every subtree found in `loaded` put in its place.

    `model.__call__` receives the entries of `batch` whose names are its parameters' names.
    """
    raise NotImplementedError  # written by the trainer


def keep(variables: Variables, step: jax.Array) -> Variables:
    """Changes nothing after an update."""
    return variables


def as_is(model: nn.Module, variables: Variables, batch: Batch, rng: jax.Array, step: int) -> Batch:
    """Prepares nothing: the batch of the pipeline is the batch of the loss."""
    return batch


@dataclasses.dataclass(frozen=True)
class Task:
    """Wired in an experiment from Python objects; the trainer never imports a model."""

    model: nn.Module  # parts that train together are submodules of one Module
    loss: Callable  # (model, variables, batch, rng, step) -> (scalar over the GLOBAL batch, Aux)
    trainable: str = ".*"  # regex over paths in variables["params"]; the rest gets no gradient and no optimizer slot
    init: Callable = init_model  # (model, rng, batch, loaded) -> variables; copies are made here, as NEW buffers
    after_update: Callable = keep  # (variables, step) -> variables: clamps, EMA of parameters
    prepare: Callable = as_is  # (model, variables, batch, rng, step) -> batch; outside jit: rollouts, rewards
    updates: int = 1  # optimizer updates per prepared batch; checkpoints only between batches
    cached: tuple[Callable, Callable] | None = None  # (embed, loss_of_embeddings): exact accumulation across the batch
    serve: str = "params"  # the copy that evals, sample and init_from read: "params" | "ema" | "teacher"
