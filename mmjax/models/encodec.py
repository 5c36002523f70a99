"""EnCodec: sound as a few streams of codes, of which more say it better.

Source: Defossez et al. 2022, arXiv:2210.13438; network from section 3.1, residual codes from 3.2.

    waveforms [B S] -encoder-> z [B T D] -residual codes-> ids [B T Q] -sums of codes, decoder-> waveforms [B S]

B batch, S samples in [-1, 1], T = ceil(S / hop) frames, D width of a code, K codes of a level, Q levels. The sound is
mono. A bandwidth, in kbit/s, is a number of levels: each costs log2(K) bits a frame.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.nn.quantizers import MovingCodebook, Quantized
from mmjax.nn.residual import ResidualCodebook
from mmjax.nn.seanet import Decoder, Encoder, SEANetConfig


@dataclasses.dataclass(frozen=True)
class EncodecConfig:
    """The defaults are the model of 24 kHz."""

    sample_rate: int = 24_000  # samples a second
    codec: SEANetConfig = SEANetConfig()
    quantizer: nn.Module = ResidualCodebook(MovingCodebook(1024, 128, 1.0, threshold=2.0), 32, dropout=True)
    bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s that it can be asked for

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
        return cls(8000, codec, ResidualCodebook(MovingCodebook(16, 8, 1.0), 2, dropout=True), (4.0, 8.0))


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
