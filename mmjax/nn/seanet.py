"""SEANet: convolutions between a waveform and a few frames a second, and back.

Source: Tagliasacchi et al. 2020, arXiv:2009.02095; as EnCodec (Defossez et al. 2022, arXiv:2210.13438, section 3.1) and
Mimi (Defossez et al. 2024, arXiv:2410.00037, section 3.3.1) have it.

    waveforms [B S 1] -Encoder-> z [B T D]          z [B T D] -Decoder-> waveforms [B T*hop 1]

B batch, S samples, T = ceil(S / hop) frames, D width of a frame; hop is the product of the ratios. Whatever the length,
it is filled up at its end, layer by layer, to whole strides. Causal convolutions are filled up in front only, so no
sample depends on a later one, but for that end. Weight normalisation, with which the originals train, is folded into
the kernels.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmjax.nn.linear import Linear, lecun_normal, torch_linear
from mmjax.nn.stack import LAYERS, Stack


@dataclasses.dataclass(frozen=True)
class SEANetConfig:
    """The defaults are EnCodec's at 24 kHz."""

    ratios: tuple[int, ...] = (8, 5, 4, 2)  # in the decoder's order: from few frames to many samples
    width: int = 32  # channels at the rate of samples; twice as many behind each stride
    dim: int = 128  # D
    blocks: int = 1  # residual units before each stride
    kernel: int = 7  # of the first convolution
    last_kernel: int = 7
    residual_kernel: int = 3
    dilation: int = 2  # unit j of a stage has dilation ** j
    compress: int = 2  # how many times narrower a unit is inside
    shortcut: bool = True  # a convolution on the way around a unit, instead of the input itself
    lstm: int = 2  # layers where frames are slowest
    causal: bool = True
    padding: str = "reflect"  # a mode of jnp.pad: "constant" fills with zeros
    dtype: Any = jnp.float32  # of convolutions

    @property
    def hop(self) -> int:
        return math.prod(self.ratios)

    @property
    def widest(self) -> int:
        return self.width * 2 ** len(self.ratios)


def pads(length: int, kernel: int, stride: int, *, causal: bool) -> tuple[int, int]:
    """Samples in front and behind, so that ceil(length / stride) windows of `kernel` (its dilation included) fit."""
    total = kernel - stride
    behind = 0 if causal else total // 2
    return total - behind, behind + -length % stride


def padded(x: jax.Array, around: tuple[int, int], mode: str) -> jax.Array:
    """[B T C] -> [B around+T C]. To be reflected, what is too short is first filled up with zeros at its end."""
    short = max(0, max(around) + 1 - x.shape[1]) if mode == "reflect" else 0
    x = jnp.pad(jnp.pad(x, ((0, 0), (0, short), (0, 0))), ((0, 0), around, (0, 0)), mode)
    return x[:, : x.shape[1] - short]


class Conv(nn.Module):
    """Kernels [k in out]."""

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    causal: bool = True
    padding: str = "reflect"
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T C] -> [B ceil(T/stride) features]
        reach = (self.kernel - 1) * self.dilation + 1
        x = padded(x, pads(x.shape[1], reach, self.stride, causal=self.causal), self.padding)
        kernel = self.param("kernel", lecun_normal, (self.kernel, x.shape[-1], self.features)).astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (self.stride,), "VALID", rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


def overlap(windows: jax.Array, *, causal: bool) -> jax.Array:
    """[B T 2s C], windows of 2s samples, each s behind the one before -> their sum [B T*s C], of whose s samples too
    many the last are left out, or where it isn't causal half of them at either end."""
    stride = windows.shape[2] // 2
    first, second = (
        jnp.pad(half, ((0, 0), side, (0, 0), (0, 0)))
        for half, side in zip(jnp.split(windows, 2, axis=2), ((0, 1), (1, 0)), strict=True)
    )
    whole = rearrange(first + second, "b t s c -> b (t s) c")
    behind = stride if causal else stride // 2
    return whole[:, stride - behind : whole.shape[1] - behind]


class Up(nn.Module):
    """The transposed convolution of a kernel [2s in out] with stride s, as one product and a sum of neighbours."""

    features: int
    stride: int
    causal: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T C] -> [B T*stride features]
        # Of a window only two samples meet in one of the output.
        init = nn.initializers.variance_scaling(self.stride, "fan_in", "normal")
        kernel = self.param("kernel", init, (2 * self.stride, x.shape[-1], self.features)).astype(self.dtype)
        windows = jnp.einsum("btc,kcf->btkf", x.astype(self.dtype), kernel)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return overlap(windows, causal=self.causal) + bias


class LSTMLayer(nn.Module):
    """Hochreiter and Schmidhuber 1997, with gates in torch's order (in, forget, cell, out) and its two biases."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T C] -> [B T C]
        width = x.shape[-1]
        gates = Linear(4 * width, dtype=self.dtype, kernel_init=torch_linear, name="input")(x)
        bias = self.param("hidden_bias", nn.initializers.zeros, (4 * width,)).astype(self.dtype)
        kernel = self.param("hidden_kernel", torch_linear, (width, 4 * width)).astype(self.dtype)

        def step(state: tuple, gates: jax.Array) -> tuple[tuple, jax.Array]:
            hidden, cell = state
            enter, forget, new, leave = jnp.split(gates + hidden @ kernel, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), hidden

        nothing = jnp.zeros((x.shape[0], width), self.dtype)
        hidden = jax.lax.scan(step, (nothing, nothing), rearrange(gates + bias, "b t c -> t b c"))[1]
        return rearrange(hidden, "t b c -> b t c")


class LSTM(nn.Module):
    """x + layers(x)."""

    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T C] -> [B T C]
        return x + Stack(lambda: LSTMLayer(self.dtype), self.depth, name=LAYERS)(x)[0]


def conv(c: SEANetConfig, features: int, kernel: int, name: str, **how: int) -> Conv:
    return Conv(features, kernel, causal=c.causal, padding=c.padding, dtype=c.dtype, name=name, **how)


class Unit(nn.Module):
    """ELU, a dilated convolution, ELU, one of width 1, and the input again."""

    config: SEANetConfig
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T C] -> [B T C]
        c, width = self.config, x.shape[-1]
        y = conv(c, width // c.compress, c.residual_kernel, "conv", dilation=self.dilation)(jax.nn.elu(x))
        y = Linear(width, dtype=c.dtype, kernel_init=lecun_normal, name="out")(jax.nn.elu(y))
        return y + (Linear(width, dtype=c.dtype, kernel_init=torch_linear, name="shortcut")(x) if c.shortcut else x)


class Encoder(nn.Module):
    config: SEANetConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B S 1] -> [B T D]
        c = self.config
        x = conv(c, c.width, c.kernel, "conv_in")(x)
        for i, ratio in enumerate(reversed(c.ratios)):
            for j in range(c.blocks):
                x = Unit(c, c.dilation**j, name=f"stage{i}_unit{j}")(x)
            x = conv(c, 2 * x.shape[-1], 2 * ratio, f"stage{i}_down", stride=ratio)(jax.nn.elu(x))
        x = LSTM(c.lstm, c.dtype, name="lstm")(x) if c.lstm else x
        return conv(c, c.dim, c.last_kernel, "conv_out")(jax.nn.elu(x))


class Decoder(nn.Module):
    config: SEANetConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T D] -> [B T*hop 1]
        c = self.config
        x = conv(c, c.widest, c.kernel, "conv_in")(x)
        x = LSTM(c.lstm, c.dtype, name="lstm")(x) if c.lstm else x
        for i, ratio in enumerate(c.ratios):
            x = Up(x.shape[-1] // 2, ratio, c.causal, c.dtype, name=f"stage{i}_up")(jax.nn.elu(x))
            for j in range(c.blocks):
                x = Unit(c, c.dilation**j, name=f"stage{i}_unit{j}")(x)
        return conv(c, 1, c.last_kernel, "conv_out")(jax.nn.elu(x))
