"""EnCodec next to transformers' EncodecModel, live: random sizes, lengths, bandwidths, both paddings, all gradients."""

import jax
import numpy as np
import pytest
from audio_names import oracle, training
from closeness import close

from mmjax import weights
from mmjax.weights import encodec as names
from mmjax.weights import engine

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity

CASES = [  # causal, shortcut, padding, ratios, LSTM layers, samples
    (True, True, "reflect", (3, 2), 2, 101),
    (True, False, "constant", (2, 3, 2), 1, 5),  # less than a frame
    (False, False, "reflect", (5, 2), 1, 3),  # shorter than what is reflected
    (False, True, "replicate", (2, 3), 1, 64),
]


@pytest.mark.parametrize(("causal", "shortcut", "padding", "ratios", "lstm", "samples"), CASES)
def test_codes_sound_and_gradients(tmp_path, causal, shortcut, padding, ratios, lstm, samples):
    make = oracle()
    torch.manual_seed(samples)
    config = transformers.EncodecConfig(
        sampling_rate=8000, upsampling_ratios=list(ratios), num_filters=4, num_residual_layers=2, hidden_size=6,
        codebook_size=16, num_lstm_layers=lstm, use_causal_conv=causal, use_conv_shortcut=shortcut, pad_mode=padding,
        target_bandwidths=[4 * (8000 // np.prod(ratios) + 1) * q / 1000 for q in (1, 2, 3)],
    )  # fmt: skip
    theirs = transformers.EncodecModel(config)
    make.randomise(theirs)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    model, variables = weights.load_hf(tmp_path / "theirs")
    waveforms = torch.randn(2, samples)
    with torch.no_grad():
        z = make.latents(theirs, waveforms)
        wanted = [theirs(waveforms[:, None], bandwidth=one) for one in config.target_bandwidths]
    run = jax.jit(lambda variables, x: [model.apply(variables, x, bandwidth=one) for one in config.target_bandwidths])
    for found, one in zip(run(variables, waveforms.numpy()), wanted, strict=True):
        close("z", found.z, z.transpose(1, 2), relative=1e-5)
        np.testing.assert_array_equal(found.quantized.ids, one.audio_codes[0].transpose(1, 2))
        close("waveforms", found.waveforms, one.audio_values[:, 0], relative=1e-5)
    weights.save_hf(tmp_path / "ours", model, variables)
    again, told = transformers.EncodecModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values()), told
    with torch.no_grad():
        close("written", again(waveforms[:, None], bandwidth=config.target_bandwidths[-1]).audio_values,
              wanted[-1].audio_values, relative=1e-5)  # fmt: skip
    weighting = torch.randn(2, samples)
    loss, gradients = make.gradients(theirs, waveforms, weighting)
    value, found = training(model, variables, waveforms.numpy(), weighting.numpy())
    close("loss", value, loss, relative=1e-5)
    rules = [rule for rule in names.RULES(model) if not rule.theirs.startswith("quantizer.")]
    ours = engine.save(rules, found, format="gradients")
    assert ours.keys() == gradients.keys()
    largest = max(float(x.abs().max()) for x in gradients.values())
    for name, one in gradients.items():
        if float(one.abs().max()) > 1e-3 * largest:
            close(f"gradient {name}", ours[name], one, relative=1e-4)
        else:
            np.testing.assert_allclose(ours[name], one, atol=1e-6 * largest)
