"""A plan reads the compiler's answer right: memory, loops, what is whole, and a shortage as a verdict."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.parallel import flops, plan
from mmjax.parallel.mesh import MeshShape

LAYERS, WIDTH, ROWS = 5, 256, 64
tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the [plan] extra")
cuda = pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the [cuda] extra")


def step(state, x, unread):
    """A scanned stack, its gradient, and one update: the shape of a training step."""

    def loss(layers):
        layer = jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None))
        return jnp.mean(jax.lax.scan(layer, x, layers)[0] ** 2)

    value, gradient = jax.value_and_grad(loss)(state["layers"])
    return {"layers": state["layers"] - 0.1 * gradient, "table": state["table"]}, value


def traced(mesh, width=WIDTH, rows=ROWS):
    def spec(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    state = {"layers": spec((LAYERS, width, width), None, "fsdp"), "table": spec((1024, 512))}
    return jax.jit(step, donate_argnums=0).trace(state, spec((rows, width), ("data", "fsdp")), spec((1024, 1024)))


def test_flops_count_every_pass_of_a_loop():
    forward = 2 * ROWS * WIDTH * WIDTH * LAYERS
    inference = jax.jit(lambda w, x: jax.lax.scan(lambda h, w: (h @ w, None), x, w)[0])
    shapes = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), "float32"), jax.ShapeDtypeStruct((ROWS, WIDTH), "float32")
    assert flops.count(inference.trace(*shapes).jaxpr) == forward
    # forward, forward again for remat, and two products a layer in the backward pass
    assert flops.count(traced(MeshShape(fsdp=2).build(jax.devices())).jaxpr) == 4 * forward


def test_flops_of_convolutions_branches_and_shard_map():
    images, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((4, 4, 3, 16))
    convolution = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    assert flops.count(convolution.trace(images, kernel).jaxpr) == 2 * (2 * 2 * 2 * 16) * (4 * 4 * 3)
    x = jnp.zeros((8, 8))
    branches = jax.jit(lambda flag, x: jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x))
    assert flops.count(branches.trace(True, x).jaxpr) == 2 * 2 * 8**3
    mesh = MeshShape(data=4, fsdp=2).build(jax.devices())
    local = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    per_device = 2 * 2 * 8 * 2  # [2 8] @ [8 2]
    assert flops.count(jax.jit(local).trace(x).jaxpr) == per_device * 8


@pytest.mark.parametrize("name", ["v5e", "v9z:2x2", "h100:0", "v5e:16", "tpu", "v5e:2x2 "])
def test_an_unknown_topology_shows_how_to_write_one(name):
    with pytest.raises(ValueError, match=r"unknown topology .* such as v5e:16x16, v5p:4x4x4 or h100:8"):
        plan.topology(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "plan"), ("h100:8", "cuda")])
def test_a_missing_extra_is_named(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=rf"pip install 'mmjax\[{extra}\]'"):
        plan.topology(name)


def test_the_compilers_shortage_becomes_one_sentence():
    new = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (72.12G) exceeds "
    )
    old = "RESOURCE_EXHAUSTED: permanent error. Ran out of memory in memory space hbm. Used 23.46G of 15.75G"
    assert "needs 72.12G of the 15.75G of a device" in plan._shortage(new + "available HBM (15.75G).")
    assert "needs 23.46G of the 15.75G of a device" in plan._shortage(old + " hbm.")
    assert plan._shortage("RESOURCE_EXHAUSTED: other") == "the compiler ran out of memory: RESOURCE_EXHAUSTED: other"


@tpu
@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_a_small_step_fits_every_tpu(name):
    machine = plan.topology(name)
    mesh = MeshShape(data=2, fsdp=2).build(machine.devices)
    made = plan.make(traced(mesh), machine, mesh)
    assert made.fits
    assert made.mesh == {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}
    # half of the layers, all of the table, a quarter of the batch
    arguments = 4 * (LAYERS * WIDTH * WIDTH // 2 + 1024 * 512 + ROWS * WIDTH // 4)
    assert arguments <= made.memory.arguments < 1.1 * arguments
    assert made.memory.arguments <= made.memory.peak <= made.memory.needed < machine.memory
    assert made.memory.results < 4096  # the new state is written over the old: only the loss is left
    assert made.collectives["all-gather"] >= 1  # a layer's weights
    assert made.collectives["all-reduce"] + made.collectives["reduce-scatter"] >= 1  # their gradient
    assert made.whole == (plan.Whole("table", 1024 * 512 * 4),)
    assert made.flops == 4 * 2 * ROWS * WIDTH * WIDTH * LAYERS / 4
    assert "fits" in str(made)
    assert "2.0 MiB  table" in str(made)


@tpu
@pytest.mark.aot
def test_a_step_that_is_too_large_is_a_verdict_with_both_numbers():
    machine = plan.topology("v5e:2x2")
    mesh = MeshShape(data=2, fsdp=2).build(machine.devices)
    made = plan.make(traced(mesh, width=32768), machine, mesh)
    assert not made.fits
    assert "of the 15.75G of a device" in made.reason
    assert "DOES NOT FIT" in str(made)


@tpu
@pytest.mark.aot
def test_a_shape_that_no_pod_has_is_refused():
    with pytest.raises(ValueError, match="the compiler knows no topology 'v5e:3x3': .*not divisible"):
        plan.topology("v5e:3x3")


@cuda
@pytest.mark.aot
def test_a_small_step_fits_an_h100_host():
    machine = plan.topology("h100:4")
    mesh = MeshShape(data=2, fsdp=2).build(machine.devices)
    made = plan.make(traced(mesh), machine, mesh)
    assert made.fits
    assert made.collectives["all-gather"] >= 1
