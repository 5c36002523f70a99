"""Names of the mesh's axes, and placements that modules may state without knowing the mesh.

The mesh is the ambient one (`jax.set_mesh`). Without it everything here asks for nothing, so modules run bare.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

DATA, FSDP, TENSOR, SEQUENCE = "data", "fsdp", "tensor", "sequence"
BATCH = (DATA, FSDP)  # what the batch axis is split over
ANY = PartitionSpec.UNCONSTRAINED  # for `constrain`: the compiler may choose


def axes(*names: str) -> tuple[str, ...]:
    """Those of `names` that the ambient mesh has and that are not taken already by an enclosing shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if name in names and kind != AxisType.Manual
    )


def shards(*names: str) -> int:
    """Into how many parts the ambient mesh cuts an array axis that is split over `names`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in axes(*names))


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Asks for `x` to lie as `spec` says, axis by axis: `constrain(x, BATCH, None, TENSOR)`. Names that the mesh lacks
    are left out, None keeps an axis whole; without a mesh, `x` is returned as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not any(kind == AxisType.Auto for kind in mesh.axis_types):
        return x
    named = [one if one is ANY else axes(*((one,) if isinstance(one, str) else one or ())) for one in spec]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[names or None for names in named]))
