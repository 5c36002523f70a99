"""VQGAN against CompVis/taming-transformers' own numbers (tests/goldens/make_vqgan.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import vqgan_names
from clip_names import close, close_trees, group
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from vqgan_names import SIZES, close_players, differentiated, features, perceptual

from mmjax.models import vqgan
from mmjax.nn.quantizers import Codebook, MovingCodebook
from mmjax.parallel import mesh as meshes
from mmjax.parallel import rules
from mmjax.train.step import _check_same

GOLDEN = vqgan_names.floats(np.load(Path(__file__).parents[1] / "goldens" / "vqgan.npz"))
CODEC = vqgan.CodecConfig(**SIZES, encoder_attention=(12,), decoder_attention=(12,))
ADVERSARY = vqgan.Adversary(width=4, layers=2, weight=0.8, start=10)
TINY = vqgan.VQGAN(vqgan.VQGANConfig.tiny())
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)


CONFIG = vqgan.VQGANConfig(CODEC, Codebook(11, 3, 1.0, 0.25), ADVERSARY, features, perceptual_weight=0.7)


def originals(prefix: str, judge: str) -> dict:
    tree = vqgan_names.tree(group(GOLDEN, prefix), vqgan_names.compvis_half, 2, vqgan_names.VQ)
    return {**tree, "discriminator": vqgan_names.discriminator(group(GOLDEN, judge), 2)}


@pytest.fixture(scope="module")
def variables():
    return {"params": originals("weights", "weights_loss"), "perceptual": perceptual(GOLDEN)}


def test_pictures_and_ids_equal_the_original(variables):
    outputs = group(GOLDEN, "outputs")
    out = jax.jit(vqgan.VQGAN(CONFIG).apply)(variables, outputs["images"].transpose(0, 2, 3, 1))
    close("z", out.z, outputs["z"].transpose(0, 2, 3, 1), relative=1e-5)
    np.testing.assert_array_equal(out.quantized.ids, outputs["ids"])
    assert len(np.unique(outputs["ids"])) > 4
    close("images", out.images, outputs["made"].transpose(0, 2, 3, 1), relative=1e-5)
    close("loss of codes", out.quantized.loss, outputs["quantising"], relative=1e-5)
    close("perplexity", out.quantized.metrics["perplexity"], outputs["perplexity"], relative=1e-5)


@pytest.mark.slow
def test_both_players_losses_and_gradients_equal_the_original(variables):
    images = group(GOLDEN, "outputs")["images"].transpose(0, 2, 3, 1)
    for step, name in ((9, "before"), (10, "after")):
        (value, aux), gradients = differentiated(vqgan.VQGAN(CONFIG), vqgan.loss)(variables, images, step)
        close_players(GOLDEN, name, value, aux.metrics, ADVERSARY.weight)
        if name == "before":
            assert not any(np.any(x) for x in jax.tree.leaves(gradients["discriminator"]))
    # One scalar: each player has the gradient of its own step there.
    close_trees(gradients, originals("gradients", "gradients_loss"), relative=1e-4)


def test_the_distance_of_features_is_zero_between_equals_and_its_slope_finite():
    maps = [np.zeros((2, 3, 3, 4), np.float32)]
    maps[0][0, 0, 0] = 1.0
    slopes = jax.jit(jax.value_and_grad(lambda x: vqgan.perceptual_distance([x], maps).sum()))
    found, slope = slopes(maps[0])
    assert found == 0
    assert np.isfinite(slope).all()
    apart = jax.jit(vqgan.perceptual_distance)([np.ones((1, 2, 2, 4))], [-np.ones((1, 2, 2, 4))])
    np.testing.assert_allclose(apart, 4.0, rtol=1e-6)  # opposite vectors of length 1


@pytest.mark.slow
def test_the_norm_of_patches_sees_its_group_only():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3, 2)), jnp.float32)
    norm = vqgan.BatchNorm(2)
    params = norm.init(jax.random.key(0), x)
    together, apart = norm.apply(params, x), [norm.apply(params, x[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(together, jnp.concatenate(apart), atol=1e-6)
    assert np.abs(vqgan.BatchNorm().apply(params, x) - together).max() > 0.01
    with pytest.raises(ValueError, match="multiple of group=3 pictures, got 4"):
        vqgan.BatchNorm(3).apply(params, x)


@pytest.mark.slow
def test_both_players_learn_in_one_step_and_the_codebook_moves():
    variables = jax.jit(TINY.init)(jax.random.key(0), IMAGES)
    labels = {name: "judge" if name == "discriminator" else "painter" for name in variables["params"]}
    optimizer = optax.partition({"judge": optax.adam(1e-3, 0.5, 0.9), "painter": optax.adam(2e-3, 0.5, 0.9)}, labels)
    state, losses = optimizer.init(variables["params"]), []
    for step in range(12):
        (_, aux), gradients = differentiated(TINY, vqgan.loss)(variables, IMAGES, step)
        changes, state = optimizer.update(gradients, state)
        moved = {**variables, **aux.collections, "params": optax.apply_updates(variables["params"], changes)}
        _check_same("Aux.collections", moved, variables)
        variables = moved
        losses.append(float(aux.metrics["reconstruction"]))
    assert losses[-1] < losses[0] - 0.05
    ids = TINY.apply(variables, IMAGES, method="encode")
    assert ids.shape == (4, 8, 8)
    again = TINY.apply(variables, ids, method="decode")
    np.testing.assert_allclose(again, TINY.apply(variables, IMAGES).images, atol=1e-4)


@pytest.mark.slow
def test_eight_devices_have_the_losses_gradients_and_codes_of_one():
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    variables = jax.jit(TINY.init)(jax.random.key(0), images)
    run = differentiated(TINY, vqgan.loss)
    (value, aux), gradients = jax.device_get(run(variables, images, 3))
    mesh = meshes.MeshShape(data=8).build()
    with jax.set_mesh(mesh):
        spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
        (found, other), slopes = jax.device_get(run(variables, spread, 3))
    np.testing.assert_allclose(found, value, rtol=1e-5)
    close_trees(slopes, gradients, relative=1e-4)
    close_trees(other.collections, aux.collections, relative=1e-4)
    local = [run(variables, images[i : i + 1], 3)[0][1].metrics["discriminator"] for i in (0, 1)]
    assert abs(np.mean(local) - aux.metrics["discriminator"]) > 1e-3  # batch norm sees the global batch


@pytest.mark.slow
def test_rematerialised_blocks_have_the_same_parameters():
    compute = dataclasses.replace(CODEC.compute, remat="full")
    config = dataclasses.replace(CONFIG, codec=dataclasses.replace(CODEC, compute=compute))
    shapes = [jax.eval_shape(vqgan.VQGAN(c).init, jax.random.key(0), IMAGES[:, :24, :24]) for c in (CONFIG, config)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_the_published_size():
    shapes = jax.eval_shape(vqgan.VQGAN(vqgan.vqgan_f16()).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
    parts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in shapes["params"].items()}
    assert sum(parts.values()) - parts["discriminator"] == 72_141_699
    assert parts["discriminator"] == 2_765_633
    ids = jax.eval_shape(functools.partial(vqgan.VQGAN(vqgan.vqgan_f16()).apply, method="encode"), shapes,
                         jnp.zeros((1, 256, 256, 3)))  # fmt: skip
    assert ids.shape == (1, 16, 16)


@pytest.mark.slow
def test_every_large_array_has_a_sharding_rule():
    mesh = AbstractMesh((2, 4, 2, 1), meshes.AXES, axis_types=(AxisType.Auto,) * 4)
    for codes in (Codebook(16384, 256), MovingCodebook(16384, 256)):
        config = dataclasses.replace(vqgan.vqgan_f16(), quantizer=codes)
        shapes = jax.eval_shape(vqgan.VQGAN(config).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
        placed = rules.shardings(mesh, rules.DEFAULT, shapes)
        whole = placed["params"]["quantizer"] if "codebook" not in placed else placed["codebook"]["quantizer"]
        assert all(x.is_fully_replicated for x in jax.tree.leaves(whole))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, got \[1, 30, 32, 3\]"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 30, 32, 3)))
    with pytest.raises(ValueError, match=r"of 3 layers needs 24 pixels along a side, got \[16, 32\]"):
        jax.eval_shape(vqgan.Discriminator(vqgan.Adversary()).init, jax.random.key(0), jnp.zeros((1, 16, 32, 3)))
    with pytest.raises(ValueError, match="width=6.* groups=4"):
        vqgan.CodecConfig(32, 6, (1, 2), groups=4)


def test_a_codec_may_take_patches_as_pixels_and_pictures_may_go_unjudged():
    """A pixel changes its own patch of 2 x 2 first; the loss is that of squares and codes alone."""
    codec = dataclasses.replace(vqgan.CodecConfig.tiny(), patch=2, multipliers=(1, 2), encoder_attention=())
    c = vqgan.VQGANConfig(codec, Codebook(16, 4), None, square=True)
    model = vqgan.VQGAN(c)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES[:2])
    assert set(variables["params"]) == {"encoder", "decoder", "to_image", "quantizer", "to_code", "from_code"}
    assert codec.levels == ((16, 8), (8, 16))
    assert codec.stride == 4
    kernel = np.zeros((3, 3, codec.width, 12), np.float32)
    kernel[1, 1, 0, 5] = 1.0  # row 0, column 1, blue
    last = {"kernel": kernel, "bias": np.zeros(12, np.float32)}
    features = np.random.default_rng(0).normal(size=(1, 16, 16, codec.width)).astype(np.float32)
    made = np.asarray(model.apply({"params": {"to_image": last}}, features, method="draw"))
    np.testing.assert_allclose(made[:, ::2, 1::2, 2], features[..., 0], rtol=1e-5)
    assert np.count_nonzero(made) == 16 * 16
    value, aux = vqgan.loss(model, variables, {"images": IMAGES[:2]}, jax.random.key(0), 0)
    out = model.apply(variables, IMAGES[:2])
    squares = np.mean((np.asarray(out.images) - (IMAGES[:2] / 127.5 - 1)) ** 2)
    np.testing.assert_allclose(value, squares + out.quantized.loss, rtol=1e-5)
    assert "discriminator" not in aux.metrics
