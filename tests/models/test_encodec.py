"""EnCodec against transformers' own numbers (tests/goldens/make_hf_audio.py), then what users rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audio_names import close_forward, close_training, load

from mmjax.models import encodec
from mmjax.weights import encodec as names


def test_codes_and_sound_equal_the_original():
    model, variables, arrays = load("hf_encodec/causal")
    assert arrays["waveforms"].shape[1] % model.config.codec.hop
    close_forward(model, variables, arrays, {"bandwidth": 5.4})


@pytest.mark.slow
def test_codes_and_sound_equal_the_original_without_causality_and_shortcuts():
    model, variables, arrays = load("hf_encodec/symmetric")
    assert not model.config.codec.causal
    close_forward(model, variables, arrays, {"bandwidth": 5.4})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_encodec/causal", "hf_encodec/symmetric"])
def test_the_loss_and_gradients_through_codes_equal_the_original(name):
    model, variables, arrays = load(name)
    close_training(model, variables, arrays, names.RULES(model))


def test_published_sizes():
    """Counted in transformers' models, without the lengths of normalised kernels."""
    for config, halves, levels in (
        (encodec.encodec_24khz(), (7_423_472, 7_423_345), 32),
        (encodec.encodec_32khz(), (28_438_432, 28_438_305), 4),
    ):
        shapes = jax.eval_shape(encodec.Encodec(config).init, jax.random.key(0), jnp.zeros((1, 640)))
        params = shapes["params"]
        assert tuple(sum(x.size for x in jax.tree.leaves(params[half])) for half in ("encoder", "decoder")) == halves
        codes = shapes["codebook"]["quantizer"]["layers"]["state"]["codes"]
        assert codes.shape == (levels, config.quantizer.num_codes, 128)
    at = [encodec.encodec_24khz().levels(bandwidth) for bandwidth in (1.5, 3.0, 6.0, 12.0, 24.0)]
    assert at == [2, 4, 8, 16, 32]
    assert encodec.encodec_32khz().levels(2.2) == 4


def test_what_does_not_fit_is_refused():
    model = encodec.Encodec(encodec.EncodecConfig.tiny())

    def run(x, **how):
        return jax.eval_shape(lambda: model.init(jax.random.key(0), x, method="encode", **how))

    for x, how, words in (
        (np.zeros((1, 16), np.float32), {"bandwidth": 5.0}, r"one of \(4.0, 8.0\) kbit/s, got 5.0"),
        (np.zeros((1, 16), np.float32), {"sample_rate": 16000}, "hears 8000 samples a second, got 16000"),
        (np.zeros((1, 16, 1), np.float32), {}, r"mono, \[B S\].*got \[1, 16, 1\]"),
        (np.zeros((1, 0), np.float32), {}, r"at least 1 sample, got \[1, 0\]"),
        (np.zeros((1, 16), np.int16), {}, "float in .* got int16; divide"),
    ):
        with pytest.raises(ValueError, match=words):
            run(x, **how)
    with pytest.raises(ValueError, match="2 frames are 16 samples, got length=17"):
        model.apply({}, np.zeros((1, 2, 2), np.int32), length=17, method="decode")
    with pytest.raises(ValueError, match=r"\[B T q\].*got \[1, 2\]"):
        model.apply({}, np.zeros((1, 2), np.int32), method="decode")
