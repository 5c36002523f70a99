"""Makes audio.npz: what librosa, scipy and torch make of two waves of an odd length: spectra and back, bands on two
scales, the phases that Griffin and Lim find, other rates, and a gradient through the logarithm of bands.

Run with librosa and torch installed: python tests/goldens/make_audio.py
"""

from pathlib import Path

import librosa
import numpy as np
import scipy.signal
import torch

SIZES = ((64, 16), (60, 17))  # n_fft and hop: a divisor, and none
BANDS = ((8_000, 512, 80, 0.0, 4_000.0), (16_000, 400, 21, 50.0, 7_600.0))  # rate, n_fft, mels, low, high
RATES = ((44_100, 8_000), (8_000, 16_000), (8_000, 11_025), (16_000, 8_000))


def main() -> None:
    rng = np.random.default_rng(0)
    waves = (0.3 * rng.normal(size=(2, 1001)) * np.linspace(0.1, 1, 1001)).astype(np.float32)
    found = {"waves": waves}
    for n_fft, hop in SIZES:
        spectra = librosa.stft(waves, n_fft=n_fft, hop_length=hop)
        turned = spectra * np.exp(1j * rng.normal(size=spectra.shape))  # no wave has this one
        found[f"turned/{n_fft}"] = turned.astype(np.complex64).transpose(0, 2, 1)
        found[f"stft/{n_fft}"] = spectra.transpose(0, 2, 1)
        found[f"inverse/{n_fft}"] = librosa.istft(turned, n_fft=n_fft, hop_length=hop, length=1001)
    for htk in (False, True):
        for norm in ("slaney", None):
            for rate, n_fft, mels, low, high in BANDS:
                made = librosa.filters.mel(
                    sr=rate, n_fft=n_fft, n_mels=mels, fmin=low, fmax=high, htk=htk, norm=norm, dtype=np.float64
                )
                if made.any(1).all():  # with HTK's scale, some of 80 would be empty
                    found[f"filters/{rate}/{htk}/{norm}"] = made.T.astype(np.float32)
    for power in (1.0, 2.0):
        options = {"sr": 8_000, "n_fft": 512, "hop_length": 128, "n_mels": 80, "power": power}
        found[f"mel/{power:.0f}"] = librosa.feature.melspectrogram(y=waves, **options).transpose(0, 2, 1)
    magnitudes = np.abs(librosa.stft(waves, n_fft=64, hop_length=16))
    for steps in (1, 5):
        options = {"n_iter": steps, "n_fft": 64, "hop_length": 16, "length": 1001, "init": None}
        found[f"griffin_lim/{steps}"] = librosa.griffinlim(magnitudes, **options)
    for old, new in RATES:
        common = np.gcd(old, new)
        made = scipy.signal.resample_poly(waves.astype(np.float64), new // common, old // common, axis=1)
        found[f"resample/{old}/{new}"] = made.astype(np.float32)
    x = torch.tensor(waves, requires_grad=True)
    spectra = torch.stft(x, 512, 128, window=torch.hann_window(512), pad_mode="constant", return_complex=True)
    bands = torch.einsum("bft,fm->btm", spectra.abs(), torch.tensor(found["filters/8000/False/slaney"]))
    factor = torch.tensor(rng.normal(size=bands.shape).astype(np.float32))
    value = (factor * torch.log(torch.clamp(bands, min=1e-5))).sum()
    value.backward()
    found |= {"factor": factor.numpy(), "loss": value.detach().numpy(), "gradient": x.grad.numpy()}
    np.savez_compressed(Path(__file__).parent / "audio.npz", **found)


if __name__ == "__main__":
    main()
