"""Nested dicts of arrays, seen by path: "params/vision/layers/mlp/up/kernel"."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax


def path_of(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_paths(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """fn(path, leaf) at every leaf."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: fn(path_of(keys), leaf), tree)


def leaves(tree: Any) -> dict[str, Any]:
    """path -> leaf."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def select(tree: Mapping, regex: str, path: str = "") -> dict:
    """The part of a nested dict whose leaves' paths match; branches without any are left out."""
    part = {}
    for name, one in tree.items():
        here = f"{path}/{name}" if path else name
        if isinstance(one, Mapping):
            if inner := select(one, regex, here):
                part[name] = inner
        elif re.search(regex, here):
            part[name] = one
    return part


def merge(tree: Mapping, part: Mapping) -> dict:
    """`tree` with the leaves of `part` in place of, or beside, its own."""
    both = {**tree, **part}
    for name in tree.keys() & part.keys():
        if isinstance(tree[name], Mapping) and isinstance(part[name], Mapping):
            both[name] = merge(tree[name], part[name])
    return both


def subtree(tree: Mapping, path: str) -> Any:
    """What lies at `path`; "" is the tree itself. A KeyError names the first key that is not there."""
    for name in filter(None, path.split("/")):
        if not isinstance(tree, Mapping) or name not in tree:
            found = ", ".join(sorted(tree)) if isinstance(tree, Mapping) else "an array"
            raise KeyError(f"no {name!r} on the path {path!r}; there: {found}")
        tree = tree[name]
    return tree


def nest(tree: Any, path: str) -> Any:
    """The inverse of `subtree`: `tree` at `path` of an otherwise empty tree."""
    for name in reversed([name for name in path.split("/") if name]):
        tree = {name: tree}
    return tree
