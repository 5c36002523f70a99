"""Checkpoints: one atomic step holds variables, optimizer slots, step and seed. The only file that knows Orbax.

    checkpoints/<step>/{variables,optimizer,progress}/...   written by Orbax, in the background, by all processes
    checkpoints/<step>/manifest.json                        size and sha256 of every file, written last by process 0

A step without a manifest is unfinished. Orbax keeps no checksums, so the manifest is what tells a damaged step from a
good one; both kinds of bad step are passed over with a warning. Folders may be anything that etils.epath opens.
"""

import concurrent.futures
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from mmjax.parallel import distributed
from mmjax.train import run_folder, trees
from mmjax.train.state import TrainState

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
THREADS = 8  # that read files while verifying; hashing leaves Python's lock
CHUNK = 1 << 22  # bytes
UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")  # Orbax's names for steps that it is writing
KEEP = 2  # finished steps: where the newest is damaged, the one before it is used
FULL = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]  # as Orbax's ValueErrors quote them

# Orbax logs, with a traceback, each error that it also raises.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())


class SaveError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """The steps saved in a folder. Every process of a run calls the same methods in the same order."""

    def __init__(self, folder: Any):
        # Orbax takes absolute paths only.
        self.folder = epath.Path(folder if "://" in str(folder) else os.path.abspath(folder))
        self.newest: int | None = None  # the last step known to be whole
        self._bad: set[int] = set()  # steps that `find` has passed over
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="mmjax-save")
        self._saving: concurrent.futures.Future | None = None

    def check_unused(self) -> None:
        """An error where another run's steps lie: they would be taken for this one's, or deleted as its old ones."""
        if self.folder.exists() and (steps := finished(self.folder)):
            raise FileExistsError(
                f"{self.folder} holds step {steps[-1]} of another run already: pass --resume to go on, or name another "
                "place with --set checkpoints=PLACE"
            )

    def save(self, state: TrainState, seed: int) -> None:
        """Copies the state, and writes it in the background; waits for the save before it, whose errors come here."""
        self.wait()
        step = int(state.step)
        content = {
            "variables": state.variables,
            "optimizer": trees.leaves(state.opt_state),  # by path: independent of optax's containers
            "progress": {"step": step, "seed": seed},
        }
        try:
            self._check_room(sum(x.nbytes for x in jax.tree.leaves(state)))
            # What lies at this step already is unfinished or damaged, or the run would have gone on from it.
            written = ocp.save_checkpointables_async(self.folder / str(step), content, overwrite=True)
        except Exception as error:
            raise self._failed(step, error) from error
        self._saving = self._thread.submit(self._finish, step, written)

    def _check_room(self, needed: int) -> None:
        """Before anything is written: a disk that is full half-way costs what it had room for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(str(self.folder)):  # buckets have no end
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({needed:,} bytes needed, {free:,} free)")

    def _finish(self, step: int, written: Any) -> None:
        try:
            written.result()
            if jax.process_index() == 0:
                write_manifest(self.folder / str(step))
        except Exception as error:
            raise self._failed(step, error) from error
        self.newest = step
        self._bad.discard(step)
        if jax.process_index() == 0:
            self._prune()

    def _prune(self) -> None:
        """Keeps KEEP good steps. Those that were passed over are no spare copies; they go once there are enough."""
        good = [one for one in finished(self.folder) if one <= self.newest and one not in self._bad]
        old = good[:-KEEP] + sorted(one for one in self._bad if len(good) >= KEEP and one < self.newest)
        for one in old:
            (self.folder / str(one) / MANIFEST).unlink(missing_ok=True)  # first: no half-deleted step looks whole
            (self.folder / str(one)).rmtree()
        self._bad.difference_update(old)

    def _failed(self, step: int, error: Exception) -> Exception:
        """A SaveError, if the file system is to blame."""
        reasons = [one for one in FULL if any(one in text for text in _causes(error))]
        if not isinstance(error, OSError) and not reasons:
            return error
        left = f"the checkpoint of step {self.newest} is intact" if self.newest is not None else "none was saved before"
        reason = error if isinstance(error, OSError) else reasons[0]
        return SaveError(f"cannot save step {step} to {self.folder}: {reason}; {left}. Make room, then --resume")

    def clean(self) -> None:
        """Removes what interrupted saves have left, and nothing else; not while anything is being saved."""
        if self.folder.exists():
            for path in self.folder.iterdir():
                if UNFINISHED.fullmatch(path.name):
                    path.rmtree()

    def wait(self) -> None:
        """Returns when nothing is being written; raises what went wrong."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def find(self, verify: bool = True) -> int | None:
        """The newest whole step, after a warning for each bad one that is newer; None where nothing was finished."""
        # Process 0 looks, because a shared folder need not show the same to all at the same moment.
        there = self.folder.exists() and jax.process_index() == 0
        names = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()] if there else []
        names, whole = distributed.first_says(
            "steps", (sorted(names, reverse=True), finished(self.folder) if there else [])
        )
        damaged = []
        for step in names:
            problem = (verify and self._problem(step)) if step in whole else "it is unfinished"
            if not problem:
                for bad, why in damaged:
                    log.warning("checkpoint %s is passed over: %s; step %d is used", self.folder / str(bad), why, step)
                self.newest = step
                return step
            damaged.append((step, problem))
            self._bad.add(step)
        if any(step in whole for step, _ in damaged):
            text = "; ".join(f"step {step}: {why}" for step, why in damaged)
            raise ValueError(f"no checkpoint in {self.folder} can be used ({text}); train anew in another folder")
        for bad, why in damaged:
            log.warning("checkpoint %s is passed over: %s; the run starts at step 0", self.folder / str(bad), why)
        return None

    def _problem(self, step: int) -> str:
        """What is wrong with a step, "" if nothing. Each process verifies its share of the files."""
        index, count = jax.process_index(), jax.process_count()
        problem = damage(self.folder / str(step), share=slice(index, None, count))
        if count == 1:
            return problem
        from jax.experimental import multihost_utils

        bad = multihost_utils.process_allgather(np.int32(bool(problem)))
        return problem or ("another process found it damaged" if bad.any() else "")

    def variables(self, step: int) -> dict:
        """Shapes and types of the variables of a step."""
        return variables_spec(self.folder / str(step))

    def restore(self, step: int, like: TrainState, seed: int) -> TrainState:
        """The state of a step, laid out as `like` (of ShapeDtypeStructs with shardings), on any mesh."""
        folder = self.folder / str(step)
        slots = trees.leaves(like.opt_state)
        _check_tree(folder, "variables", like.variables)
        _check_tree(folder, "optimizer", slots)
        wanted = {"variables": like.variables, "optimizer": slots, "progress": {"step": 0, "seed": 0}}
        found = ocp.load_checkpointables(folder, wanted)
        if found["progress"] != {"step": step, "seed": seed}:
            raise ValueError(f"checkpoint {folder} is of {found['progress']}, expected step {step} and seed {seed}")
        opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), [found["optimizer"][path] for path in slots])
        number = jax.device_put(np.int32(step), like.step.sharding)
        return TrainState(number, found["variables"], opt_state)


def load_variables(
    folder: Any,
    serve: str = "params",
    take: str = "",
    place: Callable[[Any], Any] | None = None,
    step: int | None = None,
) -> Any:
    """Variables of a run's newest whole checkpoint as evals, samplers and other runs see them: "params" is the copy
    `serve`. Only the subtree `take` is read. place: tree of ShapeDtypeStructs -> the same with shardings; one device
    where None. step: the one that `find` has just chosen."""
    checkpoints = Checkpoints(run_folder.checkpoints(folder))
    step = checkpoints.find() if step is None else step
    if step is None:
        raise FileNotFoundError(f"{folder} holds no finished checkpoint; train it, or --resume it, first")
    spec = variables_spec(checkpoints.folder / str(step))
    if serve not in spec:
        raise ValueError(f"{folder} has no collection {serve!r} to serve; it has {', '.join(sorted(spec))}")
    stored_at = "/".join([serve, *take.split("/")[1:]]) if take.split("/")[0] == "params" else take
    seen = {**{name: one for name, one in spec.items() if name != serve}, serve: spec[serve]}
    if serve != "params":
        seen.pop("params")
    try:
        part = trees.subtree(seen, stored_at)
    except KeyError as error:
        raise ValueError(f"{folder}: {error.args[0]}") from error
    part = (place or on_one_device)(trees.nest(part, stored_at))
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        found = ocp.load_checkpointables(checkpoints.folder / str(step), {"variables": part})["variables"]
    if stored_at:
        return trees.subtree(found, stored_at)
    return {"params" if name == serve else name: one for name, one in found.items()}


def on_one_device(tree: Any) -> Any:
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)


def variables_spec(folder: epath.Path) -> dict:
    """Shapes and types of the variables that a step holds."""
    stored = ocp.checkpointables_metadata(folder).metadata["variables"]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)


def finished(folder: epath.Path) -> list[int]:
    """The steps that have a manifest, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and (path / MANIFEST).exists())


def write_manifest(folder: epath.Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in files_below(folder))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        files = dict(zip(names, pool.map(lambda name: fingerprint(folder / name), names), strict=True))
    unfinished = folder / f"{MANIFEST}.part"
    unfinished.write_text(json.dumps({"step": int(folder.name), "files": files}, indent=1))
    unfinished.replace(folder / MANIFEST)


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def damage(folder: epath.Path, share: slice = slice(None)) -> str:
    """What differs between a step and its manifest, "" if nothing; only the files in `share` are read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        step, files = manifest["step"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} is damaged ({type(error).__name__})"
    except OSError as error:
        return f"its {MANIFEST} cannot be read ({error.strerror})"
    if step != int(folder.name) or not files:
        return f"its {MANIFEST} is of step {step} and names {len(files)} files"

    def check(name: str) -> str:
        path = folder / name
        try:
            return "" if fingerprint(path) == files[name] else f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return next(filter(None, pool.map(check, sorted(files)[share])), "")


def fingerprint(path: epath.Path) -> dict[str, Any]:
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            sha.update(block)
            size += len(block)
    return {"size": size, "sha256": sha.hexdigest()}


def _check_tree(folder: epath.Path, name: str, like: Any) -> None:
    """A clear word about what does not fit, before Orbax tries."""
    stored = {
        path: tuple(x.shape) for path, x in trees.leaves(ocp.checkpointables_metadata(folder).metadata[name]).items()
    }
    wanted = {path: tuple(x.shape) for path, x in trees.leaves(like).items()}
    for path in sorted(stored.keys() | wanted.keys()):
        there, here = (f"{list(side[path])}" if path in side else "nothing" for side in (stored, wanted))
        if there != here:
            raise ValueError(f"checkpoint {folder} has {there} at {name}/{path}, but the experiment has {here}")


def _causes(error: BaseException | None) -> list[str]:
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return texts
