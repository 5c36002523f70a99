"""What a step changes, and where it lies: parameters and collections, optimizer slots, the number of updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax.parallel import rules
from mmjax.train import trees
from mmjax.train.experiment import Experiment
from mmjax.train.task import Variables


class TrainState(NamedTuple):
    step: jax.Array  # int32 scalar: updates made so far
    variables: Variables  # collections; "params" is what the optimizer may touch
    opt_state: Any  # slots of the trainable parameters only


def new(experiment: Experiment, variables: Variables) -> TrainState:
    """The state before the first update."""
    trained = trees.select(variables["params"], experiment.task.trainable)
    if not trained:
        raise ValueError(f"task.trainable={experiment.task.trainable!r} matches no parameter")
    optimizer = experiment.optimizer.build(experiment.steps, trained)
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(trained))


def placed(experiment: Experiment, mesh: Mesh, tree: Any) -> Any:
    """`tree` (of arrays or ShapeDtypeStructs) as ShapeDtypeStructs that lie on the mesh by the experiment's rules.

    Slots and averaged copies carry their parameter's path inside their own, so the same rules place them beside it.
    """
    where = rules.shardings(mesh, experiment.rules, tree)
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, where)
