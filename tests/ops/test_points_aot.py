"""Compilers for TPUs that are not here accept the kernel of neighbourhoods at Ferret's sizes, forwards and backwards.

Needs libtpu (extra [plan]).
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops.points import neighbourhoods, sample
from mmjax.parallel import plan

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]"),
]

REGIONS, POINTS, WIDTH, ANCHORS, NEIGHBOURS = 8, 512, 1024, 128, 24


def compiled(topology: str, shape: tuple[int, int], run, *shapes, dtype=jnp.float32):
    devices = np.asarray(plan.topology(topology).devices[: shape[0] * shape[1]]).reshape(shape)
    mesh = Mesh(devices, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec("data"))
    points, values, start = (
        jax.ShapeDtypeStruct(shape, kind, sharding=place)
        for shape, kind in zip(shapes, (jnp.float32, dtype, jnp.int32), strict=True)
    )
    with jax.set_mesh(mesh):
        return jax.jit(run).lower(points, values, start).compile()


SHAPES = ((REGIONS, POINTS, 2), (REGIONS, POINTS, WIDTH), (REGIONS,))


def gradient(points, values, start):
    loss = lambda values: jnp.sum(jnp.sin(neighbourhoods(points, values, ANCHORS, NEIGHBOURS, start).values))  # noqa: E731
    return jax.value_and_grad(loss)(values)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_one_kernel_takes_the_points_and_gathers(topology, dtype):
    run = lambda *given: neighbourhoods(*given[:2], ANCHORS, NEIGHBOURS, given[2])  # noqa: E731
    made = compiled(topology, (1, 1), run, *SHAPES, dtype=dtype)
    assert made.as_text().count("tpu_custom_call") == 1
    result = jnp.dtype(dtype).itemsize * REGIONS * NEIGHBOURS * ANCHORS * WIDTH
    assert made.memory_analysis().peak_memory_in_bytes < 1.6 * result


def test_each_chip_has_its_regions_forwards_and_backwards():
    made = compiled("v5e:2x2", (2, 2), gradient, *SHAPES)
    text = made.as_text()
    assert text.count("tpu_custom_call") == 1  # the gradient is products
    assert "all-gather" not in text


def test_a_map_is_read_by_products():
    run = lambda points, maps, start: jax.grad(lambda m: jnp.sum(jnp.sin(sample(m, points))))(maps)  # noqa: E731
    made = compiled("v5e:2x2", (1, 1), run, (4, 512, 2), (4, 24, 24, 1024), (1,))
    text = made.as_text()
    assert " scatter(" not in text
    assert " gather(" not in text
