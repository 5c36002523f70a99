"""The one training loop: batches in; steps, numbers and checkpoints out. What was stopped can go on.

Every process of a run calls `train`; process 0 writes.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax import report
from mmjax.data import pipeline
from mmjax.nn.outputs import Result
from mmjax.parallel import distributed, flops
from mmjax.parallel.mesh import local_rows
from mmjax.train import checkpoint, run_folder, sources, speed, step
from mmjax.train.experiment import Experiment
from mmjax.train.logging import EVALS, METRICS, SPEED, WriteError, Writers, as_lines, seconds_as_text
from mmjax.train.state import TrainState
from mmjax.train.task import Batch, Variables

log = logging.getLogger(__name__)
FATAL = ("loss", "grad_norm")  # must stay finite
SPEED_PERIOD = 1.0  # seconds between lines of speed.jsonl


class Outcome(NamedTuple):
    """How a call of `train` ended."""

    state: TrainState
    metrics: dict[str, float]  # of the last evaluation
    stopped: bool  # by a signal, with a checkpoint saved


def train(
    experiment: Experiment,
    workdir: str | Path,
    *,
    recipe: run_folder.Recipe | None = None,
    resume: bool = False,
    load_hf: Callable[[Path], tuple[Any, Variables]] | None = None,
    runs: Path = Path("runs"),
    record: Path | None = None,
    wandb: bool = False,
    verify: bool = True,
    mesh: Mesh | None = None,
) -> Outcome:
    """Trains in the run folder `workdir`, from the start or, with `resume`, from its newest whole checkpoint.

    recipe: the file, size and overrides that `experiment` was built from. load_hf: reads the folders in init_from that
    are not runs. runs: where init_from looks for experiments by their stem. record: a JSON lines file that gets a line
    with the final numbers. verify: compare checkpoints with their checksums. mesh: instead of experiment.mesh.
    """
    speed.keep_freed_memory()
    workdir, primary = Path(workdir), jax.process_index() == 0
    checkpoints = checkpoint.Checkpoints(experiment.checkpoints or workdir / "checkpoints")
    if primary and run_folder.in_use(workdir, recipe, resume):
        checkpoints.clean()
    if primary and not resume:
        checkpoints.check_unused()
    start = checkpoints.find(verify) if resume else None
    if primary and resume and start is None:
        print(f"{workdir} holds nothing to resume: starting at step 0", flush=True)
    size = recipe.size if recipe else "small"
    load = lambda place: sources.load(experiment.init_from, size, runs=runs, load_hf=load_hf, place=place)  # noqa: E731
    runner, state = _start(experiment, mesh or experiment.mesh.build(), checkpoints, start, load)
    config = run_folder.describe(experiment, recipe)
    if primary:  # not before: a mistake that shows only now must not leave a folder that blocks the next try
        run_folder.begin(workdir, config, recipe, resume)
        config = run_folder.with_makers(workdir, config)
    distributed.barrier("run folder")
    with Writers(workdir, start or 0, experiment.steps, config, primary=primary, wandb=wandb) as writers:
        run = _Run(runner, workdir, checkpoints, writers)
        try:
            state, stopped = run.until_done(state, start or 0)
        except WriteError as error:
            raise WriteError(f"{error}; {run.newest()}. Make room, then --resume") from error
    if primary:
        try:
            print(f"report: {report.write(workdir)}", flush=True)
        except OSError as error:
            raise WriteError(f"cannot write the report of {workdir}: {error}; {run.newest()}") from error
        if record is not None and not stopped:
            judged = [one.judge() for one in (*experiment.evals, *experiment.final_evals) if hasattr(one, "judge")]
            write_record(record, config, run.meter.seconds, run.numbers, judged[0] if judged else None)
    return Outcome(state, run.numbers, stopped)


def _start(
    experiment: Experiment,
    mesh: Mesh,
    checkpoints: checkpoint.Checkpoints,
    start: int | None,
    load: Callable[[Callable], Variables],
) -> tuple[step.Step, TrainState]:
    """The step and the state before update `start`: restored, or new where there is no checkpoint."""
    if start is None:
        loaded = load(sources.placing(mesh, experiment.rules))
        runner = step.build(experiment, mesh, loaded)
        return runner, runner.init(runner.place(_batches(experiment, mesh)[0]), loaded)
    # Sources may be gone by now; what they brought stands in the checkpoint.
    variables = checkpoints.variables(start) if experiment.init_from else None
    runner = step.build(experiment, mesh, variables=variables)
    return runner, checkpoints.restore(start, runner.abstract, experiment.seed)


def _batches(experiment: Experiment, mesh: Mesh) -> Any:
    rows = local_rows(mesh, experiment.batch_size)
    return experiment.data.batches(experiment.batch_size, experiment.seed, rows)


class _Run:
    """One call of `train` between its first and its last step."""

    def __init__(self, runner: step.Step, workdir: Path, checkpoints: checkpoint.Checkpoints, writers: Writers):
        self.runner, self.experiment = runner, runner.experiment
        self.workdir, self.checkpoints, self.writers = workdir, checkpoints, writers
        self.numbers: dict[str, float] = writers.last(EVALS)
        self.meter = speed.Meter(
            self.experiment.batch_size / self.experiment.task.updates,
            self.experiment.steps,
            writers.last(SPEED).get("seconds", 0.0),
        )
        self.shown: dict[str, float] = {}  # the last numbers that were logged
        self.waited: Callable[[], float] = lambda: 0.0  # seconds that the steps so far have waited for data
        self._pending: tuple[int, step.Metrics] | None = None  # of the last step, which may still be running
        self._spoken = -math.inf

    def until_done(self, state: TrainState, number: int) -> tuple[TrainState, bool]:
        """Runs the updates after `number`; also says whether a signal stopped it."""
        experiment, updates = self.experiment, self.experiment.task.updates
        saved, missed = number, self._due(number, experiment.eval_every) and self.writers.last_step(EVALS) < number
        if number and distributed.first_says(
            "evaluated", missed
        ):  # the run was killed between this step's checkpoint and its evaluation
            self._evaluate(state, number)
        data = pipeline.prefetch(_batches(experiment, self.runner.mesh), number // updates, self.runner.place)
        self.waited = lambda: data.wait_seconds
        with data, Stop() as stop:
            while number < experiment.steps and not stop.asked(number // updates):
                batch = self.runner.prepare(state, next(data), number)
                for _ in range(updates):
                    state, metrics = self.runner.run(state, batch)
                    number += 1
                    self._log(number, metrics, batch)
                if self._due(number, experiment.save_every):
                    self._save(state, number)
                    saved = number
                if self._due(number, experiment.eval_every):
                    self._evaluate(state, number)
            if saved < number:
                self._save(state, number)
            self.checkpoints.wait()
        stopped, took = number < experiment.steps, seconds_as_text(self.meter.seconds)
        self.writers.say(f"stopped at step {number}, go on with --resume" if stopped else f"done in {took}")
        return state, stopped

    def _due(self, number: int, every: int) -> bool:
        """Whether a multiple of `every` lies among the updates of the last batch; the end is always due."""
        return number == self.experiment.steps or number // every > (number - self.experiment.task.updates) // every

    def _log(self, number: int, metrics: step.Metrics, batch: Batch) -> None:
        """Reads the step before, so that the devices have work while the numbers travel."""
        previous, self._pending = self._pending, (number, metrics)
        if previous is None:  # this one may have waited for the compiler
            jax.block_until_ready(metrics)
            self.meter.skip()
            self.meter.flops = self.meter.flops or _flops(self.runner, batch)
            return
        self._read(*previous)
        self.meter.tick()
        if time.monotonic() - self._spoken >= SPEED_PERIOD:
            self._report_speed(previous[0])

    def _read(self, number: int, metrics: step.Metrics, check: bool = False) -> None:
        due = number % self.experiment.log_every == 0 or number in (1, self.experiment.steps)
        if not (due or check):
            jax.block_until_ready(metrics)
            return
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check_finite(number, numbers)
        if due:
            self.shown = {"loss": numbers.pop("loss"), **numbers}
            self.writers.write(METRICS, number, self.shown)

    def _report_speed(self, number: int) -> None:
        self._spoken = time.monotonic()
        report = self.meter.read(number, self.waited())
        self.writers.write(SPEED, number, report)
        self.writers.progress(number, self.shown, report)

    def _drain(self) -> None:
        """Waits for the last step and writes its numbers."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(*pending, check=True)
            self.meter.tick()
            self._report_speed(pending[0])

    def _save(self, state: TrainState, number: int) -> None:
        self._drain()
        self.writers.sync()  # a checkpoint claims that the numbers up to it are on the disk
        self.checkpoints.save(state, self.experiment.seed)
        self.meter.skip()

    def _evaluate(self, state: TrainState, number: int) -> None:
        self._drain()
        experiment = self.experiment
        evals = experiment.evals + (experiment.final_evals if number == experiment.steps else ())
        if evals:
            result = evaluate(experiment, step.served(experiment.task.serve, state.variables), evals, number)
            self.numbers = dict(result.metrics)
            self.writers.pictures(number, result.pictures)
            self.writers.write(EVALS, number, self.numbers)  # last: it says that this evaluation is done
            self.writers.say(f"step {number:,}\n{as_lines(self.numbers)}")
        self.meter.skip()

    def _check_finite(self, number: int, numbers: Mapping[str, float]) -> None:
        for name in FATAL:
            if not math.isfinite(numbers[name]):
                raise ValueError(
                    f"{name} is {numbers[name]} at step {number} of {self.workdir}; {self.newest()}. Lower "
                    "optimizer.peak, raise optimizer.warmup or set optimizer.clip, and look at the data of the steps "
                    "before"
                )

    def newest(self) -> str:
        """What is left when a run breaks off."""
        self.checkpoints.wait()
        step = self.checkpoints.newest
        return f"the newest checkpoint is step {step}" if step is not None else "there is no checkpoint"


def evaluate(experiment: Experiment, variables: Variables, evals: Sequence[Callable], number: int) -> Result:
    """The numbers and pictures of all `evals` after update `number`; `variables` are those that the task serves, placed
    on the experiment's mesh (step.served, or checkpoint.load_variables)."""
    mesh = jax.tree.leaves(variables)[0].sharding.mesh
    metrics: dict[str, float] = {}
    pictures: dict[str, np.ndarray] = {}
    with jax.set_mesh(mesh):
        if jax.process_count() > 1:  # an eval reads what it computes, so each process needs all of it
            variables = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(variables)
        for index, one in enumerate(evals):
            rng = jax.random.fold_in(jax.random.fold_in(step.key(experiment.seed, "eval"), number), index)
            result = one(experiment.task.model, variables, experiment.data, rng)
            if twice := sorted(metrics.keys() & result.metrics.keys()):
                raise ValueError(f"two evals report {twice[0]!r}; give one of them another prefix")
            metrics |= {name: float(value) for name, value in result.metrics.items()}
            pictures |= result.pictures
    return Result(metrics, pictures)


def write_record(
    path: Path, config: Mapping[str, Any], seconds: float, metrics: Mapping[str, float], judge: str | None = None
) -> None:
    """Appends the line that the README's tables are made of, unless the same run wrote it before. judge: what tells the
    networks apart that judged what this one made."""
    known = {name: config[name] for name in ("stem", "size", "overrides", "seed", "commit", "steps", "devices")}
    line = {**known, "seconds": round(seconds, 1), "metrics": dict(metrics), "judge": judge}
    run_folder.append(path, line, same=("stem", "size", "overrides", "seed", "steps", "seconds", "metrics"))


def _flops(runner: step.Step, batch: Batch) -> float | None:
    """Of one update, where the devices' peak is known; counted on what the step traces to."""
    if speed.peak_flops(jax.devices()[0].device_kind) is None:
        return None
    return flops.count(runner.trace(jax.eval_shape(lambda: batch)).jaxpr)


class Stop:
    """Whether SIGTERM or Ctrl-C has come; a second one ends the process at once.

    With several processes JAX's own service listens for SIGTERM and agrees with the others on the step to stop at;
    Ctrl-C is passed on to it.
    """

    def __init__(self):
        self._asked, self._before = False, {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "Stop":
        if self._alone and threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be caught
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        elif threading.current_thread() is threading.main_thread():
            pass_on = lambda number, frame: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, pass_on)
        return self

    def _hear(self, number: int, frame: Any) -> None:
        self._asked = True
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, batches: int) -> bool:
        """`batches` made so far; counted one by one, because JAX agrees on one that is still to come."""
        if self._alone:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(batches)
