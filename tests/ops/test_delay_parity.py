"""Delays next to transformers' MusicgenForCausalLM: its masks, and what it makes of a prompt."""

import numpy as np
import pytest
from closeness import close

from mmjax.ops import delay

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("codebooks", "frames"), [(4, 9), (3, 5), (2, 3)])
def test_masks_and_prompts(codebooks, frames):
    config = transformers.MusicgenDecoderConfig(
        vocab_size=16, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, num_codebooks=codebooks
    )
    model = transformers.MusicgenForCausalLM(config)
    pad, delays = 16, delay.musicgen(codebooks)
    codes = np.random.default_rng(0).integers(0, 16, (2, frames, codebooks))
    # Theirs has one more step, of the token that begins, before all others.
    length = delay.steps(frames, delays) + 1
    begin = torch.full((2 * codebooks, 1), pad)
    mask = model.build_delay_pattern_mask(begin, pad, length)[1].reshape(2, codebooks, length)
    np.testing.assert_array_equal(mask[0, :, 1:] == -1, delay.counts(frames, delays).T)
    ours = np.asarray(delay.delayed(codes, delays, pad), np.int64).transpose(0, 2, 1)
    guesses = torch.randint(0, 16, (2, codebooks, length))
    guesses[:, :, 1:][:, torch.tensor(delay.counts(frames, delays).T)] = torch.tensor(
        ours[:, delay.counts(frames, delays).T]
    )
    found = model.apply_delay_pattern_mask(guesses, mask)
    close("delayed codes", ours, found[:, :, 1:].numpy(), relative=0.0, part="forward")
    whole = torch.cat([begin.reshape(2, codebooks, 1), torch.tensor(codes.transpose(0, 2, 1))], -1)
    prompt = model.build_delay_pattern_mask(whole.reshape(2 * codebooks, -1), pad, length)[1]
    np.testing.assert_array_equal(prompt.reshape(2, codebooks, length)[:, :, 1:], ours)
    # What is generated is put back by picking what the mask does not hold, codebook by codebook.
    picked = found[mask != pad].reshape(2, codebooks, frames)
    np.testing.assert_array_equal(delay.undelayed(found[:, :, 1:].permute(0, 2, 1).numpy(), delays), picked.mT)
