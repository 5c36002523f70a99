"""Where a run's numbers go: JSON lines, the console, and TensorBoard or Weights & Biases where they are.

metrics.jsonl depends on the experiment alone, so two runs of the same one can be compared with `diff`; what the clock
says goes to speed.jsonl.
"""

import hashlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

METRICS, EVALS, SPEED = "metrics.jsonl", "evals.jsonl", "speed.jsonl"
CHANCE = "_chance"  # ends the name of what a blind guess scores, as the evals write it


def read_lines(path: Path, last_step: int | None = None) -> list[dict]:
    """The whole lines of a file up to a step; what a kill cut off is left out."""
    parsed = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        if not line.endswith(b"}"):
            continue
        try:
            parsed.append(json.loads(line))
            step = parsed[-1]["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged at line {number} ({error}): mend or delete that line") from error
        if last_step is not None and step > last_step:
            parsed.pop()
    return parsed


def as_lines(numbers: Mapping[str, float]) -> str:
    """One line for each number, what a blind guess scores ("..._chance") beside it."""
    names = [name for name in numbers if not (name.endswith(CHANCE) and name.removesuffix(CHANCE) in numbers)]
    width = max(map(len, names), default=0)
    chances = {name: numbers.get(name + CHANCE) for name in names}
    beside = {name: "" if chance is None else f"   (chance {chance:.3g})" for name, chance in chances.items()}
    return "\n".join(f"  {name:<{width}}  {numbers[name]:.4g}{beside[name]}" for name in names)


class WriteError(OSError):
    """A file of numbers could not be written."""


class JSONL:
    """One object per line, in order of steps; lines after `last_step` are dropped: those steps will run again."""

    def __init__(self, path: Path, last_step: int):
        kept = read_lines(path, last_step)
        self.last: dict[str, Any] = kept[-1] if kept else {"step": 0}
        part = path.with_suffix(".part")
        try:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        except OSError as error:
            raise WriteError(f"cannot write {part}: {error.strerror}; {path} is as it was. Make room") from error
        part.replace(path)
        self._path, self._file = path, path.open("ab", buffering=0)  # a buffer would fail once more when it is closed

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        self.last = {"step": step, **numbers}
        line = f"{json.dumps(self.last)}\n".encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise WriteError(f"cannot write step {step} to {self._path}: {error.strerror}") from error

    def sync(self) -> None:
        """On the disk, before a checkpoint claims these steps."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError(f"cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()


class Console:
    """A bar with the time left on a terminal; elsewhere a line at most every `period` seconds."""

    def __init__(self, steps: int, start: int, period: float = 10.0):
        self._steps, self._period, self._last = steps, period, -math.inf
        self._bar = None
        if sys.stdout.isatty():
            from rich import progress

            text, bar = progress.TextColumn, progress.BarColumn()
            self._bar = progress.Progress(
                text("step {task.completed:,.0f}/{task.total:,.0f}"), bar, progress.TimeElapsedColumn(), text("left"),
                progress.TimeRemainingColumn(), text("{task.description}"),
            )  # fmt: skip
            self._task = self._bar.add_task("", total=steps, completed=start)
            self._bar.start()

    def metrics(self, step: int, numbers: Mapping[str, float], speed: Mapping[str, float]) -> None:
        shown = [f"{name} {numbers[name]:.4g}" for name in ("loss", "lr") if name in numbers]
        if "examples_per_second" in speed:
            shown.append(f"{speed['examples_per_second']:,.0f} examples/s")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description="  ".join(shown))
        elif time.monotonic() - self._last >= self._period or step == self._steps:
            left = [f"{seconds_as_text(speed['seconds_left'])} left"] if speed.get("seconds_left") else []
            self.say(f"step {step:,}/{self._steps:,}  " + "  ".join(shown + left))
            self._last = time.monotonic()

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def seconds_as_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class TensorBoard:
    def __init__(self, folder: Path, last_step: int):
        from tensorboardX import SummaryWriter

        # Events after the last checkpoint belong to steps that will be run again.
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else None)

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    def __init__(self, folder: Path, config: Mapping[str, Any]):
        if importlib.util.find_spec("wandb") is None:
            raise ValueError("Weights & Biases was asked for, but is not installed: pip install 'mmjax[wandb]'")
        import wandb

        # The same folder is the same run, also when it is resumed.
        mark = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(dir=str(folder), name=folder.name, id=mark, resume="allow", config=dict(config))

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class Writers:
    """All of them, as one; on processes other than 0 it writes nothing."""

    def __init__(self, folder: Path, start: int, steps: int, config: Mapping[str, Any], *, primary: bool, wandb: bool):
        self._folder = folder
        self._files: dict[str, JSONL] = {}
        self._boards: list[Any] = []
        self.console = Console(steps, start) if primary else None
        if not primary:
            return
        self._files = {name: JSONL(folder / name, start) for name in (METRICS, EVALS, SPEED)}
        if importlib.util.find_spec("tensorboardX") is not None:
            self._boards.append(TensorBoard(folder / "tensorboard", start))
        if wandb:
            self._boards.append(WandB(folder, config))

    def write(self, file: str, step: int, numbers: Mapping[str, Any]) -> None:
        """`file` is METRICS, EVALS or SPEED."""
        if file in self._files:
            self._files[file].write(step, numbers)
        prefix = {METRICS: "train", EVALS: "eval", SPEED: "speed"}[file]
        for board in self._boards:
            board.write(step, {f"{prefix}/{name}": value for name, value in numbers.items()})

    def last(self, file: str) -> dict[str, float]:
        """The numbers written last, in this run or before it was resumed."""
        line = self._files[file].last if file in self._files else {}
        return {name: value for name, value in line.items() if name != "step"}

    def last_step(self, file: str) -> int:
        return self._files[file].last["step"] if file in self._files else 0

    def progress(self, step: int, numbers: Mapping[str, float], speed: Mapping[str, float]) -> None:
        if self.console is not None:
            self.console.metrics(step, numbers, speed)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """pictures/<step>/<title>.png, from uint8 [H W 3], or [T H W 3] that moves; no name of a file holds "/"."""
        if self.console is None or not pictures:
            return
        from mmjax.ops import images as image_ops

        folder = self._folder / "pictures" / str(step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for title, pixels in pictures.items():
                image_ops.save_png(pixels, folder / f"{title.replace('/', '-')}.png")
        except OSError as error:
            raise WriteError(f"cannot write the pictures of step {step} to {folder}: {error.strerror}") from error

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.say(text)

    def sync(self) -> None:
        for file in self._files.values():
            file.sync()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *error: object) -> None:
        for one in (*self._files.values(), *self._boards, self.console):
            if one is not None:
                one.close()
