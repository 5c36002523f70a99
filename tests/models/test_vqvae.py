"""VQ-VAE against a plain account of the paper in torch (stored, make_vqvae.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close, close_trees, group

from mmjax.models import vqvae
from mmjax.nn.quantizers import FSQ, LFQ, Codebook, MovingCodebook
from mmjax.ops import quantize
from mmjax.train.step import _check_same

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "vqvae.npz")
CONFIG = vqvae.VQVAEConfig(width=6, inner=5, quantizer=Codebook(9, 3, commitment=0.4))
TINY = vqvae.VQVAE(vqvae.VQVAEConfig.tiny())
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 12, 3)).astype(np.uint8)


def conv(flat: dict, name: str, axes: tuple[int, ...] = (2, 3, 1, 0)) -> dict:
    """Of Conv2d, and of ConvTranspose2d, whose weights are (in, out, h, w) and whose kernels here (h, w, out, in)."""
    kernel = flat[f"{name}.weight"].transpose(axes)
    return {"kernel": kernel[0, 0] if kernel.shape[0] == 1 else kernel, "bias": flat[f"{name}.bias"]}


def tree(flat: dict) -> dict:
    def blocks(name: str) -> dict:
        parts = {"conv": "wide", "out": "narrow"}
        return {f"block{i}": {our: conv(flat, f"{name}.{i}.{their}") for our, their in parts.items()} for i in (0, 1)}

    encoder = {
        "conv_down0": conv(flat, "first"),
        "conv_down1": conv(flat, "second"),
        "out": conv(flat, "code"),
        **blocks("down"),
    }
    decoder = {
        "conv_in": conv(flat, "back"),
        "conv_up0": conv(flat, "third"),
        "conv_up1": conv(flat, "fourth"),
        **blocks("up"),
    }
    return {"encoder": encoder, "decoder": decoder, "quantizer": {"codes": flat["codes"]}}


@functools.partial(jax.jit, static_argnums=0)
def run(config, variables, images):
    def value(params):
        return vqvae.loss(
            vqvae.VQVAE(config), {**variables, "params": params}, {"images": images}, jax.random.key(0), 0
        )

    return jax.value_and_grad(value, has_aux=True)(variables["params"])


def test_outputs_loss_and_gradients_equal_the_papers():
    outputs, variables = group(GOLDEN, "outputs"), {"params": tree(group(GOLDEN, "weights"))}
    images = outputs["images"].transpose(0, 2, 3, 1)
    out = jax.jit(vqvae.VQVAE(CONFIG).apply)(variables, images)
    close("z", out.z, outputs["z"], relative=1e-5)
    close("images", out.images, outputs["made"].transpose(0, 2, 3, 1), relative=1e-5)
    np.testing.assert_array_equal(out.quantized.ids, outputs["ids"])
    assert len(np.unique(outputs["ids"])) > 4
    (value, aux), gradients = run(CONFIG, variables, images)
    close("loss", value, outputs["reconstruction"] + outputs["quantising"], relative=1e-5)
    close("loss of pixels", aux.metrics["reconstruction"], outputs["reconstruction"], relative=1e-5)
    close_trees(gradients, tree(group(GOLDEN, "gradients")), relative=1e-4)
    assert aux.collections == {}


@pytest.fixture(scope="module")
def variables():
    return jax.jit(TINY.init)(jax.random.key(0), IMAGES)


@pytest.mark.slow
def test_ids_alone_rebuild_the_picture(variables):
    ids = jax.jit(functools.partial(TINY.apply, method="encode"))(variables, IMAGES)
    assert (ids.shape, ids.dtype) == ((8, 4, 3), jnp.int32)
    images = jax.jit(functools.partial(TINY.apply, method="decode"))(variables, ids)
    np.testing.assert_allclose(images, jax.jit(TINY.apply)(variables, IMAGES).images, atol=1e-5)


def next_state(variables, images):
    z, state = TINY.apply(variables, images, method="latents"), variables["codebook"]["quantizer"]["state"]
    return quantize.moved(state, z, quantize.nearest(z, state["codes"]), 0.99)


@pytest.mark.slow
def test_a_step_hands_back_the_next_codebook_and_keeps_every_shape(variables):
    (_, aux), gradients = run(TINY.config, variables, IMAGES)
    _check_same("Aux.collections", {**variables, **aux.collections}, variables)
    assert set(aux.collections) == {"codebook"}
    after = aux.collections["codebook"]["quantizer"]["state"]
    wanted = jax.jit(next_state)(variables, IMAGES)
    alive = np.asarray(wanted["count"]) >= 0.1
    np.testing.assert_allclose(np.asarray(after["codes"])[alive], np.asarray(wanted["codes"])[alive], rtol=1e-4)
    assert set(gradients) == {"encoder", "decoder"}
    assert all(np.any(x) for x in jax.tree.leaves(gradients))


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer",
    [FSQ((5, 4, 3)), LFQ(5), MovingCodebook(16, 4, measure=quantize.unit)],
    ids=lambda one: type(one).__name__,
)
def test_every_quantiser_fits(quantizer):
    model = vqvae.VQVAE(dataclasses.replace(TINY.config, quantizer=quantizer))
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    value, aux = jax.eval_shape(
        functools.partial(vqvae.loss, model), variables, {"images": IMAGES}, jax.random.key(0), 0
    )
    assert value.shape == ()
    assert aux.collections == {name: x for name, x in variables.items() if name == "codebook"}
    ids = jax.eval_shape(functools.partial(model.apply, method="encode"), variables, IMAGES)
    images = jax.eval_shape(functools.partial(model.apply, method="decode"), variables, ids)
    assert images.shape == IMAGES.shape


@pytest.mark.slow
def test_the_published_sizes():
    shapes = jax.eval_shape(vqvae.VQVAE(vqvae.VQVAEConfig()).init, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    ids = jax.eval_shape(
        functools.partial(vqvae.VQVAE(vqvae.VQVAEConfig()).apply, method="encode"), shapes, jnp.zeros((1, 128, 128, 3))
    )
    assert ids.shape == (1, 32, 32)  # section 4.2
    assert shapes["codebook"]["quantizer"]["state"]["codes"].shape == (512, 64)
    learned = jax.eval_shape(vqvae.VQVAE(vqvae.eq3()).init, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    assert learned["params"]["quantizer"]["codes"].shape == (512, 64)
    assert "codebook" not in learned


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, got \[1, 10, 8, 3\]"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 10, 8, 3)))
