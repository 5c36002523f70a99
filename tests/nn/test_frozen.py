"""Pictures through frozen tokenizers and back."""

import jax
import numpy as np

from mmjax.models import kl, vqgan
from mmjax.nn import frozen
from mmjax.nn.quantizers import Codebook

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
CODEC = vqgan.CodecConfig(16, 8, (1, 2), 1, 4, encoder_attention=(), decoder_attention=(), groups=4, patch=2)


def test_codes_are_those_of_the_tokenizer_row_by_row():
    model = vqgan.VQGAN(vqgan.VQGANConfig(CODEC, Codebook(16, 4), None))
    tokenizer = jax.jit(model.init)(jax.random.key(0), IMAGES)
    codes = frozen.Codes(model, side=4)
    tokens = codes.tokens({"tokenizer": tokenizer}, IMAGES)
    ids = model.apply(tokenizer, IMAGES, method="encode")
    np.testing.assert_array_equal(tokens, np.reshape(ids, (4, 16)))
    made = codes.images({"tokenizer": tokenizer}, tokens)
    wanted = np.clip(np.asarray(model.apply(tokenizer, ids, method="decode")) * 127.5 + 127.5, 0, 255)
    np.testing.assert_allclose(made, wanted, atol=0.51)
    assert codes.measured({"tokenizer": tokenizer}, IMAGES) == {}


def test_latents_have_mean_zero_and_deviation_one_and_come_back():
    model = kl.AutoencoderKL(kl.KLConfig(CODEC, scale=1.0, adversary=None))
    variables = {"tokenizer": jax.jit(model.init)(jax.random.key(0), IMAGES)}
    latents = frozen.Latents(model, side=4)
    variables |= latents.measured(variables, IMAGES)
    tokens = np.asarray(latents.tokens(variables, IMAGES))
    assert tokens.shape == (4, 16, 4)
    np.testing.assert_allclose(tokens.mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(tokens.std((0, 1)), 1, atol=1e-3)
    through = np.asarray(model.apply(variables["tokenizer"], IMAGES).images) * 127.5 + 127.5
    np.testing.assert_allclose(latents.images(variables, tokens), np.clip(through, 0, 255), atol=0.51)


def test_colours_are_means_of_squares_to_the_nearest_level():
    colours = frozen.Colours(side=8, levels=4)
    tokens = np.asarray(colours.tokens({}, IMAGES))
    assert tokens.shape == (4, 64)
    assert tokens.max() < colours.num_codes == 64
    made = np.asarray(colours.images({}, tokens)).astype(int)
    means = IMAGES.reshape(4, 8, 2, 8, 2, 3).mean((2, 4))
    assert np.abs(made - means).max() <= 255 / 3 / 2 + 0.5
    assert set(np.unique(made).tolist()) <= {0, 85, 170, 255}
    np.testing.assert_array_equal(colours.tokens({}, made.astype(np.uint8).repeat(2, 1).repeat(2, 2)), tokens)
