import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import sharding


@pytest.fixture
def mesh():
    names = ("data", "fsdp", "tensor")  # no sequence axis
    return Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)


def test_without_a_mesh_constrain_returns_its_argument():
    x = jnp.ones((4, 3))
    assert sharding.constrain(x, sharding.BATCH, None) is x
    assert sharding.axes("data", "tensor") == ()
    assert sharding.shards("data") == 1


def test_constrain_places_each_axis_and_leaves_out_names_the_mesh_lacks(mesh):
    x = jnp.arange(4.0 * 6 * 8).reshape(4, 6, 8)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x, sharding.BATCH, sharding.SEQUENCE, sharding.TENSOR))(x)
    wanted = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    assert y.sharding.is_equivalent_to(wanted, 3)
    np.testing.assert_array_equal(y, x)


def test_any_leaves_an_axis_where_it_lies(mesh):
    """Also one that does not divide: a constraint of BATCH would refuse 3 rows on 4 shards."""
    x = jax.device_put(jnp.arange(4.0 * 8).reshape(4, 8), NamedSharding(mesh, PartitionSpec("data", "tensor")))
    together = jax.jit(lambda x: sharding.constrain(x, sharding.ANY, None))
    with jax.set_mesh(mesh):
        y, odd = together(x), together(jnp.ones((3, 8)))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data", None)), 2)
    np.testing.assert_array_equal(y, x)
    assert odd.shape == (3, 8)


def test_shards_multiplies_the_axes_that_are_there(mesh):
    with jax.set_mesh(mesh):
        assert sharding.shards(*sharding.BATCH) == 4
        assert sharding.shards(sharding.TENSOR, sharding.SEQUENCE) == 2


def test_inside_shard_map_taken_axes_do_not_count(mesh):
    seen = []

    def local(x):
        seen.append((sharding.axes("data", "fsdp", "tensor"), sharding.shards("data", "fsdp")))
        return sharding.constrain(x, sharding.BATCH)

    with jax.set_mesh(mesh):
        some = jax.shard_map(
            local, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), axis_names={"data"}
        )
        y = jax.jit(some)(jnp.arange(8.0))
        every = jax.shard_map(local, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
        jax.jit(every)(jnp.arange(8.0))
    assert seen[0] == (("fsdp", "tensor"), 2)
    assert seen[-1] == ((), 1)
    np.testing.assert_array_equal(y, np.arange(8.0))
