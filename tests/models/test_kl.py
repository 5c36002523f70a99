"""The KL autoencoder against LTH14/mar's, with CompVis/latent-diffusion's loss (stored, make_vqgan.py), then what users
rely on."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vqgan_names
from clip_names import close, close_trees, group
from vqgan_names import SIZES, close_players, differentiated, features, perceptual

from mmjax.models import kl, vqgan

GOLDEN = vqgan_names.floats(np.load(Path(__file__).parents[1] / "goldens" / "kl.npz"))
CODEC = vqgan.CodecConfig(**SIZES, encoder_attention=(12,), decoder_attention=())
ADVERSARY = vqgan.Adversary(width=4, layers=2, weight=0.5, start=10)
CONFIG = kl.KLConfig(CODEC, 0.5, 0.01, ADVERSARY, features, perceptual_weight=0.7)


def originals(prefix: str, judge: str) -> dict:
    tree = vqgan_names.tree(group(GOLDEN, prefix), vqgan_names.compvis_half, 2, vqgan_names.KL)
    return {**tree, "discriminator": vqgan_names.discriminator(group(GOLDEN, judge), 2)}


@pytest.fixture(scope="module")
def variables():
    return {"params": originals("weights", "weights_loss"), "perceptual": perceptual(GOLDEN)}


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_posterior_and_its_divergence_equal_the_original(variables):
    outputs = group(GOLDEN, "outputs")
    found = jax.jit(functools.partial(kl.AutoencoderKL(CONFIG).apply, method="posterior"))(
        variables, nhwc(outputs["images"])
    )
    close("mean", found.mean, nhwc(outputs["mean"]), relative=1e-5)
    close("log variance", found.log_variance, nhwc(outputs["log_variance"]), relative=1e-5)
    assert 0 < np.mean(outputs["log_variance"][:, 0] == -30) < 1, "the golden should reach the bound here and there"
    close("divergence", found.kl(), outputs["kl"], relative=1e-5)


@pytest.mark.slow
def test_both_players_losses_and_gradients_equal_the_original(variables, monkeypatch):
    outputs = group(GOLDEN, "outputs")
    noise = nhwc(outputs["noise"])
    drawn = lambda one, rng: one.mean + jnp.exp(0.5 * one.log_variance) * noise  # noqa: E731
    monkeypatch.setattr(kl.Gaussian, "sample", drawn)
    for step, name in ((9, "before"), (10, "after")):
        (value, aux), gradients = differentiated(kl.AutoencoderKL(CONFIG), kl.loss)(
            variables, nhwc(outputs["images"]), step
        )
        close_players(GOLDEN, name, value, aux.metrics, ADVERSARY.weight)
    close("loss divergence", aux.metrics["kl"], outputs["kl"].mean(), relative=1e-5)
    # For each number of a picture: key biases, whose gradients are rounding around 0, are measured against 1e-6.
    each = [
        jax.tree.map(lambda x: x / (16 * 24 * 3), one) for one in (gradients, originals("gradients", "gradients_loss"))
    ]
    close_trees(*each, relative=1e-4)


@pytest.mark.slow
def test_what_is_encoded_is_scaled_and_comes_back(variables):
    images, model = nhwc(group(GOLDEN, "outputs")["images"]), kl.AutoencoderKL(CONFIG)
    z = jax.jit(functools.partial(model.apply, method="encode"))(variables, images)
    out = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(z, 0.5 * out.posterior.mean, rtol=1e-5)
    made = jax.jit(functools.partial(model.apply, method="decode"))(variables, z)
    np.testing.assert_allclose(made, out.images, atol=1e-4)


def test_draws_have_the_mean_and_the_deviation_of_their_distribution():
    one = kl.Gaussian.of(jnp.concatenate([jnp.full((1, 40, 50, 2), 3.0), jnp.full((1, 40, 50, 2), np.log(4.0))], -1))
    drawn = one.sample(jax.random.key(0))
    np.testing.assert_allclose((drawn.mean(), drawn.std()), (3.0, 2.0), atol=0.15)
    np.testing.assert_allclose(one.kl(), [4000 * 0.5 * (9 + 4 - 1 - np.log(4))], rtol=1e-5)
    assert kl.Gaussian.of(jnp.array([0.0, 50.0])).log_variance == 20
    standard = kl.Gaussian(jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3)))
    assert not standard.kl().any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "count", "grid"), [(kl.kl_16(), 66_456_019, (16, 16, 16)), (kl.kl_f8(), 83_653_863, (32, 32, 4))]
)
def test_the_published_sizes(config, count, grid):
    model, images = kl.AutoencoderKL(config), jnp.zeros((1, 256, 256, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    found = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in shapes["params"].items()}
    assert sum(found.values()) - found["discriminator"] == count
    assert jax.eval_shape(functools.partial(model.apply, method="encode"), shapes, images).shape == (1, *grid)


@pytest.mark.slow
def test_a_step_of_the_tiny_model_tells_of_both_players():
    model = kl.AutoencoderKL(dataclasses.replace(kl.KLConfig.tiny(), kl_weight=0.1))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def run(variables):
        value, aux = kl.loss(model, variables, {"images": images}, jax.random.key(0), 3)
        return value, aux.metrics

    value, metrics = jax.eval_shape(run, shapes)
    assert value.shape == ()
    assert {"kl", "reconstruction", "generator", "discriminator"} <= set(metrics)
