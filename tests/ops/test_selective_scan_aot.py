"""Compilers for machines that are not here accept the scan, the automatic choice takes the kernel, and memory is small.

TPU needs libtpu (extra [plan]).
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops.selective_scan import selective_scan
from mmjax.parallel import plan

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]"),
]

BATCH, LENGTH, CHANNELS, STATE = 8, 2048, 2048, 16
TOKENS = 4 * BATCH * LENGTH * CHANNELS  # bytes of one array [B L E] in float32


def compiled(topology: str, shape: tuple[int, int], gradient: bool, implementation: str | None = None):
    devices = np.asarray(plan.topology(topology).devices[: shape[0] * shape[1]]).reshape(shape)
    mesh = Mesh(devices, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def spec(shape: tuple[int, ...], *axes: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    x = spec((BATCH, LENGTH, CHANNELS), "data", None, "tensor")
    B = spec((BATCH, LENGTH, STATE), "data")
    args = (x, x, spec((CHANNELS, STATE), "tensor"), B, B)
    run = lambda *args: selective_scan(*args, implementation=implementation)[0]  # noqa: E731
    if gradient:
        places = tuple(arg.sharding for arg in args)
        run = jax.jit(
            jax.grad(lambda *args: jnp.sum(jnp.sin(selective_scan(*args)[0])), range(5)), out_shardings=places
        )
    with jax.set_mesh(mesh):
        return jax.jit(run).lower(*args).compile()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_forward_holds_its_arrays_and_little_else(topology):
    made = compiled(topology, (1, 1), gradient=False)
    assert made.as_text().count("tpu_custom_call") == 1
    # In and out are 3 arrays [B L E]; all states would be 16 more.
    assert made.memory_analysis().peak_memory_in_bytes < 3.3 * TOKENS


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_backward_keeps_one_state_for_128_tokens(topology):
    made = compiled(topology, (1, 1), gradient=True)
    assert made.as_text().count("tpu_custom_call") == 2
    # x, delta, y and their cotangents, and N / 128 of such an array for the states.
    assert made.memory_analysis().peak_memory_in_bytes < 6.5 * TOKENS


def test_each_chip_scans_its_rows_and_channels():
    made = compiled("v5e:2x2", (2, 2), gradient=True)
    text = made.as_text()
    assert text.count("tpu_custom_call") == 2
    assert "all-gather" not in text
    assert made.memory_analysis().peak_memory_in_bytes < 7.5 * TOKENS / 4
