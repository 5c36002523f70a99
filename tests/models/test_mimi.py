"""Mimi against transformers' own numbers (tests/goldens/make_hf_audio.py), then what users rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audio_names import close_forward, close_training, load

from mmjax.models import mimi
from mmjax.weights import mimi as names


def test_codes_and_sound_equal_the_original():
    model, variables, arrays = load("hf_mimi")
    assert arrays["waveforms"].shape[1] % model.config.hop
    assert arrays["codes"].shape[2] * mimi.STRIDE > model.config.window
    close_forward(model, variables, arrays)


@pytest.mark.slow
def test_the_loss_and_gradients_through_codes_equal_the_original():
    model, variables, arrays = load("hf_mimi")
    close_training(model, variables, arrays, names.RULES(model))


@pytest.mark.slow
def test_published_sizes():
    """Counted in transformers' MimiModel."""
    model = mimi.Mimi(mimi.mimi())
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1920)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 79_308_609
    assert shapes["codebook"]["quantizer"]["acoustic"]["layers"]["state"]["codes"].shape == (31, 2048, 256)
    assert 24_000 / model.config.hop == 12.5


def test_what_does_not_fit_is_refused():
    model = mimi.Mimi(mimi.MimiConfig.tiny())
    for x, how, words in (
        (np.zeros((1, 32), np.float32), {"levels": 4}, "3 levels, the first 1 semantic, so 1 to 3 .* got 4"),
        (np.zeros((1, 32), np.float32), {"levels": 0}, "1 to 3 .* got 0"),
        (np.zeros((1, 32), np.float32), {"sample_rate": 24000}, "hears 8000 samples a second, got 24000"),
        (np.zeros((1, 32, 2), np.float32), {}, r"mono, .*got \[1, 32, 2\]"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(lambda x=x, how=how: model.init(jax.random.key(0), x, method="encode", **how))
    with pytest.raises(ValueError, match="2 frames are 32 samples, got length=33"):
        model.apply({}, np.zeros((1, 2, 3), np.int32), length=33, method="decode")
