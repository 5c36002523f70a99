"""What pictures cost: python -m experiments._pictures [--record], after the chapter pictures

    autoregressive_emoji in its ways, var_emoji, mar_emoji, frequency_emoji    one row each

Operations of the whole training, with the frozen tokenizer's, and parameters: about equal, so that what was drawn can
be compared. Then what a picture costs: how often the network is called for it (`calls`; of diffusion heads
`head_calls`), operations, and milliseconds when 100 are drawn at once, guided, on this machine.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import _study
from mmjax.data import pipeline
from mmjax.models import autoregressive, frequency, mar
from mmjax.nn.outputs import Result
from mmjax.parallel import flops
from mmjax.train import run_folder, trees

ROWS = 100  # pictures at once
WAYS = (
    "",
    "_random_causal",
    "_raster_sets",
    "_sets",
    "_mar",
    "_mar_raster",
    "_mar_causal",
    "_mar_raster_causal",
    "_pixels",
)
BANDS = ("", "_reversed", "_shuffled", "_values", "_values_reversed", "_cosines", "_raster")


def names(runs: Path, size: str) -> Iterator[Path]:
    found = [f"autoregressive_emoji-{size}{way}" for way in WAYS] + [f"{stem}_emoji-{size}" for stem in ("var", "mar")]
    found += [f"frequency_emoji-{size}{way}" for way in BANDS]
    return (runs / name for name in found if (runs / name).exists())


def calls(model: Any, draw: Any) -> tuple[int, int]:
    """How often the network is called for a picture, without guidance, and how often a head of it that diffuses."""
    config = model.config
    if isinstance(model, mar.MAR):
        how = draw.__self__.how
        return how.steps, how.steps * how.noise_steps
    if isinstance(model, autoregressive.Picture):
        head = config.head(width=config.width)
        return draw.steps, draw.steps * getattr(head, "noise_steps", 0)
    if isinstance(model, frequency.Frequency):
        bands = len(config.tokenizer.layout.sizes)
        return bands, bands * getattr(config.head(config), "noise_steps", 0)
    return len(config.tokenizer.scales), 0


def training(experiment: Any, variables: dict) -> float:
    """Operations of all steps."""
    batch = pipeline.spec(experiment.data, experiment.batch_size)

    def loss(params: Any, variables: dict, batch: dict) -> jax.Array:
        model, rng = experiment.task.model, jax.random.key(0)
        return experiment.task.loss(model, {**variables, "params": params}, batch, rng, 0)[0]

    traced = jax.jit(jax.grad(loss)).trace(variables["params"], variables, batch)
    return flops.count(traced.jaxpr) * experiment.steps


def cost(run: Path) -> Result:
    experiment, (model, variables, data) = run_folder.rebuild(run), _study.load(run)
    draw = next(one.draw for one in experiment.final_evals if hasattr(one, "draw"))
    _, labels = data.drawings("validation")
    inputs = variables, jax.random.key(0), data.label(labels.take(slice(0, ROWS)))
    lowered = jax.jit(lambda *inputs: draw(model, *inputs)).trace(*inputs)
    program, seconds = lowered.lower().compile(), []
    for _ in range(4):
        begin = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        seconds.append(time.perf_counter() - begin)
    network, head = calls(model, draw)
    return Result({
        "parameters": sum(np.size(x) for x in trees.leaves(variables["params"]).values()),
        "training_tflop": training(experiment, variables) / 1e12, "calls": network, "head_calls": head,
        "picture_gflop": flops.count(lowered.jaxpr) / ROWS / 1e9,
        "picture_milliseconds": 1e3 * statistics.median(seconds[1:]) / ROWS,
    })  # fmt: skip


def measure(runs: Path, size: str) -> dict[str, Result]:
    found = {run.name: cost(run) for run in names(runs, size)}
    if not found:
        raise FileNotFoundError(
            f"{runs} holds no run of a generator; train them: python -m experiments._chapters pictures"
        )
    return found


if __name__ == "__main__":
    _study.main("pictures", __doc__, measure)
