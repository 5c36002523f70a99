"""Contrastive losses: against open_clip, against a plain account in NumPy, and the same on every mesh."""

import functools
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import contrastive

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "contrastive.npz")
LOSSES = {"clip": contrastive.clip_loss, "siglip": contrastive.siglip_loss}
INPUTS = {"clip": ("images", "texts", "scale"), "siglip": ("images", "texts", "scale", "bias")}
LABELS = np.random.default_rng(0).integers(0, 9, 24).astype(np.int32)  # 24 rows, most labels on several shards
EIGHT = (8, 1, 1)  # devices along data, fsdp, tensor


def mesh_of(shape):
    kinds = (AxisType.Auto,) * 3
    return Mesh(np.asarray(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"), axis_types=kinds)


def value_and_grad(kind, inputs, labels=None, implementation=None):
    loss = functools.partial(LOSSES[kind], labels=labels, implementation=implementation)
    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(inputs)))))(*inputs)


def golden_inputs(kind, rows):
    return [jnp.asarray(GOLDEN[f"{rows}/{name}"]) for name in INPUTS[kind]]


def oracle(kind, images, texts, scale, bias, labels):
    """Loss and gradients in float64, pair by pair."""
    images, texts, count = np.float64(images), np.float64(texts), len(images)
    logits = scale * images @ texts.T + bias
    loss, slope = 0.0, np.zeros_like(logits)
    for i in range(count):
        same = [j for j in range(count) if labels[j] == labels[i]]
        if kind == "clip":
            for line, put in ((logits[i], slope[i]), (logits[:, i], slope[:, i])):  # views: a row, then a column
                odds = np.exp(line - line.max())
                probability = odds / odds.sum()
                loss -= np.mean([np.log(probability[j]) for j in same]) / 2 / count
                put += (probability - np.isin(range(count), same) / len(same)) / 2 / count
        else:
            for j in range(count):
                sign = 1 if j in same else -1
                loss += np.log1p(np.exp(-sign * logits[i, j])) / count
                slope[i, j] = -sign / (1 + np.exp(sign * logits[i, j])) / count
    gradients = scale * slope @ texts, scale * slope.T @ images, (slope * (images @ texts.T)).sum(), slope.sum()
    return loss, gradients[: len(INPUTS[kind])]


@pytest.mark.parametrize("kind", LOSSES)
def test_value_and_gradients_are_open_clips(kind):
    value, gradients = value_and_grad(kind, golden_inputs(kind, 13))
    np.testing.assert_allclose(value, GOLDEN[f"13/{kind}/value"], rtol=1e-6)
    for name, gradient in zip(INPUTS[kind], gradients, strict=True):
        np.testing.assert_allclose(gradient, GOLDEN[f"13/{kind}/{name}"], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("implementation", ["reference", "gather", "ring"])
@pytest.mark.parametrize("kind", LOSSES)
def test_rows_with_equal_labels_are_positives_of_each_other(kind, implementation):
    inputs = golden_inputs(kind, 24)
    wanted, slopes = oracle(kind, *(inputs if kind == "siglip" else [*inputs, 0.0]), LABELS)
    with jax.set_mesh(mesh_of((2, 2, 2))):
        value, gradients = value_and_grad(kind, inputs, jnp.asarray(LABELS), implementation)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for name, gradient, slope in zip(INPUTS[kind], gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 2, 2)], ids=["data and fsdp", "data, fsdp and tensor"])
@pytest.mark.parametrize("implementation", ["gather", "ring"])
@pytest.mark.parametrize("kind", LOSSES)
def test_eight_devices_give_the_loss_and_gradients_of_the_global_batch(kind, implementation, shape):
    mesh, inputs = mesh_of(shape), golden_inputs(kind, 24)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    inputs[:2] = [jax.device_put(x, rows) for x in inputs[:2]]
    with jax.set_mesh(mesh):
        value, gradients = value_and_grad(kind, inputs, implementation=implementation)
    np.testing.assert_allclose(value, GOLDEN[f"24/{kind}/value"], rtol=1e-6)
    for name, gradient in zip(INPUTS[kind], gradients, strict=True):
        np.testing.assert_allclose(gradient, GOLDEN[f"24/{kind}/{name}"], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_scale_of_100_does_not_overflow():
    images, texts, _ = golden_inputs("clip", 24)
    texts = jnp.where(jnp.arange(24)[:, None] < 12, images, -images)  # logits from -100 to 100, by shard
    wanted, slopes = oracle("clip", images, texts, 100.0, 0.0, np.arange(24))
    with jax.set_mesh(mesh_of(EIGHT)):
        value, gradients = value_and_grad("clip", [images, texts, jnp.float32(100)], implementation="ring")
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)  # logits of 100 have steps of 8e-6


@pytest.mark.parametrize("kind", LOSSES)
def test_the_mean_of_local_losses_is_another_number(kind):
    images, texts, *scalars = golden_inputs(kind, 24)
    local = [LOSSES[kind](images[i : i + 3], texts[i : i + 3], *scalars) for i in range(0, 24, 3)]
    assert abs(np.mean(local) - GOLDEN[f"24/{kind}/value"]) > 0.5


def test_tiles_of_gathered_rows_do_not_change_the_result(monkeypatch):
    inputs = golden_inputs("clip", 24)
    seen = []
    clip_slope = contrastive._CLIP.slope
    watched = contrastive._CLIP._replace(
        slope=lambda logits, *sides: (seen.append(logits.shape), clip_slope(logits, *sides))[1]
    )
    with jax.set_mesh(mesh_of(EIGHT)):
        for tile in (1, 18, 2**21):  # one shard at a time (3 x 3 logits), two, all eight
            monkeypatch.setattr(contrastive, "TILE", tile)
            loss = functools.partial(contrastive._by_hand, watched, "gather")
            gradient = jax.jit(jax.grad(loss))(*inputs, jnp.zeros(()), jnp.arange(24))
            np.testing.assert_allclose(gradient, GOLDEN["24/clip/images"], rtol=1e-5, atol=1e-6)
    assert sorted(set(seen)) == [(3, 3), (3, 6), (3, 24)]


@pytest.mark.parametrize("kind", LOSSES)
def test_bfloat16_embeds_have_float32_logits(kind):
    images, texts, *scalars = golden_inputs(kind, 24)
    rounded = [x.astype(jnp.bfloat16) for x in (images, texts)]
    exact = LOSSES[kind](*(x.astype(jnp.float32) for x in rounded), *scalars)
    square = jnp.ones((3, 3), jnp.bfloat16)
    for product in (contrastive._dot, contrastive._mix):  # asked of the trace: XLA drops such rounding on CPU by itself
        assert jax.eval_shape(product, square, square).dtype == jnp.float32
    with jax.set_mesh(mesh_of(EIGHT)):
        for implementation in ("reference", "gather"):
            value, gradients = value_and_grad(kind, [*rounded, *scalars], implementation=implementation)
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, exact, rtol=1e-6)
            assert gradients[0].dtype == jnp.bfloat16
            wanted = GOLDEN[f"24/{kind}/images"]
            np.testing.assert_allclose(
                np.float32(gradients[0]), wanted, atol=0.02 * np.abs(wanted).max()
            )  # 2^-8, twice


def test_siglip_starts_where_the_paper_says():
    images = jnp.eye(4, 8)
    texts = jnp.roll(images, 4, axis=1)  # all cosines are 0; scale 10 and bias -10 as at the start of training
    value = contrastive.siglip_loss(images, texts, jnp.full((1,), 10.0), jnp.full((1,), -10.0))
    np.testing.assert_allclose(value, 10.00018, rtol=1e-6)  # one positive at softplus(10), three at softplus(-10)


def collectives(implementation, rows=24):
    with jax.set_mesh(mesh_of(EIGHT)):
        loss = functools.partial(contrastive.clip_loss, implementation=implementation)
        x = jax.ShapeDtypeStruct((rows, 7), jnp.float32)
        text = str(jax.make_jaxpr(loss)(x, x, jnp.float32(1)))
    return {name for name in ("all_gather", "ppermute") if name in text}


def test_automatic_choice_by_mesh_and_batch():
    assert collectives(None) == {"all_gather"}
    assert collectives(None, 2**18) == {"ppermute"}
    assert collectives(None, 23) == set()  # does not divide: the reference
    x = jnp.ones((4, 3))
    assert "shard_map" not in str(jax.make_jaxpr(contrastive.clip_loss)(x, x, jnp.float32(1)))


def test_what_cannot_run_is_an_error():
    x = jnp.ones((6, 3))
    with pytest.raises(ValueError, match=r"needs a mesh"):
        contrastive.clip_loss(x, x, jnp.float32(1), implementation="ring")
    with jax.set_mesh(mesh_of(EIGHT)), pytest.raises(ValueError, match=r"8 batch shards, got a batch of 6"):
        contrastive.clip_loss(x, x, jnp.float32(1), implementation="gather")
    with pytest.raises(ValueError, match="must be None"):
        contrastive.clip_loss(x, x, jnp.float32(1), implementation="pallas")
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(3, 3\)"):
        contrastive.clip_loss(x, x[:3], jnp.float32(1))
    with pytest.raises(ValueError, match=r"labels must be \[N\]"):
        contrastive.clip_loss(x, x, jnp.float32(1), labels=jnp.zeros((3,), int))


WORKER = """
import sys

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.ops import contrastive

golden = np.load(sys.argv[3])
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
mine = slice(12 * jax.process_index(), 12 * jax.process_index() + 12)
images, texts = (jax.make_array_from_process_local_data(rows, golden[f"24/{k}"][mine]) for k in ("images", "texts"))
scalars = golden["24/scale"], golden["24/bias"]
for kind, loss, count in (("clip", contrastive.clip_loss, 1), ("siglip", contrastive.siglip_loss, 2)):
    for how in ("reference", "gather", "ring"):
        step = jax.value_and_grad(lambda *inputs: loss(*inputs, implementation=how), argnums=(0, 1, 2))
        with jax.set_mesh(mesh):
            value, (by_images, by_texts, by_scale) = jax.jit(step)(images, texts, *scalars[:count])
        np.testing.assert_allclose(value, golden[f"24/{kind}/value"], rtol=1e-6)
        np.testing.assert_allclose(by_scale, golden[f"24/{kind}/scale"], rtol=1e-5, atol=1e-6)
        for name, gradient in (("images", by_images), ("texts", by_texts)):
            for shard in gradient.addressable_shards:
                wanted = golden[f"24/{kind}/{name}"][shard.index]
                np.testing.assert_allclose(shard.data, wanted, rtol=1e-5, atol=1e-6)
        print(kind, how, "equal", flush=True)
"""


@pytest.mark.multiprocess
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    golden = str(Path(__file__).parents[1] / "goldens" / "contrastive.npz")
    command = [sys.executable, "-c", WORKER, address]
    workers = [
        subprocess.Popen([*command, str(i), golden], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(2)
    ]
    for worker in workers:
        said, _ = worker.communicate(timeout=300)
        assert worker.returncode == 0, said
        assert said.count("equal") == 6, said
