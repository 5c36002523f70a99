"""VAR's tokenizer: a picture as grids of codes from coarse to fine, each of what all those before it left over.

Source: Tian et al. 2024, arXiv:2404.02905, section 3.2, algorithms 1 and 2, eq. 5; what the paper leaves open from
FoundationVision/VAR (models/quant.py, models/vqvae.py). How the published tokenizer was trained is not public.

    images [B H W 3] -encoder-> f [B h h D]                        rest = f, fhat = 0, then for each scale p:
        rest -mean over areas-> [B p p D] -nearest code-> ids [B p p]
        codes [B p p D] -cubic-> [B h h D] -phi-> added to fhat, taken from rest
    fhat -decoder-> images [B H W 3]

B pictures, H W pixels, h side of the grid and of the last scale, D width of a code, L = sum of p^2 codes of a picture
among K in the book that all scales share. Ids are int32 [B L]: scale after scale, each in rows from the top left
(`by_scale` takes them apart). Images are uint8, or float in [-1, 1].

Both resizings are products with constant matrices: means over areas overlap where p does not divide h, and the cubic
takes the edge for what lies beyond it, which other libraries' resizing does not; another code would be the nearest.

A network that starts with codes of another one should start with phi as the identity: kernels that are 1 in the middle
of their diagonal. Not as in the paper: no perceptual and no adversarial term (vqgan.py has both).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import vqgan
from mmjax.models.vqgan import CodecConfig, conv
from mmjax.nn.linear import Linear
from mmjax.nn.outputs import Aux
from mmjax.nn.quantizers import Codebook, MovingCodebook, Quantized
from mmjax.ops import images as image_ops
from mmjax.ops import quantize

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # as published for 256 x 256 pixels
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)

# --- the two halves of the network, as published


class Encoder(nn.Module):
    """VQGAN's, and a convolution more."""

    config: CodecConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [B H W 3] float -> [B h w latent]
        c = self.config
        return conv(c.latent, 3, c.compute.dtype, name="to_code")(vqgan.Encoder(c, c.latent, name="codec")(images))


class Decoder(nn.Module):
    """A convolution, VQGAN's decoder and its last layer."""

    config: CodecConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:  # [B h w latent] -> [B H W 3]
        c, dtype = self.config, self.config.compute.dtype
        x = vqgan.Decoder(c, name="codec")(conv(c.latent, 3, dtype, name="from_code")(z))
        return vqgan.to_image(c, name="to_image")(x)


class MeanEncoder(nn.Module):
    """A KL autoencoder's (kl.py), of which the means are quantised."""

    config: CodecConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [B H W 3] float -> [B h w latent]
        x = vqgan.Encoder(self.config, 2 * self.config.latent, name="codec")(images)
        return Linear(self.config.latent, name="to_code")(x)


class LatentDecoder(nn.Module):
    """A KL autoencoder's."""

    config: CodecConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:  # [B h w latent] -> [B H W 3]
        x = vqgan.Decoder(self.config, name="codec")(Linear(self.config.latent, name="from_code")(z))
        return vqgan.to_image(self.config, name="to_image")(x)


def codec(image_size: int = 256) -> CodecConfig:
    """Only the lowest level looks at itself."""
    lowest = (image_size // 16,)
    return CodecConfig(image_size, 160, latent=32, encoder_attention=lowest, decoder_attention=lowest)


# --- sizes


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The defaults are the published tokenizer's for 256 x 256 pixels: 108.95 M parameters."""

    encoder: nn.Module = Encoder(codec())  # any from images [B H W 3] float to [B h h D]
    decoder: nn.Module = Decoder(codec())  # any from there to [B H W 3]
    quantizer: nn.Module = Codebook(4096, 32)  # or MovingCodebook; the losses are not its own but eq. 5's
    scales: tuple[int, ...] = SCALES_256  # p, from coarse to fine
    phis: int = 4  # convolutions, each shared by neighbouring scales
    phi_share: float = 0.5  # how much of phi is a convolution; the rest is the identity
    commitment: float = 0.25  # beta

    def __post_init__(self):
        rising = all(a < b for a, b in itertools.pairwise(self.scales))
        if not self.scales or self.scales[0] < 1 or not rising:
            raise ValueError(f"scales must be sides of grids from 1 on, each larger than the last, got {self.scales}")
        if self.phis < 1:
            raise ValueError(f"phis must be at least 1, got {self.phis}")

    @property
    def side(self) -> int:  # h
        return self.scales[-1]

    @property
    def sizes(self) -> tuple[int, ...]:  # codes of each scale
        return tuple(p * p for p in self.scales)

    @property
    def length(self) -> int:  # L
        return sum(self.sizes)

    @property
    def dim(self) -> int:  # D
        return self.quantizer.dim

    @property
    def num_codes(self) -> int:  # K
        return self.quantizer.num_codes

    @classmethod
    def tiny(cls) -> "TokenizerConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        half = CodecConfig(10, 8, (1, 2), 1, 4, encoder_attention=(), decoder_attention=(), groups=4)
        return cls(Encoder(half), Decoder(half), MovingCodebook(16, 4, threshold=0.1), (1, 2, 3, 5))


def published(image_size: int = 256) -> TokenizerConfig:
    """For 256 or 512 pixels a side; the weights are the same."""
    scales = {256: SCALES_256, 512: SCALES_512}
    if image_size not in scales:
        raise ValueError(f"image_size must be one of {list(scales)}, got {image_size}")
    half = codec(image_size)
    return TokenizerConfig(Encoder(half), Decoder(half), scales=scales[image_size])


def small(tiny: bool = False) -> TokenizerConfig:
    """32 x 32 pixels as 130 codes; trains on a CPU core in minutes, or in seconds."""
    half = dataclasses.replace(vqgan.small_codec(8), **({"width": 8} if tiny else {}))
    codes = MovingCodebook(64 if tiny else 1_024, 8, threshold=0.03)
    return TokenizerConfig(MeanEncoder(half), LatentDecoder(half), codes, (1, 2, 3, 4, 6, 8))


# --- the paper's maths


def phi_of(scales: int, phis: int) -> tuple[int, ...]:
    """Which of the convolutions each scale has: the one whose place in (0, 1) is nearest to the scale's in [0, 1].

    Scales that lie between two are given to one of them by rounding, so this is the original's arithmetic, operation
    by operation.
    """
    edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    places = np.linspace(edge, 1 - edge, phis)
    return tuple(int(np.argmin(np.abs(places - k / max(scales - 1, 1)))) for k in range(scales))


def resized(x: jax.Array, rows: np.ndarray) -> jax.Array:
    """[B h h D], [p h] how much each old row counts in each new one -> [B p p D]."""
    return jnp.einsum("ph,qw,bhwd->bpqd", rows, rows, x, precision="highest")  # a rounding may change a code


def by_scale(ids: jax.Array, scales: Sequence[int]) -> list[jax.Array]:
    """[B L] -> [B p p] for each scale."""
    if ids.ndim != 2 or ids.shape[1] != sum(p * p for p in scales):
        raise ValueError(
            f"ids must be [B {sum(p * p for p in scales)}] for scales {tuple(scales)}, got {list(ids.shape)}"
        )
    ends = np.cumsum([p * p for p in scales])[:-1]
    return [rearrange(x, "b (p q) -> b p q", p=p) for x, p in zip(jnp.split(ids, ends, axis=1), scales, strict=True)]


# --- the system


@struct.dataclass
class TokenizerOutput:
    images: jax.Array  # [B H W 3] float32, about in [-1, 1]
    z: jax.Array  # [B h h D] float32, f
    quantized: Quantized  # latents [B h h D] are fhat; ids [B L]


class Tokenizer(nn.Module):
    config: TokenizerConfig

    def setup(self):
        c = self.config
        self.encoder, self.decoder, self.quantizer = c.encoder, c.decoder, c.quantizer
        self.phi = [conv(c.dim, 3, jnp.float32, precision="highest") for _ in range(c.phis)]

    def latents(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> f [B h h D] float32, before quantisation."""
        c = self.config
        z = self.encoder(image_ops.to_float(images, 0.5, 0.5)).astype(jnp.float32)
        if z.shape[1:] != (c.side, c.side, c.dim):
            raise ValueError(
                f"the last scale is {c.side} and codes have {c.dim} numbers, so the encoder must give "
                f"[B {c.side} {c.side} {c.dim}], but of images {list(images.shape)} it made {list(z.shape)}"
            )
        return z

    def spread(self, k: int, codes: jax.Array) -> jax.Array:
        """What codes [B p p D] of scale k add to fhat [B h h D]."""
        c = self.config
        if k < len(c.scales) - 1:
            codes = resized(codes, image_ops.cubic_rows(c.scales[k], c.side))
        phi = self.phi[phi_of(len(c.scales), c.phis)[k]]
        return (1 - c.phi_share) * codes + c.phi_share * phi(codes)

    def quantised(self, z: jax.Array, *, train: bool = False) -> Quantized:
        """Algorithm 1 and eq. 5's loss of codes, of f [B h h D]. fhat sends its gradient to f; codes and phi learn from
        the loss: of each scale, how far the sum so far is from f."""
        c = self.config
        rest, fhat, loss = jax.lax.stop_gradient(z), jnp.zeros_like(z), jnp.zeros(())
        ids, vectors, metrics = [], [], {}
        for k, p in enumerate(c.scales):
            seen = resized(rest, image_ops.area_rows(c.side, p)) if p < c.side else rest
            found = self.quantizer(seen).ids
            added = self.spread(k, self.quantizer.embed(found))
            fhat, rest = fhat + added, rest - jax.lax.stop_gradient(added)
            loss += c.commitment * quantize.commitment_loss(z, fhat) + quantize.codebook_loss(z, fhat)
            metrics |= {f"{name}_{p}": x for name, x in quantize.usage(found, c.num_codes).items()}
            ids.append(rearrange(found, "b p q -> b (p q)"))
            vectors.append(rearrange(seen, "b p q d -> b (p q) d"))
        ids, loss = jnp.concatenate(ids, axis=1), loss / len(c.scales)
        if train:  # a codebook of averages is renewed once, by the vectors of all scales
            self.quantizer(jnp.concatenate(vectors, axis=1), train=True)
        metrics |= {"quantising": loss, **quantize.usage(ids, c.num_codes)}
        return Quantized(quantize.straight_through(z, fhat), ids, loss, metrics)

    def __call__(self, images: jax.Array, *, train: bool = False) -> TokenizerOutput:
        """[B H W 3]. With train=True a codebook of averages is renewed: give mutable=["codebook"]."""
        z = self.latents(images)
        quantized = self.quantised(z, train=train)
        return TokenizerOutput(self.decoder(quantized.latents).astype(jnp.float32), z, quantized)

    def encode(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> ids [B L] int32."""
        return self.quantised(self.latents(images)).ids

    def sums(self, ids: jax.Array, count: int | None = None) -> list[jax.Array]:
        """Algorithm 2: ids [B L] -> fhat [B h h D] after each of the first `count` scales (None: all)."""
        parts = enumerate(by_scale(ids, self.config.scales)[:count])
        return list(itertools.accumulate(self.spread(k, self.quantizer.embed(one)) for k, one in parts))

    def draw(self, fhat: jax.Array) -> jax.Array:
        """[B h h D] -> [B H W 3] float32 in [-1, 1]."""
        return jnp.clip(self.decoder(fhat).astype(jnp.float32), -1, 1)

    def decode(self, ids: jax.Array) -> jax.Array:
        """ids [B L] in [0, K) -> [B H W 3] float32 in [-1, 1]."""
        return self.draw(self.sums(ids)[-1])

    def progressive(self, ids: jax.Array) -> jax.Array:
        """ids [B L] -> [S B H W 3] float32: the picture after each of the S scales."""
        images = self.draw(rearrange(self.sums(ids), "s b h w d -> (s b) h w d"))
        return rearrange(images, "(s b) h w c -> s b h w c", b=ids.shape[0])

    # what VAR reads

    def next_inputs(self, k: int, fhat: jax.Array) -> jax.Array:
        """fhat [B h h D] after scale k -> [B n D], what the n codes of scale k + 1 are said by."""
        c = self.config
        return rearrange(resized(fhat, image_ops.area_rows(c.side, c.scales[k + 1])), "b p q d -> b (p q) d")

    def inputs(self, ids: jax.Array) -> jax.Array:
        """ids [B L] -> [B N D] float32 of all scales but the first, in training. The last scale's ids are not read."""
        sums = self.sums(ids, len(self.config.scales) - 1)
        if not sums:
            return jnp.zeros((ids.shape[0], 0, self.config.dim))
        return jnp.concatenate([self.next_inputs(k, fhat) for k, fhat in enumerate(sums)], axis=1)

    def advance(self, k: int, ids: jax.Array, fhat: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """ids [B n] of scale k, fhat [B h h D] before it -> fhat after it, and the next scale's inputs."""
        codes = rearrange(self.quantizer.embed(ids), "b (p q) d -> b p q d", p=math.isqrt(ids.shape[1]))
        fhat = fhat + self.spread(k, codes)
        return fhat, self.next_inputs(k, fhat) if k < len(self.config.scales) - 1 else None


def loss(model: Tokenizer, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Eq. 5's first two terms. batch: images [B H W 3]."""
    images = image_ops.to_float(batch["images"], 0.5, 0.5)
    out, changed = model.apply(variables, images, train=True, mutable=["codebook"], rngs={"codes": rng})
    reconstruction = jnp.mean(jnp.square(out.images - images))
    total = reconstruction + out.quantized.loss
    return total, Aux({"loss": total, "reconstruction": reconstruction, **out.quantized.metrics}, changed)
