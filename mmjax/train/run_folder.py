"""A run's folder: what was asked for, and a copy of the file that says how.

config.json     file, its sha256, size, overrides, versions
<stem>.py       a copy of the experiment file, from which eval, sample and --resume rebuild the experiment
metrics.jsonl evals.jsonl speed.jsonl pictures/ checkpoints/ report.html
"""

import ast
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mmjax.train import overrides as settings
from mmjax.train.experiment import Experiment

CONFIG = "config.json"
SOURCE = (":(top)", ":(top,exclude)experiments/*.jsonl")  # recorded numbers change no run
PACKAGES = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Recipe(NamedTuple):
    """Where an experiment comes from."""

    file: Path
    size: str = "small"
    overrides: tuple[str, ...] = ()

    def build(self) -> Experiment:
        return settings.load_experiment(self.file, self.size, self.overrides)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(Path(self.file).read_bytes()).hexdigest()


def default(recipe: Recipe) -> Path:
    return Path("runs") / f"{Path(recipe.file).stem}-{recipe.size}"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run; Hugging Face folders have a config.json too, but no sha256 in it."""
    return (folder / CONFIG).is_file() and "sha256" in _read(folder / CONFIG)


def config(folder: str | Path) -> dict[str, Any]:
    folder = Path(folder)
    if not folder.is_dir() or not is_run(folder):
        raise FileNotFoundError(f"{folder} is no run folder (it has no {CONFIG} of a run); make one with `mmjax train`")
    return _read(folder / CONFIG)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or train anew in another folder") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}: restore it")
    return found


def checkpoints(folder: str | Path) -> str | Path:
    """Where a run's checkpoints lie: in its folder, unless Experiment.checkpoints said otherwise."""
    return (is_run(Path(folder)) and config(folder).get("checkpoints")) or Path(folder) / "checkpoints"


def recipe(folder: str | Path) -> Recipe:
    """The recipe of a run, with the copy of its file."""
    asked = config(folder)
    if asked["file"] is None:
        raise ValueError(f"{folder} was trained without an experiment file, so there is none to rebuild it from")
    copy = Path(folder) / Path(asked["file"]).name
    found = Recipe(copy, asked["size"], tuple(asked["overrides"]))
    if found.sha256 != asked["sha256"]:
        raise ValueError(f"{copy} has changed since the run began (its sha256 is not that of {CONFIG}); restore it")
    return found


def rebuild(folder: str | Path) -> Experiment:
    """The experiment that a run trains."""
    return recipe(folder).build()


def in_use(folder: Path, recipe: Recipe | None, resume: bool) -> bool:
    """Whether a folder holds a run; an error unless it is to be resumed and was started from the same recipe."""
    if not (folder / CONFIG).exists() and not (folder / "checkpoints").exists():
        return False
    if not resume:
        raise FileExistsError(f"{folder} holds a run already: pass --resume to go on, or another --workdir")
    if recipe is not None:
        _check_same(folder, recipe)
    return True


def begin(folder: Path, described: dict[str, Any], recipe: Recipe | None, resume: bool) -> None:
    """Makes a run's folder, if it is not one that is resumed. By process 0."""
    if in_use(folder, recipe, resume):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        shutil.copyfile(recipe.file, folder / Path(recipe.file).name)
    part = folder / f"{CONFIG}.part"
    part.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(folder / CONFIG)


def _check_same(folder: Path, asked: Recipe) -> None:
    before = config(folder)
    if missing := {"file", "sha256", "size", "overrides"} - before.keys():
        raise ValueError(f"{folder / CONFIG} lacks {', '.join(sorted(missing))}: restore it")
    now = {
        "file": Path(asked.file).name,
        "sha256": asked.sha256,
        "size": asked.size,
        "overrides": list(asked.overrides),
    }
    for field, value in now.items():
        was = Path(before["file"]).name if field == "file" and before["file"] else before[field]
        if was != value:
            raise ValueError(
                f"{folder} was started with {field} {was!r}, now it is {value!r}: a resumed run must be the same; "
                "undo the change or take another --workdir"
            )


def describe(experiment: Experiment, recipe: Recipe | None) -> dict[str, Any]:
    """What config.json holds. Runs without a file (notebooks) can be resumed and read, not rebuilt."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    about = ast.get_docstring(ast.parse(Path(recipe.file).read_text(encoding="utf-8"))) if recipe else None
    return {
        "about": (about or "").split("\n")[0],
        "stem": Path(recipe.file).stem if recipe else None,
        "file": str(recipe.file) if recipe else None,
        "sha256": recipe.sha256 if recipe else None,
        "size": recipe.size if recipe else None,
        "overrides": list(recipe.overrides) if recipe else [],
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "seed": experiment.seed,
        "serve": experiment.task.serve,
        "checkpoints": _absolute(experiment.checkpoints),
        "commit": commit(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "versions": versions,
    }


def with_makers(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """`described`, with the commits and devices that began the run beside those that go on with it."""
    before = config(folder)
    both = {name: dict.fromkeys([before[name], described[name]]) for name in ("commit", "devices")}
    return described | {name: ", ".join(str(one) for one in values) for name, values in both.items()}


def _absolute(place: str) -> str:
    """Found again from any directory; "" is the run folder."""
    return place if not place or "://" in place else os.path.abspath(place)


def can_record(path: Path) -> None:
    """An error before hours of work, rather than after it."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--record writes {path}, but there is no folder {path.parent}/: run it in the clone")


def append(path: Path, line: dict[str, Any], same: Sequence[str] = ()) -> None:
    """Adds a line, with today's date, to a file of recorded numbers, unless one there agrees in all of `same`."""
    lines = path.read_text(encoding="utf-8").splitlines() if same and path.exists() else []
    known = [json.loads(one) for one in lines]
    if any(all(old[name] == line[name] for name in same) for old in known):
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "date": today}, ensure_ascii=False) + "\n")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a clone without installing
        return None


def commit() -> str | None:
    """The commit of the source that runs, with "+" where files differ from it; None outside of a clone."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    return f"{head}+" if head and git("status", "--porcelain", "--untracked-files=no", "--", *SOURCE) else head
