"""One update of an experiment as one jitted, donated function; `train` runs it and `plan` compiles the same object."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.data import pipeline
from mmjax.parallel.mesh import batch_sharding
from mmjax.train import accumulate, state, trees
from mmjax.train.experiment import Experiment
from mmjax.train.state import TrainState
from mmjax.train.task import Batch, Variables, as_is

Metrics = dict[str, jax.Array]  # flat; float scalars over the global batch
STREAMS = ("init", "step", "prepare", "eval")  # each draws its own numbers from the seed


def key(seed: int, stream: str) -> jax.Array:
    """The key of one of STREAMS; a step's own key is fold_in of it and the number of the step."""
    return jax.random.split(jax.random.key(seed), len(STREAMS))[STREAMS.index(stream)]


class Step:
    """An experiment on a mesh: `init` once, then `run` for every update."""

    def __init__(self, experiment: Experiment, mesh: Mesh, variables: Variables):
        """variables: of arrays or ShapeDtypeStructs; only shapes are read."""
        self.experiment, self.task, self.mesh = experiment, experiment.task, mesh
        self.batch_sharding = batch_sharding(mesh, experiment.batch_size)
        batch_sharding(mesh, experiment.batch_size // experiment.accumulate)  # micro-batches have to divide too
        fresh = jax.eval_shape(lambda: state.new(experiment, variables_like(variables)))
        self.abstract: TrainState = state.placed(experiment, mesh, fresh)  # shapes, types and places of the state
        self.shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        self._gradients = accumulate.choose(self.task, experiment.accumulate)
        self._rates = experiment.optimizer.rates(experiment.steps)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.update = jax.jit(self._update, donate_argnums=0, out_shardings=(self.shardings, self.replicated))
        self._key: jax.Array | None = None

    def init(self, batch: Batch, loaded: Variables | None = None) -> TrainState:
        """The first state, born in its shards. batch: a global batch; `loaded` is used up."""

        def first(rng: jax.Array, batch: Batch, loaded: Variables) -> TrainState:
            return strong(state.new(self.experiment, self.task.init(self.task.model, rng, batch, loaded)))

        with jax.set_mesh(self.mesh):
            make = jax.jit(first, out_shardings=self.shardings, donate_argnums=2)
            return make(key(self.experiment.seed, "init"), batch, loaded or {})

    def prepare(self, now: TrainState, batch: Batch, number: int) -> Batch:
        """What Task.prepare makes of a batch before update `number`, on the mesh. Nothing of it is traced."""
        if self.task.prepare is as_is:
            return batch
        rng = jax.random.fold_in(key(self.experiment.seed, "prepare"), number)
        with jax.set_mesh(self.mesh):
            return self.place(self.task.prepare(self.task.model, now.variables, batch, rng, number))

    def place(self, batch: Batch) -> Batch:
        """NumPy arrays hold this process's rows; arrays of JAX are global and stay if they lie on the mesh."""

        def one(x: Any) -> jax.Array:
            if not isinstance(x, jax.Array):
                return jax.make_array_from_process_local_data(self.batch_sharding, np.asarray(x))
            return (
                x if x.sharding.device_set == self.batch_sharding.device_set else jax.device_put(x, self.batch_sharding)
            )

        return jax.tree.map(one, batch)

    def run(self, now: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update. `now` is used up."""
        if self._key is None:
            self._key = jax.jit(lambda: key(self.experiment.seed, "step"), out_shardings=self.replicated)()
        with jax.set_mesh(self.mesh):
            return self.update(now, batch, self._key)

    def trace(self, batch_spec: dict[str, jax.ShapeDtypeStruct] | None = None) -> jax.stages.Traced:
        """The update for a batch of these global shapes (where None: what the data and Task.prepare make), without
        devices. Raises ValueError where Task.prepare reads values, which only a run has."""
        spec = self._spec() if batch_spec is None else batch_spec
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.batch_sharding), spec)
        seed_key = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: key(0, "step")).dtype, sharding=self.replicated)
        with jax.set_mesh(self.mesh):
            return self.update.trace(self.abstract, batch, seed_key)

    def _spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        spec = pipeline.spec(self.experiment.data, self.experiment.batch_size)
        if self.task.prepare is as_is:
            return spec
        rng = jax.eval_shape(lambda: key(0, "prepare"))
        try:
            with jax.set_mesh(self.mesh):
                return jax.eval_shape(
                    lambda variables, batch, rng: self.task.prepare(self.task.model, variables, batch, rng, 0),
                    self.abstract.variables, spec, rng,
                )  # fmt: skip
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError(
                f"Task.prepare ({type(self.task.prepare).__name__}) reads values on the host, so the shapes of what it "
                "makes are known only in a run, and there is nothing to trace"
            ) from error

    def lower(self, batch_spec: dict[str, jax.ShapeDtypeStruct] | None = None) -> jax.stages.Lowered:
        """`trace`, lowered for the mesh's devices."""
        with jax.set_mesh(self.mesh):
            return self.trace(batch_spec).lower()

    def _update(self, now: TrainState, batch: Batch, seed_key: jax.Array) -> tuple[TrainState, Metrics]:
        task, step, variables = self.task, now.step, now.variables
        trained = trees.select(variables["params"], task.trainable)
        rng = jax.random.fold_in(seed_key, step)
        value, aux, gradients = self._gradients(task, trained, variables, batch, rng, step)
        _check_same("Aux.collections", {**variables, **aux.collections}, variables)
        optimizer = self.experiment.optimizer.build(self.experiment.steps, trained)
        changes, opt_state = optimizer.update(gradients, now.opt_state, trained)
        moved = accumulate.with_params({**variables, **aux.collections}, optax.apply_updates(trained, changes))
        after = task.after_update(moved, step)
        _check_same("task.after_update", after, variables)
        metrics = {"loss": value, **aux.metrics, "grad_norm": optax.tree.norm(gradients)}
        metrics |= {name: rate(step) for name, rate in self._rates.items()}
        return strong(TrainState(step + 1, after, opt_state)), {
            name: jnp.asarray(one, jnp.float32) for name, one in metrics.items()
        }


def strong(tree: Any) -> Any:
    """No weak types: they are part of what jit compiles for, and the next update would compile again."""
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), tree)


def variables_like(variables: Variables) -> Variables:
    """Zeros to trace with, where only shapes matter."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)


def build(
    experiment: Experiment, mesh: Mesh, loaded: Variables | None = None, variables: Variables | None = None
) -> Step:
    """The step of `experiment` on `mesh`; computes nothing on its devices.

    loaded: what Task.init will receive; variables: those of a checkpoint, where there is one, instead. Shapes suffice.
    """
    return Step(experiment, mesh, first_variables(experiment, loaded) if variables is None else variables)


def first_variables(experiment: Experiment, loaded: Variables | None = None) -> Variables:
    """What Task.init makes, as ShapeDtypeStructs; nothing is computed."""
    spec = pipeline.spec(experiment.data, experiment.batch_size)
    task, rng = experiment.task, jax.eval_shape(lambda: key(0, "init"))
    return jax.eval_shape(lambda *inputs: task.init(task.model, *inputs), rng, spec, loaded or {})


def served(serve: str, variables: Variables) -> Variables:
    """Variables as evals, samplers and other experiments see them: "params" is the copy named by Task.serve."""
    if serve not in variables:
        raise ValueError(f"task.serve={serve!r} names no collection; the run has {', '.join(variables)}")
    return {**{name: one for name, one in variables.items() if name != serve}, "params": variables[serve]}


def _check_same(who: str, new: Variables, old: Variables) -> None:
    """A state that changes shape can neither be donated nor restored."""
    shapes = [{path: (x.shape, x.dtype) for path, x in trees.leaves(tree).items()} for tree in (old, new)]
    for path in sorted(shapes[0].keys() | shapes[1].keys()):
        was, now = (side.get(path) for side in shapes)
        if was != now:
            before, after = (f"{x[1]}{list(x[0])}" if x else "nothing" for x in (was, now))
            raise ValueError(f"{who} changed {path} from {before} to {after}; a step must keep every shape and type")
