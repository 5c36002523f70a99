"""VQ-VAE: a picture becomes a small grid of codes from a book, and comes back.

Source: van den Oord et al. 2017, arXiv:1711.00937; network and sizes from section 4.1, loss from eq. 3; the codebook by
moving averages as in appendix A.1, or by eq. 3's second term. The paper doesn't tell the width of the codes: 64 as in
the authors' example in google-deepmind/sonnet.

    images [B H W 3] -encoder-> z [B h w D] -nearest code-> ids [B h w] -codes [B h w D], decoder-> images [B H W 3]

B pictures, H W pixels, h = H / 4, w = W / 4, D width of a code, K codes. Images are uint8, or float in [-1, 1].

The likelihood of pixels is a normal distribution of fixed width: its logarithm, without constants, is the mean square
error. Codes start in (-1/K, 1/K).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.outputs import Aux
from mmjax.nn.quantizers import Codebook, MovingCodebook, Quantized
from mmjax.ops import images as image_ops

STRIDE = 4  # of two convolutions of stride 2: pixels along a side of what one code stands for


@dataclasses.dataclass(frozen=True)
class VQVAEConfig:
    """The defaults are section 4.2's: ImageNet at 128 pixels."""

    width: int = 256  # of all hidden layers
    inner: int = 256  # between the two convolutions of a residual block
    blocks: int = 2  # residual blocks, in the encoder and in the decoder
    quantizer: nn.Module = MovingCodebook(512, 64)  # any of nn/quantizers.py; Codebook(512, 64) for eq. 3 as it stands
    dtype: Any = jnp.float32  # of convolutions; codes are always found in float32

    @classmethod
    def tiny(cls) -> "VQVAEConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        return cls(width=16, inner=8, quantizer=MovingCodebook(16, 4, threshold=0.1))


def eq3() -> VQVAEConfig:
    """Codes learn by the gradient, not by averages."""
    return VQVAEConfig(quantizer=Codebook(512, 64))


@struct.dataclass
class VQVAEOutput:
    images: jax.Array  # [B H W 3] float32, about in [-1, 1]
    z: jax.Array  # [B h w D] float32, before quantisation
    quantized: Quantized


class ResidualBlock(nn.Module):
    """ReLU, 3 x 3, ReLU, 1 x 1, and the input again."""

    inner: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B h w C] -> the same
        y = nn.Conv(self.inner, (3, 3), dtype=self.dtype, kernel_init=torch_linear, name="conv")(jax.nn.relu(x))
        return x + Linear(x.shape[-1], dtype=self.dtype, kernel_init=torch_linear, name="out")(jax.nn.relu(y))


class Encoder(nn.Module):
    config: VQVAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B H W 3] -> [B h w D]
        c, halve = self.config, {"kernel_size": (4, 4), "strides": 2, "padding": 1, "kernel_init": torch_linear}
        x = jax.nn.relu(nn.Conv(c.width, dtype=c.dtype, name="conv_down0", **halve)(x))
        x = nn.Conv(c.width, dtype=c.dtype, name="conv_down1", **halve)(x)
        for i in range(c.blocks):
            x = ResidualBlock(c.inner, c.dtype, name=f"block{i}")(x)
        return Linear(c.quantizer.dim, dtype=c.dtype, kernel_init=torch_linear, name="out")(jax.nn.relu(x))


class Decoder(nn.Module):
    config: VQVAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B h w D] -> [B H W 3]
        c = self.config
        # With 4 x 4 kernels and stride 2, SAME of a transposed convolution is torch's padding of 1.
        double = {"kernel_size": (4, 4), "strides": (2, 2), "padding": "SAME", "transpose_kernel": True}
        x = nn.Conv(c.width, (3, 3), dtype=c.dtype, kernel_init=torch_linear, name="conv_in")(x)
        for i in range(c.blocks):
            x = ResidualBlock(c.inner, c.dtype, name=f"block{i}")(x)
        up = nn.ConvTranspose(c.width, dtype=c.dtype, kernel_init=torch_linear, name="conv_up0", **double)
        x = jax.nn.relu(up(jax.nn.relu(x)))
        return nn.ConvTranspose(3, dtype=c.dtype, kernel_init=torch_linear, name="conv_up1", **double)(x)


class VQVAE(nn.Module):
    config: VQVAEConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quantizer = self.config.quantizer

    def latents(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B h w D] float32, before quantisation."""
        if images.ndim != 4 or images.shape[1] % STRIDE or images.shape[2] % STRIDE:
            raise ValueError(f"images must be [B H W 3], H and W multiples of {STRIDE}, got {list(images.shape)}")
        return self.encoder(image_ops.to_float(images, 0.5, 0.5)).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool = False) -> VQVAEOutput:
        """[B H W 3]. With train=True a codebook of averages is renewed: give mutable=["codebook"]."""
        z = self.latents(images)
        quantized = self.quantizer(z, train=train)
        return VQVAEOutput(self.decoder(quantized.latents).astype(jnp.float32), z, quantized)

    def encode(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> ids [B h w] int32."""
        return self.quantizer(self.latents(images)).ids

    def decode(self, ids: jax.Array) -> jax.Array:
        """ids [B h w] in [0, K) -> [B H W 3] float32, about in [-1, 1]."""
        return self.decoder(self.quantizer.embed(ids)).astype(jnp.float32)


def loss(model: VQVAE, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Eq. 3. batch: images [B H W 3]."""
    images = image_ops.to_float(batch["images"], 0.5, 0.5)
    out, changed = model.apply(variables, images, train=True, mutable=["codebook"], rngs={"codes": rng})
    reconstruction = jnp.mean(jnp.square(out.images - images))
    total = reconstruction + out.quantized.loss
    # The next step's: this one's codes know nothing of this batch.
    return total, Aux({"loss": total, "reconstruction": reconstruction, **out.quantized.metrics}, changed)
