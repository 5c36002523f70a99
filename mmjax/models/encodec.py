"""EnCodec: sound as a few streams of codes, of which more say it better.

Source: Defossez et al. 2022, arXiv:2210.13438; network from section 3.1, residual codes from 3.2.

    waveforms [B S] -encoder-> z [B T D] -residual codes-> ids [B T Q] -sums of codes, decoder-> waveforms [B S]

B batch, S samples in [-1, 1], T = ceil(S / hop) frames, D width of a code, K codes of a level, Q levels. The sound is
mono. A bandwidth, in kbit/s, is a number of levels: each costs log2(K) bits a frame.

The loss has what the original's has but for its judges (section 3.4): sound beside sound, spectra of several windows
beside spectra, and the codes' own. For spectra it takes Yamamoto et al. 2020, arXiv:1910.11480, eqs. 4-6, on mel bands:
their logarithms count as much as they do, which a loss of few terms needs more than one that is balanced by gradients.
Without a judge, what the codes do not tell is an average: sound that is right and buzzes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.nn.outputs import Aux
from mmjax.nn.quantizers import MovingCodebook, Quantized
from mmjax.nn.residual import ResidualCodebook, started
from mmjax.nn.seanet import Decoder, Encoder, SEANetConfig
from mmjax.ops import audio


@dataclasses.dataclass(frozen=True)
class Objective:
    """What sound is compared by."""

    windows: tuple[int, ...] = (128, 256, 512, 1024, 2048)  # samples
    mels: int = 64  # bands, at most an eighth of the window
    floor: float = 1e-3  # the least magnitude of a band, under the logarithm: what is softer may be anything
    time: float = 1.0  # weights
    mel: float = 1.0

    def bands(self, rate: int) -> list[audio.Bands]:
        return [
            audio.Bands(rate, size, size // 4, min(self.mels, size // 8), floor=self.floor) for size in self.windows
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EncodecConfig:
    """The defaults are the model of 24 kHz."""

    sample_rate: int = 24_000  # samples a second
    codec: SEANetConfig = SEANetConfig()
    quantizer: nn.Module = ResidualCodebook(MovingCodebook(1024, 128, 1.0, threshold=2.0), 32, dropout=True)
    bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s that it can be asked for
    objective: Objective = Objective()

    def __post_init__(self):
        if self.quantizer.dim != self.codec.dim:
            raise ValueError(f"codes are as wide as frames, got {self.quantizer.dim} and codec.dim={self.codec.dim}")

    @property
    def frame_rate(self) -> int:
        """Frames a second, rounded up."""
        return -(-self.sample_rate // self.codec.hop)

    def levels(self, bandwidth: float | None) -> int:
        """How many levels that is; None: all."""
        if bandwidth is None:
            return self.quantizer.levels
        if bandwidth not in self.bandwidths:
            raise ValueError(f"bandwidth must be None (all levels) or one of {self.bandwidths} kbit/s, got {bandwidth}")
        return max(1, math.floor(1000 * bandwidth / (self.frame_rate * math.log2(self.quantizer.num_codes))))

    @classmethod
    def tiny(cls) -> "EncodecConfig":
        """For tests and notebooks: 2 levels, 1000 frames a second at 8 kHz."""
        codec = SEANetConfig((4, 2), 4, 8, lstm=1)
        levels = ResidualCodebook(MovingCodebook(16, 8, 1.0, threshold=0.1), 2, dropout=True)
        return cls(8000, codec, levels, (4.0, 8.0), Objective((64, 128)))

    @classmethod
    def small(cls) -> "EncodecConfig":
        """Speech at 8 kHz in 25 frames a second of 4 codes, 100 tokens and 800 bits a second; learns on a CPU in
        minutes."""
        codec = SEANetConfig((5, 4, 4, 4), 8, 32, lstm=1, shortcut=False, causal=False)
        levels = ResidualCodebook(MovingCodebook(256, 32, 0.25, decay=0.95, threshold=0.2), 4, dropout=True)
        return cls(8000, codec, levels, (0.2, 0.4, 0.6, 0.8), Objective((64, 128, 256, 512, 1024)))


def encodec_24khz() -> EncodecConfig:  # section 3.1 and 3.2, the causal model
    return EncodecConfig()


def encodec_32khz() -> EncodecConfig:  # Copet et al. 2023, arXiv:2306.05284, section 3.1: what MusicGen writes
    codec = SEANetConfig((8, 5, 4, 4), 64, shortcut=False, causal=False)
    return EncodecConfig(32_000, codec, ResidualCodebook(MovingCodebook(2048, 128, 1.0, threshold=2.0), 4), (2.2,))


def check_waveforms(waveforms: jax.Array, sample_rate: int | None, wanted: int) -> None:
    """Raises ValueError for what is no [B S] of floats, or, where it is told, of another rate."""
    if sample_rate is not None and sample_rate != wanted:
        raise ValueError(f"this model hears {wanted} samples a second, got {sample_rate}; resample before")
    if waveforms.ndim != 2 or not waveforms.shape[1]:
        raise ValueError(f"waveforms must be mono, [B S] with at least 1 sample, got {list(waveforms.shape)}")
    if not jnp.issubdtype(waveforms.dtype, jnp.floating):
        raise ValueError(f"waveforms must be float in [-1, 1], got {waveforms.dtype}; divide int16 by 32768")


@struct.dataclass
class EncodecOutput:
    waveforms: jax.Array  # [B S] float32, about in [-1, 1]
    z: jax.Array  # [B T D] float32, before quantisation
    quantized: Quantized


class Encodec(nn.Module):
    config: EncodecConfig

    def setup(self):
        self.encoder = Encoder(self.config.codec)
        self.decoder = Decoder(self.config.codec)
        self.quantizer = self.config.quantizer

    def latents(self, waveforms: jax.Array, *, sample_rate: int | None = None) -> jax.Array:
        """[B S] -> [B T D] float32, before quantisation."""
        check_waveforms(waveforms, sample_rate, self.config.sample_rate)
        return self.encoder(waveforms[..., None]).astype(jnp.float32)

    def __call__(
        self, waveforms: jax.Array, *, bandwidth: float | None = None, train: bool = False
    ) -> EncodecOutput:  # fmt: skip
        """[B S]. With train=True a codebook of averages is renewed: give mutable=["codebook"]."""
        z = self.latents(waveforms)
        levels = None if bandwidth is None else self.config.levels(bandwidth)
        quantized = self.quantizer(z, train=train, levels=levels)
        return EncodecOutput(self._sound(quantized.latents)[:, : waveforms.shape[1]], z, quantized)

    def encode(
        self, waveforms: jax.Array, *, bandwidth: float | None = None, sample_rate: int | None = None
    ) -> jax.Array:
        """[B S] -> ids [B T q] int32 of as many levels as the bandwidth has; None: all. sample_rate: of the waveforms,
        where you want it checked."""
        z = self.latents(waveforms, sample_rate=sample_rate)
        return self.quantizer(z, levels=self.config.levels(bandwidth)).ids

    def decode(self, ids: jax.Array, *, length: int | None = None) -> jax.Array:
        """ids [B T q] of the first q levels -> [B T*hop] float32, or the first `length` samples of it."""
        if ids.ndim != 3:
            raise ValueError(f"ids must be [B T q], a frame's codes side by side, got {list(ids.shape)}")
        most = ids.shape[1] * self.config.codec.hop
        if length is not None and not 1 <= length <= most:
            raise ValueError(f"{ids.shape[1]} frames are {most} samples, got length={length}")
        return self._sound(self.quantizer.embed(ids))[:, :length]

    def _sound(self, latents: jax.Array) -> jax.Array:
        return self.decoder(latents)[..., 0].astype(jnp.float32)


def spectral_distance(found: jax.Array, wanted: jax.Array, bands: audio.Bands) -> jax.Array:
    """[B S] twice -> eq. 5 plus eq. 6 of Yamamoto et al. 2020 on mel bands, over the global batch."""
    ours, theirs = (audio.mel(audio.stft(x, bands.n_fft, bands.hop), bands) for x in (found, wanted))
    floor = theirs.size * bands.floor**2  # silence is divided by what counts as silence
    convergence = jnp.sqrt(jnp.sum((ours - theirs) ** 2) + floor) / jnp.sqrt(jnp.sum(theirs**2) + floor)
    logs = [jnp.log(jnp.maximum(x, bands.floor)) for x in (ours, theirs)]
    return convergence + jnp.mean(jnp.abs(logs[0] - logs[1]))


def loss(model: Encodec, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """batch: waveforms [B S] float in [-1, 1]."""
    c, waveforms = model.config, batch["waveforms"]
    out, changed = model.apply(variables, waveforms, train=True, mutable=["codebook"], rngs={"codes": rng})
    time = jnp.mean(jnp.abs(out.waveforms - waveforms))
    distances = [spectral_distance(out.waveforms, waveforms, bands) for bands in c.objective.bands(c.sample_rate)]
    mel = jnp.stack(distances).mean()
    total = c.objective.time * time + c.objective.mel * mel + out.quantized.loss
    # The next step's codebooks: this one's codes know nothing of this batch.
    return total, Aux({"loss": total, "time": time, "mel": mel, **out.quantized.metrics}, changed)


def begun(model: Encodec, variables: dict, waveforms: jax.Array, rng: jax.Array) -> dict:
    """Variables whose codebooks start by k-means on what the encoder makes of `waveforms` [B S], with at least K frames
    in all. For a Task's `init`, after train.task.init_model."""
    quantizer, z = model.config.quantizer, model.apply(variables, waveforms, method="latents")
    state = started(z, quantizer.levels, quantizer.num_codes, rng)
    codebook = {**variables["codebook"], "quantizer": {"layers": {"state": state}}}
    return {**variables, "codebook": codebook}
