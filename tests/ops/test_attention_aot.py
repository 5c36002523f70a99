"""Compilers for machines that are not here accept the kernels, and the automatic choice takes them.

TPU needs libtpu (extra [plan]); H100 needs JAX's CUDA plugin and cuDNN (extra [cuda]), but no GPU.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import attention, masks
from mmjax.parallel import plan

pytestmark = pytest.mark.aot


def mesh_of(topology, shape):
    """Four devices (two on a pod's smallest part) as data x tensor."""
    devices = np.asarray(plan.topology(topology).devices[: shape[0] * shape[1]]).reshape(shape)
    return Mesh(devices, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def gradient(run, query, key, value, mask):
    total = lambda *qkv: run(*qkv, mask=mask).astype(jnp.float32).sum()  # noqa: E731
    return jax.grad(total, argnums=(0, 1, 2))(query, key, value)


def compile_gradient(mesh, sizes, dtype, mask, implementation=None):
    """sizes: B, T, S, H, K, D."""
    batch, length, key_length, heads, key_heads, width = sizes
    split, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data", None, "tensor"), ("data",)))
    query = jax.ShapeDtypeStruct((batch, length, heads, width), dtype, sharding=split)
    key = jax.ShapeDtypeStruct((batch, key_length, key_heads, width), dtype, sharding=split)
    mask = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), mask)
    run = functools.partial(attention.attention, implementation=implementation)
    with jax.set_mesh(mesh):
        return jax.jit(functools.partial(gradient, run)).lower(query, key, key, mask=mask).compile()


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]")
IDS = jnp.zeros((2, 1100), jnp.int32)


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_tpu_takes_splash_for_long_sequences(topology):
    # Tiles of 640, shared key heads, packed sequences; each chip its rows and heads.
    mask = masks.Causal() & masks.Segments(IDS, IDS)
    compiled = compile_gradient(mesh_of(topology, (2, 2)), (2, 1100, 1100, 8, 4, 128), jnp.bfloat16, mask)
    text = compiled.as_text()
    assert text.count("tpu_custom_call") == 3  # forward, queries' gradient, keys' and values' gradient
    assert "all-gather" not in text
    assert "all-reduce" not in text


@needs_libtpu
@pytest.mark.parametrize(
    ("sizes", "dtype", "mask"),
    [
        ((2, 32, 577, 4, 4, 80), jnp.bfloat16, masks.Padding(jnp.zeros((2, 577), bool))),
        ((2, 680, 680, 4, 4, 64), jnp.bfloat16, masks.BlockCausal((1, 4, 9, 16, 25, 36, 64, 100, 169, 256))),
        ((2, 2048, 2048, 8, 2, 128), jnp.bfloat16, masks.Causal() & masks.SlidingWindow(512)),
        ((2, 2048, 2048, 2, 2, 256), jnp.float32, masks.Causal()),  # the largest tiles there are
    ],
    ids=["Q-Former", "VAR", "Mistral", "largest tiles"],
)
def test_tpu_compiles_splash_for(sizes, dtype, mask):
    compiled = compile_gradient(mesh_of("v5e:2x2", (2, 2)), sizes, dtype, mask, "splash")
    assert compiled.as_text().count("tpu_custom_call") == 3


@needs_libtpu
def test_tpu_takes_xla_for_an_image_of_257_tokens():
    compiled = compile_gradient(mesh_of("v5e:2x2", (2, 2)), (2, 257, 257, 4, 4, 64), jnp.bfloat16, None)
    assert "tpu_custom_call" not in compiled.as_text()


@needs_libtpu
def test_the_choice_costs_no_memory_in_a_scan_of_layers():
    """Each platform's branch saves its own residuals for the backward pass; those of the others have to vanish."""
    mesh = mesh_of("v5e:2x2", (1, 1))
    x = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))

    def loss(x, implementation):
        layer = lambda x, _: (attention.attention(x, x, x, mask=masks.Causal(), implementation=implementation), None)  # noqa: E731
        return jax.lax.scan(layer, x, length=3)[0].astype(jnp.float32).sum()

    peaks = {}
    for name in (None, "splash"):
        compiled = jax.jit(jax.grad(functools.partial(loss, implementation=name))).lower(x).compile()
        peaks[name] = compiled.memory_analysis().peak_memory_in_bytes
    assert peaks[None] == peaks["splash"]


@pytest.mark.parametrize(
    ("sizes", "mask", "calls"),
    [
        ((4, 1024, 1024, 8, 2, 64), masks.Causal(), "Softmax"),
        ((4, 1024, 1024, 8, 2, 64), masks.Causal() & masks.SlidingWindow(256), "Softmax"),
        ((4, 257, 257, 8, 8, 64), None, "Softmax"),  # ViT-L: odd, so padded
        ((4, 32, 257, 8, 8, 64), None, "Softmax"),  # Q-Former
        ((2, 1100, 1100, 8, 8, 64), masks.Causal() & masks.Segments(IDS, IDS), "ScaleBiasSoftmax"),
    ],
    ids=["causal", "window", "ViT", "Q-Former", "segments"],
)
def test_h100_takes_cudnn(sizes, mask, calls):
    if reason := attention.why_not_cudnn(jnp.zeros((1, 2, 1, 64), jnp.bfloat16), None):
        pytest.skip(f"JAX's CUDA plugin with cuDNN is not installed, extra [cuda]: {reason}")
    text = compile_gradient(mesh_of("h100:4", (2, 2)), sizes, jnp.bfloat16, mask).as_text()
    assert f"__cudnn$fmha{calls}" in text
    assert f"__cudnn$fmha{calls}Backward" in text
    assert "all-gather" not in text
