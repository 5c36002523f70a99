"""The mesh: one grid of devices with the axes data, fsdp, tensor and sequence.

The batch is split over data x fsdp; parameters over fsdp and tensor, by the path rules in `rules.py`; long sequences
over sequence. Axes are always `AxisType.Auto`: jax.make_mesh would make them Explicit, under which Linen's layers fail.
Enter a mesh with `jax.set_mesh(mesh)`.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import sharding

AXES = (sharding.DATA, sharding.FSDP, sharding.TENSOR, sharding.SEQUENCE)  # slowest to fastest varying


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; one axis may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def sizes(self, count: int) -> tuple[int, int, int, int]:
        """The four sizes on `count` devices."""
        sizes = dataclasses.astuple(self)
        named = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh {named}: sizes are 1 or more, and at most one of them is -1 (the rest of the devices)"
            )
        fixed = math.prod(size for size in sizes if size != -1)
        if count % fixed or (-1 not in sizes and fixed != count):
            raise ValueError(
                f"mesh {named} needs {'a multiple of ' if -1 in sizes else ''}{fixed} devices, found {count}; "
                f"change mesh.data, mesh.fsdp, mesh.tensor or mesh.sequence so that their product is {count}"
            )
        return tuple(count // fixed if size == -1 else size for size in sizes)

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (all devices of all processes where None), laid out after the physical network."""
        devices = jax.devices() if devices is None else list(devices)
        return jax.make_mesh(self.sizes(len(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """How arrays whose first axis is the global batch lie on the mesh: split over data x fsdp."""
    shards = math.prod(mesh.shape[axis] for axis in sharding.BATCH)
    if batch_size % shards:
        near = max(batch_size // shards, 1) * shards
        raise ValueError(
            f"batch_size {batch_size} does not divide over the mesh's {shards} batch shards "
            f"(data={mesh.shape[sharding.DATA]} x fsdp={mesh.shape[sharding.FSDP]}); "
            f"take a multiple of {shards}, such as {near}"
        )
    return NamedSharding(mesh, PartitionSpec(sharding.BATCH))


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of the global batch that this process has to load: what its own devices hold."""
    held = batch_sharding(mesh, batch_size).addressable_devices_indices_map((batch_size,)).values()
    bounds = sorted({rows.indices(batch_size)[:2] for (rows,) in held})
    first, last = bounds[0][0], bounds[-1][1]
    if sum(stop - start for start, stop in bounds) != last - first:
        raise ValueError(
            f"this process holds the rows {bounds} of the batch, which are not one range; use another mesh"
        )
    return slice(first, last)
