"""Our parameter tree <-> named tensors of another library, by one table of rules that is read both ways.

    tensors {name: array} --load--> tree of arrays        tree --save--> tensors

A rule pairs a path of ours with a name of theirs. "{i}" in the name is the layer: such tensors are stacked into, and
split from, our leading layer axis. A transform is a pair of plain numpy functions on one layer's array. Where it only
makes views (transpose, axes, blocks of rows), a shard reads no more of the file than it holds.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

Array = np.ndarray
Shardings = Callable[[Any], Any]  # variables as shapes -> a jax.sharding.Sharding for each
SHOWN = 8  # names in one error message; a wrong config can make hundreds


@dataclasses.dataclass(frozen=True)
class Transform:
    """read: theirs -> ours; write: ours -> theirs, its exact inverse."""

    read: Callable[[Array], Array]
    write: Callable[[Array], Array]


SAME = Transform(lambda x: x, lambda x: x)
TRANSPOSE = Transform(lambda x: x.T, lambda x: x.T)  # torch.nn.Linear keeps (out, in)
CONV = Transform(lambda x: rearrange(x, "o i h w -> h w i o"), lambda x: rearrange(x, "h w i o -> o i h w"))
POINT = Transform(lambda x: rearrange(x, "o i 1 1 -> i o"), lambda x: rearrange(x, "i o -> o i 1 1"))  # Conv2d 1 x 1
ONE = Transform(lambda x: x.reshape(()), lambda x: x.reshape(1))  # a scalar that they keep as [1]


@dataclasses.dataclass(frozen=True)
class Rule:
    ours: str | tuple[str, ...]  # path; several are blocks of one tensor of theirs, first to last
    theirs: str  # name, with {i} where our leading axis is the layer
    transform: Transform = SAME
    axis: int = 0  # of theirs, along which several lie: 0 rows, -1 columns
    first: int = 0  # their number of our layer 0, where a stack is not the first
    step: int = 1  # between their numbers of neighbours of ours, where a stack holds every second block, or fewer


def linear(ours: str, theirs: str) -> list[Rule]:
    """torch.nn.Linear with a bias."""
    return [Rule(f"{ours}/kernel", f"{theirs}.weight", TRANSPOSE), Rule(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Rule]:
    """torch.nn.LayerNorm."""
    return [Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of their tensors lies in our tree."""

    paths: tuple[str, ...]
    layer: int | None
    transform: Transform
    axis: int

    def parts(self, flat: Mapping[str, Any]) -> list[Array]:
        """Their blocks, from our leaves."""
        leaves = [flat[path] for path in self.paths]
        return [self.transform.write(leaf if self.layer is None else leaf[self.layer]) for leaf in leaves]


def flatten(tree: Any) -> dict[str, Any]:
    """{"vision/pos_embed": leaf, ...}"""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def places(rules: Sequence[Rule], flat: Mapping[str, Any], format: str) -> dict[str, Place]:
    """Their name -> its place in the tree `flat` (arrays or jax.ShapeDtypeStruct); each leaf has one."""
    out: dict[str, Place] = {}
    used: list[str] = []
    for rule in rules:
        paths = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
        used += paths
        if not all(path in flat for path in paths):
            continue
        layers = range(flat[paths[0]].shape[0]) if "{i}" in rule.theirs else [None]
        out |= {
            rule.theirs.replace("{i}", str(rule.first + rule.step * (layer or 0))): Place(
                paths, layer, rule.transform, rule.axis
            )
            for layer in layers
        }
    absent = [path for path in used if path not in flat]
    homeless = [path for path in flat if path not in set(used)]
    if absent or homeless:
        problems = [homeless and f"no tensor for {_some(homeless)}", absent and f"the model lacks {_some(absent)}"]
        raise ValueError(f"{format} has no place for this model: " + "; ".join(p for p in problems if p))
    return out


def load(
    rules: Sequence[Rule],
    tensors: Mapping[str, Array],
    target: Any,
    *,
    format: str,
    source: Any,
    ignored: Iterable[str] = (),
    dtype: Any = jnp.float32,
    shardings: Any = None,
) -> Any:
    """`target`, a tree of jax.ShapeDtypeStruct, filled with numpy arrays, or with sharded jax.Arrays.

    tensors may be memory maps; with `shardings` (a tree like target) each device's part is read on its own.
    dtype None keeps what the file has. `format` and `source` (the file or folder) are for messages.
    """
    flat = flatten(target)
    where = places(rules, flat, format)
    tensors = {name: x for name, x in tensors.items() if not any(re.search(pattern, name) for pattern in ignored)}
    _check(where, tensors, flat, format, source)

    sources: dict[str, list[_Source]] = {path: [] for path in flat}
    hollow = _hollow(flat)
    for name, place in where.items():
        parts, start = place.parts(hollow), 0
        for path, part in zip(place.paths, parts, strict=True):
            stop = start + part.shape[place.axis] if len(parts) > 1 else None
            block = (..., slice(start, stop)) if place.axis else slice(start, stop)
            sources[path].append(_Source(tensors[name], block, part.shape, place.transform))
            start = stop

    spots = flatten(shardings) if shardings is not None else {}
    stacked = {path for place in where.values() if place.layer is not None for path in place.paths}
    leaves = [_leaf(flat[path].shape, sources[path], path in stacked, dtype, spots.get(path)) for path in flat]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def load_model(
    model: Any, abstract: Callable[[Any], dict], rules: Sequence[Rule], tensors: Mapping[str, Array], *, format: str,
    source: Any, dtype: Any, shardings: Shardings | None, ignored: Iterable[str], resize: Callable | None,
) -> tuple[Any, dict]:  # fmt: skip
    """`load` into the variables of `model`, whose shapes `abstract` tells; `resize` may then change both."""
    target = abstract(model)
    spots = None if shardings is None else shardings(target)
    tree = load(
        rules, tensors, joined(target), format=format, source=source, ignored=ignored, dtype=dtype,
        shardings=spots and joined(spots),
    )  # fmt: skip
    others = [name for name in target if name != "params"]
    variables = {name: tree[name] for name in others}
    variables["params"] = {name: part for name, part in tree.items() if name not in others}
    if resize is not None:
        model, variables = resize(model, variables)
        spots = spots and shardings(abstract(model))
    return model, jax.device_put(variables, spots)


def joined(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that rules speak of: the parameters, and beside them the other collections under their names."""
    return {**variables["params"], **{name: tree for name, tree in variables.items() if name != "params"}}


def save(rules: Sequence[Rule], tree: Any, *, format: str) -> dict[str, Array]:
    """Their tensors, by name. Leaves keep their dtype."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}
    return {name: _join(place.parts(flat), place.axis) for name, place in places(rules, flat, format).items()}


def _join(parts: list[Array], axis: int) -> Array:
    # safetensors writes memory as it lies: what is transposed, or made of transposed parts, must be laid out anew.
    return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis), order="C")


@dataclasses.dataclass(frozen=True)
class _Source:
    """What one layer of a leaf is read from."""

    tensor: Array
    block: Any  # index of the part that is ours
    shape: tuple[int, ...]
    transform: Transform

    def read(self) -> Array:
        block = self.tensor[self.block] if self.tensor.ndim else self.tensor
        return self.transform.read(block.reshape(self.shape))  # a scalar comes as [] or as [1]


def _leaf(shape: tuple, sources: list[_Source], stacked: bool, dtype: Any, sharding: Any) -> Array | jax.Array:
    kind = jnp.result_type(*{source.tensor.dtype for source in sources})
    if dtype is not None and _is_float(kind):
        kind = jnp.dtype(dtype)

    def read(index: tuple[slice, ...]) -> Array:
        if not stacked:
            return np.array(sources[0].read()[index], dtype=kind)
        return np.stack([np.asarray(source.read()[index[1:]], dtype=kind) for source in sources[index[0]]])

    if sharding is None:
        return read((slice(None),) * len(shape))
    return jax.make_array_from_callback(shape, sharding, read, dtype=kind)


def _hollow(flat: Mapping[str, Any]) -> dict[str, Array]:
    """Arrays of the same shapes that take no memory, to see what a transform does to a shape."""
    return {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in flat.items()}


def _check(where: dict[str, Place], tensors: Mapping[str, Array], flat: Mapping, format: str, source: Any) -> None:
    """Every name used or ignored, every leaf filled, every shape equal; all that is wrong in one error."""
    unknown = [name for name in tensors if name not in where]
    missing = [name for name in where if name not in tensors]
    hollow, misfits = _hollow(flat), []
    for name in (name for name in where if name in tensors):
        found, expected = tensors[name], _shape(where[name].parts(hollow), where[name].axis)
        if found.shape != expected and not found.size == math.prod(expected) == 1:
            misfits.append(f"{name} is {list(found.shape)}, expected {list(expected)}")
        elif _is_float(flat[where[name].paths[0]].dtype) and not _is_float(found.dtype):
            misfits.append(f"{name} holds {found.dtype}, expected floating point")
    problems = [
        missing and f"missing {_some([_with_near(name, unknown) for name in missing])}",
        unknown and f"unknown {_some(unknown)}",
        misfits and f"wrong shape or type: {_some(misfits)}",
    ]
    if any(problems):
        raise ValueError(f"{source} does not fit {format}: " + "; ".join(problem for problem in problems if problem))


def _shape(parts: list[Array], axis: int) -> tuple[int, ...]:
    """Of the tensor that holds these blocks."""
    if len(parts) == 1:
        return parts[0].shape
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return tuple(shape)


def _is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _with_near(name: str, candidates: list[str]) -> str:
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.8) if len(candidates) < 1000 else []
    return f"{name} (there is {near[0]})" if near else name


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
