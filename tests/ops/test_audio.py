"""Spectra, bands and rates against librosa, scipy and torch (tests/goldens/make_audio.py), and on known waves."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close

from mmjax.ops import audio

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "audio.npz")
WAVES = GOLDEN["waves"]
BANDS = audio.Bands()


def tone(hertz: float, seconds: float = 0.5, rate: int = 8_000) -> np.ndarray:  # [1 S]
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)[None].astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop"), [(64, 16), (60, 17)])
def test_spectra_and_the_way_back(n_fft, hop):
    @jax.jit
    def run(waves, turned):
        spectra = audio.stft(waves, n_fft, hop)
        return spectra, audio.inverse_stft(spectra, hop, 1001), audio.inverse_stft(turned, hop, 1001)

    spectra, back, nearest = run(WAVES, GOLDEN[f"turned/{n_fft}"])
    assert spectra.shape == (2, 1 + 1001 // hop, n_fft // 2 + 1)
    close("stft", spectra, GOLDEN[f"stft/{n_fft}"], relative=1e-5)
    close("back", back, WAVES, relative=1e-5)
    # Of a spectrum that no wave has, the nearest wave: here windows and their weights matter.
    close("inverse", nearest, GOLDEN[f"inverse/{n_fft}"], relative=1e-5)


def test_frames_and_their_sum():
    x = np.arange(2 * 23, dtype=np.float32).reshape(2, 23)
    found = np.asarray(jax.jit(audio.frames, static_argnums=(1, 2))(x, 7, 3))
    np.testing.assert_array_equal(found, np.stack([x[:, 3 * t : 3 * t + 7] for t in range(6)], 1))
    total = np.zeros((2, 22))
    for t in range(6):
        total[:, 3 * t : 3 * t + 7] += found[:, t]
    np.testing.assert_array_equal(jax.jit(audio.overlap_add, static_argnums=1)(found, 3), total)
    np.testing.assert_array_equal(audio.frames(x, 4, 9), np.stack([x[:, :4], x[:, 9:13], x[:, 18:22]], 1))  # with gaps


def test_bands_on_both_scales():
    names = [name for name in GOLDEN if name.startswith("filters/")]
    assert len(names) >= 6
    for name in names:
        _, rate, htk, norm = name.split("/")
        n_fft, mels, low, high = (512, 80, 0.0, None) if rate == "8000" else (400, 21, 50.0, 7_600.0)
        scale = audio.HTK if htk == "True" else audio.SLANEY
        bands = audio.Bands(int(rate), n_fft, 128, mels, low, high, scale, even=norm == "slaney")
        close(name, bands.filters, GOLDEN[name], relative=1e-5)
    both = [dataclasses.replace(BANDS, power=power) for power in (1, 2)]
    found = jax.jit(lambda x: [audio.mel(audio.stft(x, 512, 128), bands) for bands in both])(WAVES)
    for power, bands in enumerate(found, 1):
        close(f"mel {power}", bands, GOLDEN[f"mel/{power}"], relative=1e-5)


def test_loss_and_gradient_of_log_mel():
    run = jax.jit(jax.value_and_grad(lambda x: jnp.sum(GOLDEN["factor"] * audio.log_mel(x, BANDS))))
    value, slope = run(WAVES)
    close("loss", value, GOLDEN["loss"], relative=1e-5)
    close("gradient", slope, GOLDEN["gradient"], relative=1e-4)
    np.testing.assert_array_equal(run(0 * WAVES)[1], 0)  # of silence: no NaN


def test_griffin_lim_step_by_step():
    run = jax.jit(lambda x: [audio.griffin_lim(x, 16, 1001, steps) for steps in (1, 5)])
    for steps, found in zip((1, 5), run(np.abs(GOLDEN["stft/64"])), strict=True):
        close(f"wave {steps}", found, GOLDEN[f"griffin_lim/{steps}"], relative=1e-4)


def test_other_rates():
    rates = ((44_100, 8_000), (8_000, 16_000), (8_000, 11_025), (16_000, 8_000))
    for (old, new), found in zip(
        rates, jax.jit(lambda x: [audio.resample(x, *one) for one in rates])(WAVES), strict=True
    ):
        close(f"resampled {old} {new}", found, GOLDEN[f"resample/{old}/{new}"], relative=1e-5)


def test_a_tone_stays_a_tone_at_another_rate():
    found = np.asarray(jax.jit(audio.resample, static_argnums=(1, 2))(tone(440.0), 8_000, 11_025))
    wanted = tone(440.0, 1.0, rate=11_025)[:, : found.shape[1]]
    np.testing.assert_allclose(found[:, 200:-200], wanted[:, 200:-200], atol=2e-3)
    np.testing.assert_array_equal(audio.resample(WAVES, 8_000, 8_000), WAVES)


def test_bands_come_back_as_a_wave_that_has_them():
    """The whole way, as a model's bands go: magnitudes, then phases. A tone and one of another pitch stay apart."""
    waves = np.concatenate([tone(440.0), tone(1250.0)])
    squared = dataclasses.replace(BANDS, power=2.0)

    @jax.jit
    def run(waves):
        spectra = audio.stft(waves, 512, 128)
        magnitudes, again = (audio.inverse_mel(audio.mel(spectra, bands), bands) for bands in (BANDS, squared))
        return jnp.abs(spectra), magnitudes, again, audio.griffin_lim(magnitudes, BANDS.hop, waves.shape[1])

    spectra, magnitudes, again, back = map(np.asarray, run(waves))
    assert magnitudes.shape == (2, 32, 257)
    assert magnitudes.min() >= 0
    assert again.min() >= 0
    close("bands", magnitudes @ BANDS.filters, spectra @ BANDS.filters, relative=0.05)
    close("bands of squares", again**2 @ BANDS.filters, spectra**2 @ BANDS.filters, relative=0.05)
    heard = np.abs(np.fft.rfft(back)).argmax(-1) * 8_000 / back.shape[1]  # Hz
    np.testing.assert_allclose(heard, [440, 1250], atol=16)
    loud = np.square(back).mean(1) / np.square(waves).mean(1)
    np.testing.assert_allclose(loud, 1, atol=0.2)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"a batch \[B S\], got \[1001\]"):
        audio.stft(WAVES[0], 64, 16)
    with pytest.raises(ValueError, match="n_fft=63"):
        audio.stft(WAVES, 63, 16)
    with pytest.raises(ValueError, match="hold no frame of 2000"):
        audio.frames(WAVES, 2000, 100)
    with pytest.raises(ValueError, match=r"of mels=80 bands hold no frequency \(the first: band 0\)"):
        _ = audio.Bands(n_fft=128).filters
    with pytest.raises(ValueError, match=r"high=5000 Hz don't lie in 0 to 4000"):
        _ = audio.Bands(high=5000).filters
