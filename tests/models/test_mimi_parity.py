"""Mimi next to transformers' MimiModel, live: random sizes, lengths, levels, all gradients."""

import jax
import numpy as np
import pytest
from audio_names import oracle, training
from closeness import close

from mmjax import weights
from mmjax.weights import engine
from mmjax.weights import mimi as names

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    ("ratios", "groups", "heads", "window", "semantic", "samples"),
    [((3, 2), 8, 2, 3, 1, 101), ((2, 2), 16, 4, 20, 2, 33)],
)
def test_codes_sound_and_gradients(tmp_path, ratios, groups, heads, window, semantic, samples):
    make = oracle()
    torch.manual_seed(samples)
    config = transformers.MimiConfig(
        sampling_rate=8000, upsampling_ratios=list(ratios), num_filters=4, hidden_size=16, codebook_size=16,
        codebook_dim=6, vector_quantization_hidden_dimension=6, num_quantizers=4, num_semantic_quantizers=semantic,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=heads, intermediate_size=20,
        sliding_window=window, upsample_groups=groups, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.MimiModel(config)
    make.randomise(theirs)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    model, variables = weights.load_hf(tmp_path / "theirs")
    waveforms = torch.randn(2, samples)
    counts = (semantic, 3, 4)
    with torch.no_grad():
        z = make.latents(theirs, waveforms)
        wanted = [theirs(waveforms[:, None], num_quantizers=count) for count in counts]
    run = jax.jit(lambda variables, x: [model.apply(variables, x, levels=count) for count in counts])
    for found, one in zip(run(variables, waveforms.numpy()), wanted, strict=True):
        close("z", found.z, z.transpose(1, 2), relative=1e-5)
        np.testing.assert_array_equal(found.quantized.ids, one.audio_codes.transpose(1, 2))
        close("waveforms", found.waveforms, one.audio_values[:, 0], relative=1e-5)
    weights.save_hf(tmp_path / "ours", model, variables)
    again, told = transformers.MimiModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values()), told
    with torch.no_grad():
        close("written", again(waveforms[:, None]).audio_values, wanted[-1].audio_values, relative=1e-5)
    weighting = torch.randn(2, samples)
    loss, gradients = make.gradients(theirs, waveforms, weighting)
    value, found = training(model, variables, waveforms.numpy(), weighting.numpy())
    close("loss", value, loss, relative=1e-5)
    rules = [rule for rule in names.RULES(model) if ".codebook." not in rule.theirs]
    ours = engine.save(rules, found, format="gradients")
    assert ours.keys() == gradients.keys()
    largest = max(float(x.abs().max()) for x in gradients.values())
    for name, one in gradients.items():
        if float(one.abs().max()) > 1e-3 * largest:
            close(f"gradient {name}", ours[name], one, relative=1e-4)
        else:
            np.testing.assert_allclose(ours[name], one, atol=1e-6 * largest)
