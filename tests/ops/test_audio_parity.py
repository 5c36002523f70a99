"""Sounds next to librosa, torch and scipy, live: other sizes than the stored ones."""

import jax
import numpy as np
import pytest
from closeness import close

from mmjax.ops import audio

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
librosa = pytest.importorskip("librosa", reason="pip install librosa")

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(1)


@pytest.mark.parametrize(("n_fft", "hop", "length"), [(400, 160, 3001), (256, 256, 2048), (34, 5, 40)])
def test_spectra_with_another_window(n_fft, hop, length):
    waves = RNG.normal(size=(3, length)).astype(np.float32)
    window = np.hamming(n_fft + 1)[:-1].astype(np.float32)  # periodic
    spectra = jax.jit(lambda x: audio.stft(x, n_fft, hop, window))(waves)
    options = {"n_fft": n_fft, "hop_length": hop, "window": torch.tensor(window)}
    theirs = torch.stft(torch.tensor(waves), **options, pad_mode="constant", return_complex=True)
    close("stft", spectra, theirs.numpy().transpose(0, 2, 1), relative=1e-5)
    turned = spectra * np.exp(1j * RNG.normal(size=spectra.shape)).astype(np.complex64)
    turned = turned.at[..., [0, -1]].set(turned[..., [0, -1]].real)
    back = torch.istft(torch.tensor(np.asarray(turned)).transpose(1, 2), **options, length=length)
    close("inverse", audio.inverse_stft(turned, hop, length, window), back.numpy(), relative=1e-5)


@pytest.mark.parametrize("htk", [False, True])
def test_bands_of_published_models(htk):
    for rate, n_fft, mels, high in ((16_000, 400, 64, 8_000), (22_050, 1024, 80, 8_000), (24_000, 2048, 128, 12_000)):
        bands = audio.Bands(rate, n_fft, 160, mels, 40.0, high, audio.HTK if htk else audio.SLANEY)
        options = {"sr": rate, "n_fft": n_fft, "n_mels": mels, "fmin": 40.0, "fmax": high, "htk": htk}
        close(f"filters {rate}", bands.filters, librosa.filters.mel(**options).T, relative=1e-5)


def test_griffin_lim_of_librosa():
    waves = RNG.normal(size=(2, 4000)).astype(np.float32)
    magnitudes = np.abs(librosa.stft(waves, n_fft=128, hop_length=32))
    found = audio.griffin_lim(magnitudes.transpose(0, 2, 1), 32, 4000, 8, momentum=0.5)
    options = {"n_iter": 8, "n_fft": 128, "hop_length": 32, "length": 4000, "momentum": 0.5, "init": None}
    close("wave", found, librosa.griffinlim(magnitudes, **options), relative=1e-4)
