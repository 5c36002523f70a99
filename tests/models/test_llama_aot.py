"""LLaMA on machines that are not here: pretraining of the 7B model on a pod, and decoding with a cache in place."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.models import llama
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain
from mmjax.ops import attention
from mmjax.parallel import plan
from mmjax.parallel.mesh import MeshShape
from mmjax.train import step
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

pytestmark = pytest.mark.aot
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]")

BF16 = Compute(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Full rows of the model's context."""

    length: int

    def batches(self, batch_size, seed, rows=slice(None)):
        return [{"input_ids": np.zeros((batch_size, self.length), np.int32)[rows]}]


@needs_libtpu
def test_pretraining_llama_7b_with_4_million_tokens_a_step_fits_a_pod_of_256():
    config = dataclasses.replace(llama.llama_7b(), compute=Compute(jnp.bfloat16, remat="full"))
    adamw = AdamW(3e-4, warmup=2000, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)  # arXiv:2302.13971, section 2.3
    experiment = Experiment(
        Task(llama.Llama(config), pretrain.loss), Rows(2048), adamw, steps=250_000, batch_size=2048,
        mesh=MeshShape(fsdp=256),
    )  # fmt: skip
    machine = plan.topology("v5e:16x16")
    mesh = experiment.mesh.build(machine.devices)
    made = plan.make(step.build(experiment, mesh).trace(), machine, mesh)
    print(made)  # shown with -s
    assert made.fits, made.reason
    assert made.whole == ()  # nothing large is held by every chip
    # 3 x 4 bytes a parameter: the weights and Adam's two moments, split over all chips.
    assert made.memory.arguments == pytest.approx(3 * 4 * 6_738_415_616 / 256, rel=0.02)
    tokens = 2048 * 2048 / 256
    # 6 FLOPs a parameter and token, 2 more for remat; attention over 2048 tokens adds a sixth of a layer.
    assert made.flops == pytest.approx(8 * 6.74e9 * tokens * 1.15, rel=0.1)


def decode_on(topology: str, length: int, tokens: int):
    """The compiled step that reads `tokens` more into a cache of `length`, and the cache's bytes on each device."""
    config = llama.LlamaConfig(32_000, length, 1024, 4, 8, num_kv_heads=4, head_dim=128, hidden=2816, compute=BF16)
    model, batch = llama.Llama(config), 16
    mesh = MeshShape(data=2, tensor=2).build(plan.topology(topology).devices[:4])
    spec = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    cache = jax.eval_shape(lambda: model.init_cache(batch, length))
    cache = cache if tokens > 1 else cache.close()
    places = {4: spec("data"), 5: spec(None, "data", None, "tensor")}
    cache = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places.get(x.ndim, spec())), cache
    )  # fmt: skip
    ids = jax.ShapeDtypeStruct((batch, tokens), jnp.int32, sharding=spec("data"))
    variables = jax.eval_shape(model.init, jax.random.key(0), ids)
    variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=spec()), variables)

    def extend(variables, ids, cache):
        out, cache = model.apply(variables, ids, cache, method="extend")
        return out.logits[:, -1].argmax(-1), cache

    with jax.set_mesh(mesh):
        compiled = jax.jit(extend, donate_argnums=2).lower(variables, ids, cache).compile()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((cache.key, cache.value)))
    return compiled, size / 4


@needs_libtpu
def test_a_decoding_step_writes_the_cache_in_place_on_tpu():
    compiled, size = decode_on("v5e:2x2", 4096, tokens=1)
    stats = compiled.memory_analysis()
    assert size == 4 * 16 * 4096 * 4 * 128 * 2 * 2 / 4
    assert stats.alias_size_in_bytes >= size
    # One layer's keys and values may be read out of the cache; a second cache would be four times that.
    assert stats.temp_size_in_bytes < 0.75 * size
    assert "all-gather" not in compiled.as_text()  # each chip attends to its rows and its heads


@needs_libtpu
def test_a_long_prompt_is_read_with_the_tpus_kernel():
    compiled, size = decode_on("v5e:2x2", 4096, tokens=2048)
    assert "tpu_custom_call" in compiled.as_text()
    assert compiled.memory_analysis().alias_size_in_bytes >= size


@pytest.mark.parametrize("tokens", [1, 2048])
def test_h100_decodes_with_cudnn(tokens):
    if reason := attention.why_not_cudnn(jnp.zeros((1, 2, 1, 64), jnp.bfloat16), None):
        pytest.skip(f"JAX's CUDA plugin with cuDNN is not installed, extra [cuda]: {reason}")
    compiled, size = decode_on("h100:4", 4096, tokens)
    assert "__cudnn$fmha" in compiled.as_text()
    assert compiled.memory_analysis().alias_size_in_bytes >= size
