"""Weights to start from: finds each Source, reads the part that is wanted, and puts the parts together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mmjax.parallel import rules as sharding_rules
from mmjax.train import checkpoint, overrides, run_folder, step, trees
from mmjax.train.experiment import Source
from mmjax.train.task import Variables


def load(
    sources: Sequence[Source],
    size: str,
    *,
    runs: Path = Path("runs"),
    load_hf: Callable[[Path], tuple[Any, Variables]] | None = None,
    place: Callable[[Any], Any] | None = None,
) -> Variables:
    """All sources in one tree of variables, as Task.init receives it.

    size: of the runs that sources name by their experiment's stem. place: see checkpoint.load_variables.
    """
    loaded: Variables = {}
    for source in sources:
        part = trees.nest(read(source, size, runs, load_hf, place), source.to)
        twice = trees.leaves(loaded).keys() & trees.leaves(part).keys()
        if twice:
            raise ValueError(f"two sources bring {min(twice)}; the second is {source}: narrow `take`, or change `to`")
        loaded = trees.merge(loaded, part)
    return loaded


def read(source: Source, size: str, runs: Path, load_hf: Callable | None, place: Callable | None) -> Any:
    """The subtree `take` of one source."""
    folder = find(source, size, runs)
    if run_folder.is_run(folder):
        serve = run_folder.config(folder)["serve"]
        return checkpoint.load_variables(folder, serve, source.take, place)
    if load_hf is None:
        raise ValueError(f"{folder} holds weights of another library, and nothing here can read them (load_hf is None)")
    variables = load_hf(folder)[1]
    try:
        part = trees.subtree(variables, source.take)
    except KeyError as error:
        raise ValueError(f"{folder}: {error.args[0]}") from error
    if place is None:
        return part
    where = place(trees.nest(jax.eval_shape(lambda: part), source.take))
    return jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), part, trees.subtree(where, source.take))


def find(source: Source, size: str, runs: Path) -> Path:
    """What a source means: a folder or a file of that name, else the run of the experiment of that stem."""
    folder = Path(source.run)
    if (folder / run_folder.CONFIG).is_file() or folder.is_file():
        return folder
    if len(folder.parts) == 1 and folder.suffix == "":
        stem, size = named_run(source, size)
        named = runs / f"{stem}-{size}"
        if (named / run_folder.CONFIG).is_file():
            return named
        raise FileNotFoundError(
            f"this experiment starts from {stem}, but there is no run in {named}; make it with: "
            f"mmjax train experiments/{stem}.py --size {size}"
        )
    raise FileNotFoundError(
        f"this experiment starts from {folder}, which is neither a run folder nor a folder with the config.json and "
        "*.safetensors of a model, nor a GGUF file; the experiment's first lines say where weights come from, and "
        "--set init_from.0.run=PATH (or 1, 2, ...) names another place"
    )


def named_run(source: Source, size: str) -> tuple[str, str]:
    """The experiment's stem and the size of its run: what stands behind a dash, else `size`."""
    stem, _, own = source.run.partition("-")
    return stem, own or size


def shapes(sources: Sequence[Source], size: str, folder: Path) -> Variables:
    """What `load` would bring from runs of the experiments in `folder`, as ShapeDtypeStructs; nothing is read.

    Sources that are no such experiments are left out: what comes from weights has the shapes of the model itself.
    """
    loaded: Variables = {}
    for source in sources:
        stem, own = named_run(source, size)
        file = folder / f"{stem}.py"
        if not file.is_file():
            continue
        experiment = overrides.load_experiment(file, own)
        variables = step.first_variables(experiment, shapes(experiment.init_from, own, folder))
        part = trees.subtree(step.served(experiment.task.serve, variables), source.take)
        loaded = trees.merge(loaded, trees.nest(part, source.to))
    return loaded


def placing(mesh: Mesh, rules: tuple[sharding_rules.Rule, ...]) -> Callable[[Any], Any]:
    """A `place` that puts arrays where the rules put their like in the state."""

    def place(tree: Any) -> Any:
        where = sharding_rules.shardings(mesh, rules, tree)
        return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, where)

    return place
