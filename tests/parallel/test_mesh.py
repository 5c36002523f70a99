"""The mesh takes the devices it is given, and the batch knows whether it fits."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from mmjax.ops import sharding
from mmjax.parallel import mesh as meshes
from mmjax.parallel.mesh import MeshShape


def abstract(**sizes):
    """A mesh of the given sizes without devices."""
    shape = MeshShape(**{"data": 1, **sizes})
    return AbstractMesh(
        shape.sizes(shape.data * shape.fsdp * shape.tensor * shape.sequence),
        meshes.AXES,
        axis_types=(AxisType.Auto,) * 4,
    )


def test_minus_one_takes_the_devices_that_are_left():
    assert MeshShape().sizes(8) == (8, 1, 1, 1)
    assert MeshShape(data=2, fsdp=-1, tensor=2).sizes(16) == (2, 4, 2, 1)
    assert MeshShape(data=1).sizes(1) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        (MeshShape(fsdp=3), 8, "needs a multiple of 3 devices, found 8"),
        (MeshShape(data=4), 8, "needs 4 devices, found 8"),
        (MeshShape(data=16), 8, "needs 16 devices, found 8"),
        (MeshShape(data=-1, fsdp=-1), 8, "at most one of them is -1"),
        (MeshShape(tensor=0), 8, "sizes are 1 or more"),
    ],
)
def test_a_shape_that_does_not_fit_says_both_numbers(shape, count, message):
    with pytest.raises(ValueError, match=message):
        shape.sizes(count)


def test_build_gives_auto_axes_with_the_shared_names():
    mesh = MeshShape().build(jax.devices()[:1])
    assert mesh.axis_names == (sharding.DATA, sharding.FSDP, sharding.TENSOR, sharding.SEQUENCE)
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_the_batch_is_split_over_data_and_fsdp_only():
    assert meshes.batch_sharding(abstract(data=2, fsdp=2, tensor=2), 8).spec == PartitionSpec(("data", "fsdp"))
    with pytest.raises(
        ValueError, match=r"batch_size 6 .* 4 batch shards \(data=2 x fsdp=2\); take a multiple of 4, such as 4"
    ):
        meshes.batch_sharding(abstract(data=2, fsdp=2, tensor=2), 6)


def test_one_process_loads_every_row():
    assert meshes.local_rows(MeshShape().build(jax.devices()[:1]), 12) == slice(0, 12)


def test_a_batch_on_the_mesh_reads_back_unchanged():
    mesh = MeshShape().build(jax.devices()[:1])
    rows = np.arange(24.0).reshape(8, 3)
    array = jax.make_array_from_process_local_data(meshes.batch_sharding(mesh, 8), rows[meshes.local_rows(mesh, 8)])
    np.testing.assert_array_equal(array, rows)
