"""What a file in experiments/ returns: a task, its data, an optimizer, and how long."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from mmjax.parallel import rules as sharding_rules
from mmjax.parallel.mesh import MeshShape
from mmjax.train.optim import Optimizer
from mmjax.train.task import Task


class Source(NamedTuple):
    """Weights to start from: the subtree `take` of another run's variables becomes the subtree `to` of ours.

    `run` is the stem of an experiment (its run of the same size, or of the size behind a dash: "vit_scenes-small"), a
    run folder, or a folder of Hugging Face weights.
    Paths start at the variables: "params/vision"; "" is all of them. A frozen network goes to a collection of its own:
    Source("vqvae_emoji", to="tokenizer").
    """

    run: str
    take: str = ""
    to: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run, wired from Python objects; every field can be changed with `--set field.inner=value`."""

    task: Task
    data: Any  # a mmjax.data.pipeline.Data
    optimizer: Optimizer
    steps: int  # optimizer updates
    batch_size: int  # of the global batch
    evals: tuple[
        Callable, ...
    ] = ()  # each (model, variables, data, rng) -> Result; every eval_every steps and at the end
    final_evals: tuple[Callable, ...] = ()  # once, at the end: what must not be used to make choices
    sample: Callable | None = None  # (model, variables, request, data, rng) -> Answer
    init_from: tuple[Source, ...] = ()
    mesh: MeshShape = MeshShape()
    rules: tuple[sharding_rules.Rule, ...] = sharding_rules.DEFAULT
    accumulate: int = 1  # micro-batches per update; equal to the whole batch, or refused
    seed: int = 0
    checkpoints: str = ""  # where they go instead of the run folder, such as gs://BUCKET/run; all hosts must reach it
    save_every: int = 500  # steps, like the two below
    eval_every: int = 500
    log_every: int = 10

    def __post_init__(self):
        for field in ("steps", "batch_size", "accumulate", "save_every", "eval_every", "log_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be from 0 to 2**31 - 1, got {self.seed}")
        if self.steps % self.task.updates:
            raise ValueError(
                f"steps counts optimizer updates and must be a multiple of task.updates={self.task.updates} "
                f"(updates per prepared batch), got {self.steps}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} does not divide into accumulate={self.accumulate} parts")
