"""Mimi: speech as 12.5 frames a second, the first code of which is to say what is meant and the others how it sounds.

Source: Defossez et al. 2024, arXiv:2410.00037 (Moshi), section 3.3; sizes as published with it.

    waveforms [B S] -SEANet-> [B 2T D] -transformer, stride 2-> z [B T D] -split residual codes-> ids [B T Q]
    ids [B T Q] -sums of codes-> [B T D] -stride 2, transformer-> [B 2T D] -SEANet-> waveforms [B S]

B batch, S samples in [-1, 1], T = ceil(S / hop) frames, D width of a frame, C width of a code, K codes of a level, Q
levels. Both transformers are causal and look back over a window; positions are rotary. The codes that carry the meaning
and those that carry the sound each quantise the same z (section 3.3.3); what they stand for is summed.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmjax.models.encodec import EncodecOutput, check_waveforms
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import placed
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.mlp import gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.quantizers import MovingCodebook, Quantized
from mmjax.nn.residual import ResidualCodebook
from mmjax.nn.seanet import Conv, Decoder, Encoder, SEANetConfig, overlap
from mmjax.nn.stack import LAYERS, Compute, Stack
from mmjax.ops import masks, rope

STRIDE = 2  # between the frames of SEANet and those of codes


@dataclasses.dataclass(frozen=True)
class MimiConfig:
    """The defaults are kyutai/mimi's, of whose 32 levels Moshi uses 8."""

    sample_rate: int = 24_000  # samples a second
    codec: SEANetConfig = SEANetConfig(
        (8, 6, 5, 4), 64, 512, last_kernel=3, shortcut=False, lstm=0, padding="constant"
    )  # fmt: skip
    semantic: nn.Module = ResidualCodebook(MovingCodebook(2048, 256, 1.0), 1)
    acoustic: nn.Module = ResidualCodebook(MovingCodebook(2048, 256, 1.0), 31, dropout=True)
    depth: int = 8  # layers of either transformer
    num_heads: int = 8
    num_kv_heads: int = 8
    hidden: int = 2048
    window: int = 250  # frames of SEANet that one sees, itself included
    theta: float = 10_000.0  # of the rotary positions
    layer_scale: float = 0.01
    epsilon: float = 1e-5
    up_groups: int = 512  # of channels that the stride to SEANet's frames keeps apart
    compute: Compute = Compute()

    @property
    def dim(self) -> int:
        """D"""
        return self.codec.dim

    @property
    def hop(self) -> int:
        """Samples of a frame of codes."""
        return STRIDE * self.codec.hop

    @property
    def levels(self) -> int:
        """Q, the semantic first."""
        return self.semantic.levels + self.acoustic.levels

    @classmethod
    def tiny(cls) -> "MimiConfig":
        codec = SEANetConfig((4, 2), 4, 16, last_kernel=3, shortcut=False, lstm=0, padding="constant")
        levels = [ResidualCodebook(MovingCodebook(16, 8, 1.0), count) for count in (1, 2)]
        return cls(8000, codec, *levels, depth=2, num_heads=2, num_kv_heads=2, hidden=24, window=4, up_groups=16)


def mimi() -> MimiConfig:  # section 3.3.2 and table 2: 1.1 kbit/s at 8 levels
    return MimiConfig()


class Layer(nn.Module):
    """nn.blocks.PreNormBlock without biases in its products, whose branches have a learned factor."""

    config: MimiConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any, rotate: Any) -> jax.Array:  # [B T D] -> [B T D]
        c, dtype = self.config, self.config.compute.dtype

        def scaled(y: jax.Array, name: str) -> jax.Array:
            return y * self.param(name, nn.initializers.constant(c.layer_scale), (c.dim,)).astype(y.dtype)

        norm, linear = partial(LayerNorm, c.epsilon, dtype), partial(Linear, use_bias=False, dtype=dtype)
        attention = Attention(c.num_heads, dtype, num_kv_heads=c.num_kv_heads, use_bias=False, name="attention")
        x = placed(x + scaled(attention(norm(name="norm1")(x), mask, rotate), "layer_scale1"))
        y = linear(c.dim, name="down")(gelu(linear(c.hidden, name="up")(norm(name="norm2")(x))))
        return placed(x + scaled(y, "layer_scale2"))


class Transformer(nn.Module):
    """No norm follows the last layer."""

    config: MimiConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T D] -> [B T D]
        c = self.config
        rotate = rope.rotation(jnp.arange(x.shape[1])[None], c.dim // c.num_heads, c.theta)
        x = x.astype(c.compute.dtype)
        return Stack(partial(Layer, c), c.depth, c.compute, name=LAYERS)(x, masks.causal(window=c.window), rotate)[0]


class Up(nn.Module):
    """A transposed convolution by STRIDE within groups of channels, without a bias: kernel [k D/groups in D/groups
    out], groups in the second axis."""

    config: MimiConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T D] -> [B T*STRIDE D]
        c = self.config
        width = c.dim // c.up_groups
        kernel = self.param("kernel", torch_linear, (2 * STRIDE, c.up_groups, width, width)).astype(x.dtype)
        windows = jnp.einsum("btgi,kgio->btkgo", rearrange(x, "b t (g i) -> b t g i", i=width), kernel)
        return overlap(rearrange(windows, "b t k g o -> b t k (g o)"), causal=c.codec.causal)


class SplitCodebook(nn.Module):
    """Section 3.3.3: z, through a projection of its own, to the semantic levels and again to the acoustic ones."""

    config: MimiConfig

    def setup(self):
        c = self.config
        self.semantic, self.acoustic = c.semantic, c.acoustic
        linear = partial(Linear, use_bias=False, kernel_init=torch_linear)
        self.semantic_in, self.semantic_out = linear(c.semantic.dim), linear(c.dim)
        self.acoustic_in, self.acoustic_out = linear(c.acoustic.dim), linear(c.dim)

    def __call__(self, z: jax.Array, *, train: bool = False, levels: int | None = None) -> Quantized:
        """[B T D] -> ids [B T q], the semantic first. levels: q, those that count; None: all."""
        acoustic = self._acoustic(self.config.levels if levels is None else levels)
        meaning = self.semantic(self.semantic_in(z), train=train)
        latents = self.semantic_out(meaning.latents)
        if not acoustic:
            return meaning.replace(latents=latents)
        sound = self.acoustic(self.acoustic_in(z), train=train, levels=None if levels is None else acoustic)
        parts = {"semantic": meaning.metrics, "acoustic": sound.metrics}
        return Quantized(
            latents + self.acoustic_out(sound.latents),
            jnp.concatenate([meaning.ids, sound.ids], -1),
            meaning.loss + sound.loss,
            {f"{part}_{name}": x for part, metrics in parts.items() for name, x in metrics.items()},
        )

    def embed(self, ids: jax.Array) -> jax.Array:
        """[B T q] -> [B T D]."""
        first = self.config.semantic.levels
        latents = self.semantic_out(self.semantic.embed(ids[..., :first]))
        if not self._acoustic(ids.shape[-1]):
            return latents
        return latents + self.acoustic_out(self.acoustic.embed(ids[..., first:]))

    def _acoustic(self, levels: int) -> int:
        least, most = self.config.semantic.levels, self.config.levels
        if not least <= levels <= most:
            raise ValueError(f"this model has {most} levels, the first {least} semantic, so {least} to {most} may be "
                             f"asked for, got {levels}")  # fmt: skip
        return levels - least


class Mimi(nn.Module):
    config: MimiConfig

    def setup(self):
        c = self.config
        codec = dataclasses.replace(c.codec, dtype=c.compute.dtype)
        self.encoder, self.decoder = Encoder(codec), Decoder(codec)
        self.encoder_transformer, self.decoder_transformer = Transformer(c), Transformer(c)
        # Filled up with copies of the first frame and the last, and not with zeros.
        self.down = Conv(
            c.dim, 2 * STRIDE, STRIDE, causal=codec.causal, padding="edge", use_bias=False, dtype=codec.dtype
        )
        self.up, self.quantizer = Up(c), SplitCodebook(c)

    def latents(self, waveforms: jax.Array, *, sample_rate: int | None = None) -> jax.Array:
        """[B S] -> [B T D] float32, before quantisation."""
        check_waveforms(waveforms, sample_rate, self.config.sample_rate)
        return self.down(self.encoder_transformer(self.encoder(waveforms[..., None]))).astype(jnp.float32)

    def __call__(
        self, waveforms: jax.Array, *, levels: int | None = None, train: bool = False
    ) -> EncodecOutput:  # fmt: skip
        """[B S]. levels: that count, the semantic ones among them; None: all. With train=True the codebooks are
        renewed: give mutable=["codebook"]."""
        z = self.latents(waveforms)
        quantized = self.quantizer(z, train=train, levels=levels)
        return EncodecOutput(self._sound(quantized.latents)[:, : waveforms.shape[1]], z, quantized)

    def encode(
        self, waveforms: jax.Array, *, levels: int | None = None, sample_rate: int | None = None
    ) -> jax.Array:  # fmt: skip
        """[B S] -> ids [B T q] int32. sample_rate: of the waveforms, where you want it checked."""
        return self.quantizer(self.latents(waveforms, sample_rate=sample_rate), levels=levels).ids

    def decode(self, ids: jax.Array, *, length: int | None = None) -> jax.Array:
        """ids [B T q] of the first q levels -> [B T*hop] float32, or the first `length` samples of it."""
        if ids.ndim != 3:
            raise ValueError(f"ids must be [B T q], a frame's codes side by side, got {list(ids.shape)}")
        most = ids.shape[1] * self.config.hop
        if length is not None and not 1 <= length <= most:
            raise ValueError(f"{ids.shape[1]} frames are {most} samples, got length={length}")
        return self._sound(self.quantizer.embed(ids))[:, :length]

    def _sound(self, latents: jax.Array) -> jax.Array:
        x = self.decoder_transformer(self.up(latents.astype(self.config.compute.dtype)))
        return self.decoder(x)[..., 0].astype(jnp.float32)
