"""VAR's tokenizer against FoundationVision/VAR (stored, tests/goldens/make_var.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import var_names
import vqgan_names
from clip_names import close, close_trees, group
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec
from vqgan_names import differentiated

from mmjax.models import var_tokenizer, vqvae
from mmjax.nn.quantizers import MovingCodebook
from mmjax.ops import images as image_ops
from mmjax.parallel import mesh as meshes
from mmjax.train.step import _check_same

GOLDEN = vqgan_names.floats(np.load(Path(__file__).parents[1] / "goldens" / "var.npz"))
FOUND = group(GOLDEN, "tokenizer")
MODEL = var_tokenizer.Tokenizer(var_names.TOKENIZER)
CODES = MovingCodebook(9, 4, threshold=0.1)
SIZES = vqvae.VQVAEConfig(width=6, inner=5, blocks=1, quantizer=CODES)
HALVES = vqvae.Encoder(SIZES), vqvae.Decoder(SIZES)  # other networks around the codes
SMALL = var_tokenizer.Tokenizer(var_tokenizer.TokenizerConfig(*HALVES, CODES, (1, 2, 4)))
IMAGES = rearrange(FOUND["images"], "b c h w -> b h w c")


@pytest.fixture(scope="module")
def variables():
    return {"params": var_names.tokenizer(group(FOUND, "weights"))}


@pytest.fixture(scope="module")
def z():
    return rearrange(FOUND["f"], "b c h w -> b h w c")


def test_codes_and_pictures_equal_the_original(variables, z):
    out = jax.jit(MODEL.apply)(variables, IMAGES)
    close("f", out.z, z, relative=1e-5)
    np.testing.assert_array_equal(out.quantized.ids, FOUND["ids"])
    assert len(np.unique(FOUND["ids"])) > 5
    close("fhat", out.quantized.latents, rearrange(FOUND["fhat"], "b c h w -> b h w c"), relative=1e-5)
    close("images", out.images, rearrange(FOUND["made"], "b c h w -> b h w c"), relative=1e-5)


@pytest.fixture(scope="module")
def coded(z):
    """What the golden's f becomes; gradients, to parameters and f, of the loss of codes and of fhat's squares."""

    def run(params, z):
        found = MODEL.apply({"params": params}, z, method="quantised")
        return (found.loss, found.latents), found

    @jax.jit
    def both(params, z):
        (loss, fhat), pull, found = jax.vjp(run, params, z, has_aux=True)
        return found, pull((jnp.ones_like(loss), jnp.zeros_like(fhat))), pull((jnp.zeros_like(loss), 2 * fhat))

    return both(var_names.quantiser(group(FOUND, "weights")), z)


def test_the_loss_of_codes_and_its_gradients_equal_the_original(coded):
    found, (of_params, of_z), _ = coded
    close("loss of codes", found.loss, FOUND["quantising"], relative=1e-5)
    pulls = group(FOUND, "pulls")
    close("gradient of f", of_z, rearrange(pulls["f"], "b c h w -> b h w c"), relative=1e-4)
    close_trees(of_params, var_names.quantiser(pulls), relative=1e-4)


def test_what_a_decoder_says_reaches_the_encoder_only(coded):
    of_params, of_z = coded[2]
    assert not any(np.any(x) for x in jax.tree.leaves(of_params))
    close("gradient of f by the decoder", of_z, 2 * rearrange(FOUND["fhat"], "b c h w -> b h w c"), relative=1e-5)


@pytest.mark.slow
def test_the_whole_loss_and_its_gradients_equal_the_original(variables):
    (value, aux), gradients = differentiated(MODEL, var_tokenizer.loss)(variables, IMAGES, 0)
    close("loss of codes", aux.metrics["quantising"], FOUND["quantising"], relative=1e-5)
    close("loss", value, FOUND["loss"], relative=1e-5)
    close_trees(gradients, var_names.tokenizer(group(FOUND, "gradients")), relative=1e-4)


@pytest.mark.slow
def test_the_picture_after_each_scale_equals_the_original(variables):
    steps = jax.jit(functools.partial(MODEL.apply, method="progressive"))(variables, FOUND["ids"])
    close("steps", steps, rearrange(FOUND["steps"], "s b c h w -> s b h w c"), relative=1e-5)


sums_of = jax.jit(functools.partial(MODEL.apply, method="sums"))


def test_what_ids_add_up_to_is_what_was_encoded(variables, z, coded):
    found = coded[0]
    sums = sums_of(variables, found.ids)
    np.testing.assert_allclose(found.latents, sums[-1], rtol=1e-5, atol=1e-6)
    left = [float(jnp.mean((z - fhat) ** 2)) for fhat in sums]
    np.testing.assert_allclose(found.loss, 1.25 * np.mean(left), rtol=1e-5)  # of the sum after each scale


@pytest.mark.parametrize("p", [2, 3, 6, 10, 13])
def test_resizings_equal_the_original(p):
    for name, rows in (("area", image_ops.area_rows(16, p)), ("cubic", image_ops.cubic_rows(p, 16))):
        found = GOLDEN[f"resize/{name}_{p}/x"][0, 0], GOLDEN[f"resize/{name}_{p}/y"][0, 0]
        np.testing.assert_allclose(rows @ found[0] @ rows.T, found[1], atol=2e-6)


def test_each_scale_has_the_phi_of_the_original():
    assert var_tokenizer.phi_of(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    for count, table in zip((2, 3, 4, 5, 6, 8), GOLDEN["phi"], strict=True):
        for scales, expected in enumerate(table, start=2):
            assert var_tokenizer.phi_of(scales, count) == tuple(expected[expected >= 0]), (scales, count)
    assert var_tokenizer.phi_of(1, 4) == (0,)


def test_every_phi_is_used(variables):
    before = sums_of(variables, FOUND["ids"])
    for i, first in enumerate((0, 1, 2, 3)):
        params = variables["params"]
        changed = {**params, f"phi_{i}": jax.tree.map(lambda x: x + 0.1, params[f"phi_{i}"])}
        after = sums_of({"params": changed}, FOUND["ids"])
        same = [bool(np.array_equal(a, b)) for a, b in zip(after, before, strict=True)]
        assert same == [True] * first + [False] * (4 - first)


@pytest.mark.slow
def test_any_networks_train_and_a_codebook_of_averages_moves():
    model = SMALL
    colours = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3))
    images = np.kron(colours, np.ones((1, 8, 8, 1))).astype(np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    optimizer, losses = optax.adam(1e-2), []
    state = optimizer.init(variables["params"])
    for step in range(30):
        (_, aux), gradients = differentiated(model, var_tokenizer.loss)(variables, images, step)
        changes, state = optimizer.update(gradients, state)
        moved = {**variables, **aux.collections, "params": optax.apply_updates(variables["params"], changes)}
        _check_same("Aux.collections", moved, variables)
        variables = moved
        losses.append(float(aux.metrics["reconstruction"]))
    assert losses[-1] < 0.8 * losses[0]
    assert {"perplexity", "codes_used", "perplexity_1", "codes_used_4"} <= aux.metrics.keys()
    ids = jax.eval_shape(functools.partial(model.apply, method="encode"), variables, images)
    assert (ids.shape, ids.dtype) == ((4, 21), jnp.int32)
    assert jax.eval_shape(functools.partial(model.apply, method="decode"), variables, ids).shape == (4, 16, 16, 3)


@pytest.mark.slow
def test_averages_take_the_vectors_of_all_scales_and_codes_from_before(variables, z):
    """One renewal a step, by what was left at each scale; ids are those of the old codes."""
    own = var_names.quantiser(group(FOUND, "weights"))
    codes = own.pop("quantizer")["codes"]
    config = dataclasses.replace(var_names.TOKENIZER, quantizer=MovingCodebook(11, 3, decay=0.5))
    model = var_tokenizer.Tokenizer(config)
    old = {"params": own, "codebook": {"quantizer": {"state": {"codes": codes, "count": np.ones(11), "total": codes}}}}
    run = jax.jit(lambda v: model.apply(v, z, train=True, method="quantised", mutable=["codebook"]))
    found, changed = run(old)
    np.testing.assert_array_equal(found.ids, FOUND["ids"])
    sums = [np.zeros_like(z), *jax.jit(functools.partial(model.apply, method="sums"))(old, found.ids)]
    rows = [image_ops.area_rows(5, p) for p in config.scales]
    left = [np.einsum("pa,qb,nabd->npqd", row, row, z - fhat) for row, fhat in zip(rows, sums, strict=False)]
    vectors = np.concatenate([x.reshape(3, -1, 3) for x in left], axis=1)
    chosen = np.eye(11)[FOUND["ids"]]
    renewed = changed["codebook"]["quantizer"]["state"]
    np.testing.assert_allclose(renewed["count"], 0.5 + 0.5 * chosen.sum((0, 1)), rtol=1e-6)
    total = 0.5 * codes + 0.5 * np.einsum("blk,bld->kd", chosen, vectors)
    np.testing.assert_allclose(renewed["total"], total, atol=1e-5)


@pytest.mark.slow
def test_eight_devices_have_the_loss_gradients_and_codes_of_one():
    images = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    variables = jax.jit(SMALL.init)(jax.random.key(0), images)
    run = differentiated(SMALL, var_tokenizer.loss)
    (value, aux), gradients = jax.device_get(run(variables, images, 0))
    mesh = meshes.MeshShape(data=8).build()
    with jax.set_mesh(mesh):
        spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
        (found, other), slopes = jax.device_get(run(variables, spread, 0))
    np.testing.assert_allclose(found, value, rtol=1e-5)
    close_trees(slopes, gradients, relative=1e-4)
    close_trees(other.collections, aux.collections, relative=1e-4)
    alone = run(variables, images[:1], 0)[0][1].collections["codebook"]["quantizer"]["state"]
    assert np.abs(alone["count"] - aux.collections["codebook"]["quantizer"]["state"]["count"]).max() > 1e-3


@pytest.mark.slow
def test_the_published_size():
    model = var_tokenizer.Tokenizer(var_tokenizer.published())
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 2) == 108.95
    assert var_tokenizer.published().length == 680
    assert var_tokenizer.published(512).length == 2240
    with pytest.raises(ValueError, match="one of .256, 512., got 1024"):
        var_tokenizer.published(1024)


def test_sizes_that_do_not_fit_are_refused(variables):
    with pytest.raises(ValueError, match=r"must give \[B 5 5 3\], but of images .* it made \[1, 6, 6, 3\]"):
        jax.eval_shape(MODEL.apply, variables, jnp.zeros((1, 12, 12, 3)))
    with pytest.raises(ValueError, match=r"ids must be \[B 39\] for scales \(1, 2, 3, 5\), got \[3, 30\]"):
        jax.eval_shape(functools.partial(MODEL.apply, method="decode"), variables, jnp.zeros((3, 30), jnp.int32))
    with pytest.raises(ValueError, match="each larger than the last"):
        var_tokenizer.TokenizerConfig(scales=(1, 3, 3))
