"""How far an array of ours is from the original's: said, asserted, and kept for the table of parity_table.py.

The name of a comparison tells its column: "loss ...", "gradient ..." (all of `close_trees`), "cached ..." (decoding
with a cache), and anything else is the forward pass.
"""

import os
from typing import NamedTuple

import jax
import numpy as np

PARTS = ("forward", "loss", "gradient", "cached")


class Record(NamedTuple):
    test: str  # as pytest names it: tests/models/test_clip_parity.py::test_forward[0] (call)
    part: str  # of PARTS
    name: str
    absolute: float  # the largest difference
    largest: float  # the largest value


RECORDS: list[Record] = []


def close(name: str, ours, theirs, *, relative: float, part: str | None = None) -> None:
    """Compares by the largest value of the array, and says how far it is and where (pytest -s)."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    error, largest = np.abs(ours - theirs), np.abs(theirs).max()
    where = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    print(f"{name}: max abs error {error.max():.1e} of {largest:.1e} at {where}")
    part = part or next((part for part in PARTS if name.startswith(part)), "forward")
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    RECORDS.append(Record(test, part, name, float(error.max()), float(largest)))
    # 1e-6: gradients of key biases are rounding around 0, since softmax does not see them.
    assert error.max() <= relative * largest + 1e-6, name


def close_trees(ours, theirs, *, relative: float) -> None:
    """Gradients: as `close`, leaf by leaf of two trees of the same names."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)

    def one(path: tuple, ours, theirs) -> None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        close(name, ours, theirs, relative=relative, part="gradient")

    jax.tree_util.tree_map_with_path(one, ours, theirs)
