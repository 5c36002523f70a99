"""Studies: measurements that look at several trained runs and train nothing themselves.

    runs/clip_emoji-small, runs/dino_emoji-small -load-> models -study-> runs/STUDY/report.html, results.jsonl

`python -m experiments._encoders --help` and its like say which runs a study reads and which command trains them.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mmjax.nn.outputs import Result
from mmjax.report import page
from mmjax.train import checkpoint, logging, run_folder, step

RECORDS = Path("experiments/results.jsonl")


class Trained(NamedTuple):
    """What evals take of a run: eval(*trained, rng)."""

    model: Any
    variables: Any
    data: Any


def load(run: str | Path) -> Trained:
    """The end of a run, with the data that its evals read. Runs that are not there or not finished are refused."""
    stem, _, size = Path(run).name.partition("-")
    command = f"mmjax train experiments/{stem}.py --size {size} --resume --workdir {run}"
    if not run_folder.is_run(Path(run)):
        raise FileNotFoundError(f"{run} is no run folder; train it first: {command}")
    experiment = run_folder.rebuild(run)
    at = checkpoint.Checkpoints(run_folder.checkpoints(run)).find()
    if at != experiment.steps:
        raise ValueError(f"{run} has come to step {at or 0:,} of {experiment.steps:,}; finish it first: {command}")
    return Trained(experiment.task.model, checkpoint.load_variables(Path(run), experiment.task.serve), experiment.data)


def untrained(run: str | Path) -> Trained:
    """The network of a run folder as it was before its first step."""
    experiment = run_folder.rebuild(run)
    batch = experiment.data.batches(experiment.batch_size, experiment.seed)[0]
    variables = experiment.task.init(experiment.task.model, step.key(experiment.seed, "init"), batch, {})
    return Trained(experiment.task.model, variables, experiment.data)


def main(
    stem: str,
    about: str,
    measure: Callable[[Path, str], Mapping[str, Result]],
    arguments: Sequence[str] | None = None,
    judge: Callable[[], str] | None = None,
) -> None:
    """Runs `measure(folder of the runs, their size)`, and prints and writes down what it found: {row: Result}, each a
    line of the records and a row of the README's table. Rows that are measured alike have metrics of the same names.
    judge: what tells the judge apart that gave the numbers."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are (default: %(default)s)")
    parser.add_argument("--size", default="small", help="which size of them (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help=f"add the numbers to {RECORDS}")
    asked = parser.parse_args(arguments)
    if asked.record:
        run_folder.can_record(RECORDS)
    begin = time.monotonic()
    found = measure(asked.runs, asked.size)
    seconds = round(time.monotonic() - begin, 1)
    for row, result in found.items():
        numbers = [f"{name} {page.number(x)}" for name, x in result.metrics.items() if not name.endswith(page.CHANCE)]
        print(f"{row}: {', '.join(numbers)}")
    print(write(asked.runs / f"{stem}-{asked.size}", about, found))
    if asked.record:
        known = {"stem": stem, "size": asked.size, "seed": 0, "commit": run_folder.commit(), "steps": 0}
        known |= {"devices": devices(), "seconds": seconds, "judge": judge and judge()}
        for row, result in found.items():
            run_folder.append(RECORDS, {**known, "overrides": [row], "metrics": dict(result.metrics)})


def write(folder: Path, about: str, found: Mapping[str, Result]) -> Path:
    """A folder with a report, as a run has one."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"about": about.splitlines()[0], "devices": devices()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with logging.Writers(folder, 0, 0, config, primary=True, wandb=False) as writers:
        numbers = {f"{row}/{name}": value for row, one in found.items() for name, value in one.metrics.items()}
        writers.write(logging.EVALS, 0, numbers)
        pictures = {f"{row} {title}": x for row, one in found.items() for title, x in one.pictures.items()}
        writers.pictures(0, pictures)
    return page.write(folder)


def devices() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].platform}"
