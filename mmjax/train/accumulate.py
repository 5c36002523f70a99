"""Gradients of the global batch in one pass, or exactly the same ones from micro-batches.

All take (task, trained, variables, batch, rng, step), `trained` being the trainable part of the parameters, and give
(value, Aux, gradients of `trained`). A micro-batch is every A-th row, so that each device keeps the rows it holds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.nn.outputs import Aux
from mmjax.ops.sharding import BATCH, constrain
from mmjax.train import trees
from mmjax.train.task import Batch, Task, Variables

Gradients = Callable[[Task, dict, Variables, Batch, jax.Array, jax.Array], tuple[jax.Array, Aux, dict]]


def whole(task: Task, trained: dict, variables: Variables, batch: Batch, rng: jax.Array, step: jax.Array):
    """The batch at once."""

    def loss(trained: dict) -> tuple[jax.Array, Aux]:
        return checked(*task.loss(task.model, with_params(variables, trained), batch, rng, step))

    (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    return value, aux, gradients


def cached(parts: int) -> Gradients:
    """For losses across the batch: all embeddings first, the loss on them, then each row's gradient from its
    embedding's (Gao et al. 2021, arXiv:2101.06983). Memory of one micro-batch, and one more forward pass."""

    def run(task: Task, trained: dict, variables: Variables, batch: Batch, rng: jax.Array, step: jax.Array):
        embed, loss_of_embeddings = task.cached
        micro, numbers = split(batch, parts), jnp.arange(parts)

        def embed_part(trained: dict, part: Batch, number: jax.Array) -> Any:
            # Both passes must draw the same numbers, so the key depends on the part alone.
            return embed(task.model, with_params(variables, trained), part, jax.random.fold_in(rng, number), step)

        def loss(trained: dict, embeddings: Any) -> tuple[jax.Array, Aux]:
            return checked(*loss_of_embeddings(task.model, with_params(variables, trained), embeddings, batch, step))

        embeddings = join(jax.lax.map(lambda one: embed_part(trained, *one), (micro, numbers)))
        (value, aux), (direct, at_embeddings) = jax.value_and_grad(loss, (0, 1), has_aux=True)(trained, embeddings)

        def add(total: dict, one: tuple) -> tuple[dict, None]:
            part, number, cotangent = one
            _, pull = jax.vjp(lambda trained: embed_part(trained, part, number), trained)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        gradients, _ = jax.lax.scan(add, direct, (micro, numbers, split(at_embeddings, parts)))
        return value, aux, gradients

    return run


def weighted(parts: int) -> Gradients:
    """For means over rows or tokens: sum(w g) / sum(w), w being each micro-batch's Aux.weight."""

    def run(task: Task, trained: dict, variables: Variables, batch: Batch, rng: jax.Array, step: jax.Array):
        def one(part: Batch, number: jax.Array) -> tuple:
            value, aux, gradients = whole(task, trained, variables, part, jax.random.fold_in(rng, number), step)
            if aux.weight is None:
                raise ValueError(
                    f"accumulate={parts} would change this loss, which looks across the batch (its Aux has no weight): "
                    "set accumulate=1, give the Task `cached`, or return Aux(weight=what the mean divides by)"
                )
            if aux.collections:
                raise ValueError(
                    f"accumulate={parts} would change the collections {', '.join(aux.collections)} once per "
                    "micro-batch, which is not what the whole batch does; set accumulate=1 or give the Task `cached`"
                )
            return aux.weight.astype(jnp.float32), (value, dict(aux.metrics), gradients)

        def add(total: tuple, one_part: tuple) -> tuple[tuple, None]:
            weight, means = one(*one_part)
            sums = jax.tree.map(lambda x: weight * x.astype(jnp.float32), means)
            return jax.tree.map(jnp.add, total, (weight, sums)), None

        micro, numbers = split(batch, parts), jnp.arange(parts)
        shapes = jax.eval_shape(lambda: one(jax.tree.map(lambda x: x[0], micro), numbers[0]))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        (weight, sums), _ = jax.lax.scan(add, zero, (micro, numbers))
        # A batch in which nothing counts (weight 0) has no gradient, not 0 / 0.
        means = jax.tree.map(lambda x: x / jnp.where(weight > 0, weight, 1.0), sums)
        value, metrics, gradients = jax.tree.map(lambda x, like: x.astype(like.dtype), means, shapes[1])
        return value, Aux(metrics, weight=weight), gradients

    return run


def choose(task: Task, parts: int) -> Gradients:
    if parts == 1:
        return whole
    return cached(parts) if task.cached else weighted(parts)


def checked(value: jax.Array, aux: Aux) -> tuple[jax.Array, Aux]:
    """What a loss returned, if it is what a loss returns."""
    if jnp.shape(value) != ():
        raise ValueError(f"task.loss must return one number over the global batch, got shape {list(value.shape)}")
    for name, metric in aux.metrics.items():
        if jnp.shape(metric) != ():
            raise ValueError(f"the metric {name!r} must be one number, got shape {list(jnp.shape(metric))}")
    if "params" in aux.collections:
        raise ValueError("Aux.collections must not hold 'params': those belong to the optimizer and Task.after_update")
    return value, aux


def with_params(variables: Variables, trained: dict) -> Variables:
    return {**variables, "params": trees.merge(variables["params"], trained)}


def split(tree: Any, parts: int) -> Any:
    """[B ...] -> [A B/A ...] at each leaf."""

    def one(path: str, x: jax.Array) -> jax.Array:
        if x.ndim == 0 or x.shape[0] % parts:
            raise ValueError(
                f"accumulate={parts} splits the first axis of each batch entry, but {path} is {list(x.shape)}"
            )
        return constrain(rearrange(x, "(b a) ... -> a b ...", a=parts), None, BATCH)

    return trees.map_paths(one, tree)


def join(tree: Any) -> Any:
    """[A B/A ...] -> [B ...], the rows in the order that `split` found."""
    return jax.tree.map(lambda x: constrain(rearrange(x, "a b ... -> (b a) ..."), BATCH), tree)
