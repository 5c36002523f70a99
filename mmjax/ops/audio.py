"""Waves to spectra and back, mel bands, and other sampling rates.

    stft, inverse_stft         frames under a window, and their overlapping sum
    mel_filters, log_mel       bands as wide as the ear's, and their logarithm
    inverse_mel, griffin_lim   from bands to magnitudes, and from magnitudes to a wave that has them
    resample                   any rate to any other

B waves of S samples in [-1, 1], rows of one length; T frames, N samples a frame, F = N / 2 + 1 frequencies, M bands.
All shapes follow from the arguments' shapes, so everything runs under jit and on a batch; all is float32. Frame t has
its middle at sample t * hop, with zeros beyond both ends, so T = 1 + S // hop. Frames are cut and summed by slices
of length `hop`, and resampling is a product with one row of weights for each phase: no gather, no scatter.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax

TINY = np.finfo(np.float32).tiny


def hann(size: int) -> np.ndarray:
    """[size] float32, periodic: its copies, shifted by a quarter, sum to a constant, and so do their squares."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def frames(waves: jax.Array, size: int, hop: int) -> jax.Array:
    """[B S] -> [B 1+(S-size)//hop size]: pieces that begin `hop` apart, as many as fit."""
    if waves.shape[-1] < size:
        raise ValueError(
            f"waves of {waves.shape[-1]} samples hold no frame of {size}; pad them, or take shorter frames"
        )
    count, slices = 1 + (waves.shape[-1] - size) // hop, -(-size // hop)
    total = (count + slices - 1) * hop
    waves = jnp.pad(waves, ((0, 0), (0, max(0, total - waves.shape[-1]))))[:, :total]
    rows = rearrange(waves, "b (c h) -> b c h", h=hop)
    return jnp.concatenate([rows[:, k : k + count] for k in range(slices)], -1)[..., :size]


def overlap_add(pieces: jax.Array, hop: int) -> jax.Array:
    """[B T N] -> [B (T-1)*hop+N]: the sum of the pieces, each where `frames` would have cut it."""
    _, count, size = pieces.shape
    slices = -(-size // hop)
    pieces = jnp.pad(pieces, ((0, 0), (0, 0), (0, slices * hop - size)))
    rows = rearrange(pieces, "b t (k h) -> k b t h", h=hop)
    rows = sum(jnp.pad(rows[k], ((0, 0), (k, slices - 1 - k), (0, 0))) for k in range(slices))
    return rearrange(rows, "b c h -> b (c h)")[:, : (count - 1) * hop + size]


def stft(waves: jax.Array, n_fft: int, hop: int, window: np.ndarray | None = None) -> jax.Array:
    """[B S] -> complex64 [B T F]. The window, [n_fft], is Hann's if none is given.

    As torch.stft(center=True, pad_mode="constant") and librosa.stft, with frames before frequencies."""
    _check(waves, n_fft, hop)
    padded = jnp.pad(waves.astype(jnp.float32), ((0, 0), (n_fft // 2, n_fft // 2)))
    return jnp.fft.rfft(frames(padded, n_fft, hop) * (hann(n_fft) if window is None else window))


def inverse_stft(spectra: jax.Array, hop: int, length: int, window: np.ndarray | None = None) -> jax.Array:
    """complex [B T F] -> [B length]: the wave whose `stft` is nearest (Griffin and Lim 1984, eq. 6)."""
    count, n_fft = spectra.shape[1], 2 * (spectra.shape[2] - 1)
    window = hann(n_fft) if window is None else window
    waves = overlap_add(jnp.fft.irfft(spectra) * window, hop)
    weight = overlap_add(jnp.broadcast_to(jnp.square(window), (1, count, n_fft)), hop)
    waves = (waves / jnp.maximum(weight, TINY))[:, n_fft // 2 : n_fft // 2 + length]
    return jnp.pad(waves, ((0, 0), (0, length - waves.shape[1])))


def _check(waves: jax.Array, n_fft: int, hop: int) -> None:
    if waves.ndim != 2:
        raise ValueError(f"waves are a batch [B S], got {list(waves.shape)}; a single one is waves[None]")
    if n_fft % 2 or not 0 < hop <= n_fft:
        raise ValueError(f"n_fft must be even and hop between 1 and n_fft, got n_fft={n_fft}, hop={hop}")


# Bands


class Scale(NamedTuple):
    """A scale of pitch: Hz to mel, and back."""

    mel: Callable[[np.ndarray], np.ndarray]
    hertz: Callable[[np.ndarray], np.ndarray]


# The formula of HTK (the HTK book, eq. 5.13): torchaudio's default.
HTK = Scale(lambda f: 2595 * np.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1))
# That of Slaney's Auditory Toolbox: linear up to 1 kHz, then 27 steps for a factor of 6.4. librosa's and Whisper's.
_STEP, _KNEE = 200 / 3, 15.0
SLANEY = Scale(
    lambda f: np.where(f < 1000, f / _STEP, _KNEE + 27 * np.log(np.maximum(f, 1000) / 1000) / np.log(6.4)),
    lambda m: np.where(m < _KNEE, m * _STEP, 1000 * 6.4 ** ((m - _KNEE) / 27)),
)


@dataclasses.dataclass(frozen=True)
class Bands:
    """What `log_mel` measures; the defaults suit speech at 8 kHz: 62.5 frames a second."""

    rate: int = 8_000  # Hz
    n_fft: int = 512  # N, samples
    hop: int = 128  # samples
    mels: int = 80  # M
    low: float = 0.0  # Hz, where the first band begins
    high: float | None = None  # Hz, where the last ends; None: half the rate
    scale: Scale = SLANEY
    even: bool = True  # each band is divided by its width in Hz, so that white noise is equal in all
    power: float = 1.0  # of the magnitudes that are summed: 1 or 2
    floor: float = 1e-5  # the least sum, under the logarithm

    @property
    def filters(self) -> np.ndarray:  # [F M]
        return mel_filters(self)


@functools.lru_cache(maxsize=16)
def mel_filters(bands: Bands) -> np.ndarray:
    """[F M] float32: triangles on the frequencies of `stft`, each from the middle of the last band to that of the next.

    librosa.filters.mel (even: norm="slaney") and torchaudio.functional.melscale_fbanks give the same."""
    high = bands.rate / 2 if bands.high is None else bands.high
    if not 0 <= bands.low < high <= bands.rate / 2:
        raise ValueError(
            f"bands from low={bands.low} to high={high} Hz don't lie in 0 to {bands.rate / 2}, half of the rate"
        )
    frequencies = np.linspace(0, bands.rate / 2, bands.n_fft // 2 + 1)
    ends = np.array([bands.low, high], np.float64)
    points = bands.scale.hertz(np.linspace(*bands.scale.mel(ends), bands.mels + 2))  # [M+2] Hz
    width = np.diff(points)
    away = points - frequencies[:, None]  # [F M+2]
    filters = np.maximum(0, np.minimum(-away[:, :-2] / width[:-1], away[:, 2:] / width[1:]))
    empty = np.flatnonzero(~filters.any(0))
    if len(empty):
        spacing = bands.rate / bands.n_fft
        raise ValueError(
            f"{len(empty)} of mels={bands.mels} bands hold no frequency (the first: band {empty[0]}), which come each "
            f"{spacing:.1f} Hz with n_fft={bands.n_fft} at {bands.rate} Hz; take fewer mels or a larger n_fft"
        )
    return (filters * (2 / (points[2:] - points[:-2]) if bands.even else 1)).astype(np.float32)


def mel(spectra: jax.Array, bands: Bands) -> jax.Array:
    """complex [B T F] -> [B T M], not negative."""
    return jnp.einsum("btf,fm->btm", jnp.abs(spectra) ** bands.power, bands.filters, precision="highest")


def log_mel(waves: jax.Array, bands: Bands) -> jax.Array:
    """[B S] -> [B T M]: the natural logarithm of magnitudes in bands, not below log(floor)."""
    return jnp.log(jnp.maximum(mel(stft(waves, bands.n_fft, bands.hop), bands), bands.floor))


# Back to waves


def inverse_mel(bands_of: jax.Array, bands: Bands, steps: int = 30) -> jax.Array:
    """[B T M], not negative -> magnitudes [B T F], not negative, whose bands are near: least squares.

    Multiplicative updates (Lee and Seung 2001, theorem 1): from numbers above 0 they never leave them. On spoken words,
    bands are within 0.2 % after 30 steps, where the pseudo-inverse, cut at 0, leaves 2.4 %; the log-mel of Griffin and
    Lim's wave is off by 0.055 on average, against 0.059, and 0.026 from the true magnitudes."""
    filters = bands.filters
    norm = np.float32(filters.max())  # without it, products of filters by width in Hz would vanish in float32
    filters, target = filters / norm, bands_of / norm

    def back(x: jax.Array) -> jax.Array:
        return jnp.einsum("btm,fm->btf", x, filters, precision="highest")

    def step(found: jax.Array, _: None) -> tuple[jax.Array, None]:
        bands_found = jnp.einsum("btf,fm->btm", found, filters, precision="highest")
        return found * above / jnp.maximum(back(bands_found), TINY), None

    above = back(target)
    begin = above / np.maximum(np.square(filters).sum(1), TINY)
    found = lax.scan(step, jnp.where(above > 0, begin, 0.0), None, length=steps)[0]
    return found ** (1 / bands.power)


def griffin_lim(
    magnitudes: jax.Array,
    hop: int,
    length: int,
    steps: int = 32,
    *,
    momentum: float = 0.99,
    phases: jax.Array | None = None,
) -> jax.Array:
    """[B T F] -> [B length]: a wave whose spectrum has nearly these magnitudes.

    The fast variant (Perraudin, Balazs and Sondergaard 2013, algorithm 2); momentum 0 is Griffin and Lim's own. phases:
    [B T F] in radians to begin from, zeros if none are given. As librosa.griffinlim(init=None)."""
    n_fft, share = 2 * (magnitudes.shape[2] - 1), momentum / (1 + momentum)

    def step(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        angles, last = state
        found = stft(inverse_stft(magnitudes * angles, hop, length), n_fft, hop)
        angles = found - share * last
        return (angles / jnp.maximum(jnp.abs(angles), TINY), found), None

    angles = jnp.exp(1j * jnp.zeros_like(magnitudes) if phases is None else 1j * phases)
    angles = lax.scan(step, (angles, jnp.zeros_like(angles)), None, length=steps)[0][0]
    return inverse_stft(magnitudes * angles, hop, length)


# Rates


@functools.lru_cache(maxsize=16)
def resampling_filter(up: int, down: int, zeros: int = 10) -> np.ndarray:
    """[up K] float32: how much each of K samples counts for each phase of the new ones.

    A sinc that ends after `zeros` zeros each way, under Kaiser's window of 5; scipy.signal.resample_poly has the same.
    """
    widest = max(up, down)
    half = zeros * widest
    steps = np.arange(-half, half + 1)
    taps = np.sinc(steps / widest) * np.kaiser(2 * half + 1, 5.0)
    taps *= up / taps.sum()
    before = half // up
    last = (half + (up - 1) * down) // up
    at = half + np.arange(up)[:, None] * down - np.arange(-before, last + 1) * up  # [up K]
    return np.where((at >= 0) & (at < len(taps)), taps[at.clip(0, len(taps) - 1)], 0).astype(np.float32)


def resample(waves: jax.Array, old: int, new: int) -> jax.Array:
    """[B S] at `old` Hz -> [B ceil(S * new / old)] at `new` Hz, with zeros beyond both ends."""
    common = np.gcd(old, new)
    up, down = int(new // common), int(old // common)
    if up == down:
        return waves.astype(jnp.float32)
    length = -(-waves.shape[1] * up // down)
    weights = resampling_filter(up, down)
    before = (10 * max(up, down)) // up
    rows = -(-length // up)
    after = (rows - 1) * down + weights.shape[1] - before - waves.shape[1]
    padded = jnp.pad(waves.astype(jnp.float32), ((0, 0), (before, max(0, after))))
    found = lax.conv_general_dilated(
        padded[:, None], weights[:, None], (down,), "VALID", precision=lax.Precision.HIGHEST
    )
    return rearrange(found[:, :, :rows], "b p t -> b (t p)")[:, :length]
