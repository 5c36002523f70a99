"""Experiments from files, and `--set a.b=c`: any field of an experiment, by its dotted name."""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.train.experiment import Experiment

SIZES = ("tiny", "small", "paper")
LINEN = ("parent", "name")  # fields of every module that are not settings
PLAIN = (bool, int, float, tuple, type(None), str)  # what can be typed, in the order in which it is tried


def load_experiment(path: str | Path, size: str, overrides: Sequence[str] = ()) -> Experiment:
    """`experiment(size)` of a file, with `overrides` applied. At "tiny" every step is logged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no experiment file {path}{_near_files(path)}")
    # A name under "experiments": its warnings and errors count as the project's own.
    spec = importlib.util.spec_from_file_location(f"experiments.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, "experiment", None)
    if not callable(make):
        raise ValueError(f"{path} defines no function experiment(size) that returns an Experiment")
    try:
        made = make(size)
    except KeyError as error:
        if error.args != (size,):
            raise
        raise ValueError(f"{path} has no size {size!r}; its sizes: {', '.join(sizes(path))}") from error
    if not isinstance(made, Experiment):
        raise ValueError(f"experiment({size!r}) of {path} returned {type(made).__name__}, expected an Experiment")
    if size == "tiny":
        made = dataclasses.replace(made, log_every=1)
    return apply(made, overrides)


def sizes(path: str | Path) -> tuple[str, ...]:
    """The sizes that a file names, read from its source: in its docstring's tables ("tiny  seconds: ..."), where one is
    of SIZES or begins like it ("small_linear  ..."); string constants that are in SIZES; and the keys of dictionaries
    that hold one of those."""
    tree, found = ast.parse(Path(path).read_text(encoding="utf-8")), []
    for paragraph in (ast.get_docstring(tree) or "").split("\n\n"):
        names = re.findall(r"^(\w+) {2,}\S", paragraph, flags=re.MULTILINE)
        found += names if {name.split("_")[0] for name in names} & set(SIZES) else ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            found += keys if set(keys) & set(SIZES) else ()
        elif isinstance(node, ast.Constant) and node.value in SIZES:
            found.append(node.value)
    return tuple(sorted(dict.fromkeys(found), key=lambda size: SIZES.index(size) if size in SIZES else len(SIZES)))


def _near_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("experiments")
    names = [str(file) for file in sorted(folder.glob("[!_]*.py"))]
    near = difflib.get_close_matches(str(path), names, n=3, cutoff=0.5) or names[:5]
    return f"; did you mean {', '.join(near)}?" if near else ""


def apply(value: Any, overrides: Sequence[str]) -> Any:
    """A copy of `value` in which every "a.b=c" holds. Goes through frozen dataclasses, NamedTuples, Linen modules,
    mappings by key and sequences by number."""
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set needs FIELD=VALUE, such as optimizer.peak=1e-3, got {override!r}")
        value = _replaced(value, name.strip().split("."), text.strip(), name.strip())
    return value


def _replaced(value: Any, path: list[str], text: str, name: str) -> Any:
    inner = _fields(value)
    if path[0] not in inner:
        raise ValueError(_unknown(value, inner, path, name))
    old, kind = inner[path[0]]
    new = _replaced(old, path[1:], text, name) if len(path) > 1 else _parsed(text, old, kind, name)
    if isinstance(value, nn.Module):
        return value.clone(**{path[0]: new})
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{path[0]: new})
    if isinstance(value, Mapping):
        return {**value, path[0]: new}
    if hasattr(value, "_replace"):
        return value._replace(**{path[0]: new})
    return (*value[: int(path[0])], new, *value[int(path[0]) + 1 :])


def _fields(value: Any) -> dict[str, tuple[Any, Any]]:
    """name -> (value now, annotation) of what can be set inside `value`; empty where nothing can."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kinds = _annotations(type(value))
        skip = LINEN if isinstance(value, nn.Module) else ()
        fields = [one.name for one in dataclasses.fields(value) if one.init and one.name not in skip]
        return {name: (getattr(value, name), kinds.get(name, Any)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): (one, Any) for key, one in value.items()}
    if hasattr(value, "_fields"):
        kinds = _annotations(type(value))
        return {name: (getattr(value, name), kinds.get(name, Any)) for name in value._fields}
    if isinstance(value, tuple):
        return {str(index): (one, Any) for index, one in enumerate(value)}
    return {}


def _annotations(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # a name that exists for type checkers only; the value's own type decides then
        return inspect.get_annotations(cls)


def _unknown(value: Any, inner: Mapping, path: list[str], name: str) -> str:
    where = name[: len(name) - len(".".join(path))].rstrip(".") or "the experiment"
    if not inner:
        return f"--set {name}: {where} is {value!r}, which has no fields"
    near = difflib.get_close_matches(path[0], inner, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"--set {name}: {where} has no field {path[0]!r}; {hint}its fields: {', '.join(inner)}"


def _parsed(text: str, old: Any, kind: Any, name: str) -> Any:
    """The value that `text` means for a field of this annotation, or of the type of the value it has now."""
    options = _options(kind) or [type(old)]
    accepted = [one for one in PLAIN if one in options]
    for one in accepted:
        parsed = _as(one, text)
        if parsed is not _NO:
            return parsed
    if old is None and options == [type(None)] and _is_literal(text):  # nothing says what the field takes
        return ast.literal_eval(text)
    if isinstance(old, np.dtype | type(jnp.float32)) and hasattr(jnp, text):
        return getattr(jnp, text)
    if not accepted:
        inner = ", ".join(f"{name}.{field}" for field in _fields(old)) or "nothing: write it in the file"
        raise ValueError(f"--set {name}={text}: the field holds {type(old).__name__}; what can be set: {inner}")
    wanted = " or ".join("None" if one is type(None) else one.__name__ for one in accepted)
    raise ValueError(f"--set {name}={text}: the field holds {old!r} and takes {wanted}")


_NO = object()


def _as(kind: type, text: str) -> Any:
    """`text` read as `kind`, or _NO."""
    if kind is str:
        return ast.literal_eval(text) if text[:1] in "'\"" and _is_literal(text) else text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), _NO)
    if kind is type(None):
        return None if text.lower() == "none" else _NO
    if kind in (int, float):
        try:
            number = float(text.replace("_", "")) if kind is float else int(text, 0)
        except ValueError:
            return _NO
        return number
    found = ast.literal_eval(text) if _is_literal(text) else _NO
    return tuple(found) if isinstance(found, tuple | list) else _NO


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


def _options(kind: Any) -> list[type]:
    """The plain types that an annotation accepts: `float | None` -> [float, NoneType]."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [option for one in typing.get_args(kind) for option in _options(one)]
    kind = typing.get_origin(kind) or kind
    if kind is typing.Literal:
        return [str]
    if kind is Sequence:
        kind = tuple
    return [kind] if kind in PLAIN else []
