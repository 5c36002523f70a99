"""A system as the trainer sees it: a module, a loss, and what happens around a step."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

Variables = dict[str, Any]  # collection -> nested dict of arrays; "params" is what the optimizer may touch
Batch = dict[str, Any]  # name -> array, batch axis first


def init_model(model: nn.Module, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """Fresh variables of `model`, with every subtree found in `loaded` put in its place.

    `model.__call__` receives the entries of `batch` whose names are its parameters' names. Collections of `loaded` that
    the model does not have are kept as they are: a frozen tokenizer, a judge.
    """
    wanted = inspect.signature(type(model).__call__).parameters
    inputs = {name: batch[name] for name in wanted if name in batch}
    required = [
        name for name, one in wanted.items() if one.default is one.empty and one.kind == one.POSITIONAL_OR_KEYWORD
    ]
    if missing := [name for name in required if name != "self" and name not in inputs]:
        raise ValueError(
            f"{type(model).__name__}.__call__ needs {', '.join(missing)}, but the batch holds {', '.join(batch)}; "
            "rename the batch's entries, or give the Task an `init` of its own"
        )
    fresh = model.init(rng, **inputs)
    return {
        name: fill(fresh[name], loaded[name], name)
        if name in fresh and name in loaded
        else (fresh | dict(loaded))[name]
        for name in {**fresh, **loaded}
    }


def fill(fresh: Any, loaded: Any, path: str) -> Any:
    """`fresh` with the leaves that `loaded` has too taken from there; `path` names the place in errors."""
    if not isinstance(loaded, Mapping):
        if isinstance(fresh, Mapping) or fresh.shape != loaded.shape:
            found = "a subtree" if isinstance(fresh, Mapping) else list(fresh.shape)
            raise ValueError(f"init_from brings {path} {list(loaded.shape)}, but the model has {found} there")
        return loaded.astype(fresh.dtype)
    if not isinstance(fresh, Mapping):
        raise ValueError(
            f"init_from brings a subtree for {path}, but the model has one array {list(fresh.shape)} there"
        )
    if unknown := sorted(set(loaded) - set(fresh)):
        raise ValueError(
            f"init_from brings {path}/{unknown[0]}, which the model does not have (there: {', '.join(sorted(fresh))}); "
            "name the right subtree with Source(run, take, to)"
        )
    return {name: fill(one, loaded[name], f"{path}/{name}") if name in loaded else one for name, one in fresh.items()}


def keep(variables: Variables, step: jax.Array) -> Variables:
    """Changes nothing after an update."""
    return variables


def as_is(model: nn.Module, variables: Variables, batch: Batch, rng: jax.Array, step: int) -> Batch:
    """Prepares nothing: the batch of the pipeline is the batch of the loss."""
    return batch


@dataclasses.dataclass(frozen=True)
class Task:
    """Wired in an experiment from Python objects; the trainer never imports a model.

    `step` counts the updates made so far, from 0. All but `prepare` run under jit.
    """

    model: nn.Module  # parts that train together are submodules of one Module
    loss: Callable  # (model, variables, batch, rng, step) -> (scalar over the GLOBAL batch, Aux)
    trainable: str = ".*"  # regex over paths in variables["params"]; the rest gets no gradient and no optimizer slot
    init: Callable = init_model  # (model, rng, batch, loaded) -> variables; copies are made here, as NEW buffers
    after_update: Callable = keep  # (variables, step) -> variables: clamps, EMA of parameters
    prepare: Callable = as_is  # (model, variables, batch, rng, step) -> batch; outside jit: rollouts, rewards
    updates: int = 1  # optimizer updates per prepared batch; checkpoints only between batches
    # (embed, loss_of_embeddings), for exact accumulation of a loss that looks across the batch:
    # embed(model, variables, batch, rng, step) -> pytree of one embedding per row, and
    # loss_of_embeddings(model, variables, embeddings, batch, step) -> (scalar, Aux)
    cached: tuple[Callable, Callable] | None = None
    serve: str = "params"  # the copy that evals, sample and init_from read: "params" | "ema" | "teacher"
