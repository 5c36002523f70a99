"""KL autoencoder: VQGAN's encoder and decoder around a grid of numbers that are kept close to a normal distribution.

Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G; details and the loss from
CompVis/latent-diffusion (modules/losses/contperceptual.py). As MAR's tokens: Li et al. 2024, arXiv:2406.11838.

    images [B H W 3] -encoder-> mean, log variance [B h w Z] -draw-> z [B h w Z] -decoder-> images [B H W 3]

B pictures, H W pixels, h w the grid, Z channels of a latent. Images are uint8, or float in [-1, 1].

Not as in the original: see vqgan.py of the two players. The logarithm of the pixels' variance, which is 0 there and
stays so, since no optimizer holds it, is left out.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.models import vqgan
from mmjax.models.vqgan import Adversary, CodecConfig
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.outputs import Aux
from mmjax.ops import images as image_ops


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The defaults are MAR's KL-16 and, for the loss, autoencoder_kl_64x64x3.yaml's of latent-diffusion."""

    # Of both halves, only the encoder attends before the lowest level's end.
    codec: CodecConfig = CodecConfig(latent=16, decoder_attention=())
    scale: float = 0.2325  # z times this has about deviation 1: what a generator reads
    kl_weight: float = 1e-6
    adversary: Adversary | None = Adversary(weight=0.5, start=50_001)  # None: nobody judges the pictures
    square: bool = False  # as VQGANConfig's, like the two below
    features: Callable | None = None
    perceptual_weight: float = 1.0

    @classmethod
    def tiny(cls) -> "KLConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        codec = dataclasses.replace(CodecConfig.tiny(), latent=4, decoder_attention=())
        return cls(codec, scale=1.0, adversary=Adversary(width=8, layers=2, start=2))


def kl_16() -> KLConfig:  # Li et al. 2024, section 4.3, and the authors' vae.py
    return KLConfig()


def kl_f8() -> KLConfig:  # Rombach et al. 2022, table 8; its scale is Stable Diffusion's
    codec = CodecConfig(256, 128, (1, 2, 4, 4), latent=4, encoder_attention=(), decoder_attention=())
    return KLConfig(codec, scale=0.18215)


@struct.dataclass
class Gaussian:
    """Independent normal distributions."""

    mean: jax.Array  # [B h w Z] float32
    log_variance: jax.Array  # the same

    @classmethod
    def of(cls, moments: jax.Array) -> "Gaussian":  # [B h w 2Z]: means, then logarithms of variances
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(log_variance, -30.0, 20.0))

    def sample(self, rng: jax.Array) -> jax.Array:
        return self.mean + jnp.exp(0.5 * self.log_variance) * jax.random.normal(rng, self.mean.shape)

    def kl(self) -> jax.Array:
        """[B], in nats, from the standard normal distribution; a sum over the grid and its channels."""
        each = self.mean**2 + jnp.exp(self.log_variance) - 1 - self.log_variance
        return 0.5 * each.sum((1, 2, 3))


@struct.dataclass
class KLOutput:
    images: jax.Array  # [B H W 3] float32, about in [-1, 1]
    features: jax.Array  # [B H W C], what `to_image` made them of
    posterior: Gaussian


class AutoencoderKL(nn.Module):
    config: KLConfig

    def setup(self):
        c = self.config
        latent, dtype = c.codec.latent, c.codec.compute.dtype
        self.encoder = vqgan.Encoder(c.codec, 2 * latent)
        self.decoder = vqgan.Decoder(c.codec)
        self.to_image = vqgan.to_image(c.codec)
        self.to_moments = Linear(2 * latent, dtype=dtype, kernel_init=torch_linear)
        self.from_latent = Linear(latent, dtype=dtype, kernel_init=torch_linear)
        if c.adversary is not None:
            self.discriminator = vqgan.Discriminator(c.adversary, dtype)

    def posterior(self, images: jax.Array) -> Gaussian:
        """[B H W 3] -> distributions of z, not yet scaled."""
        return Gaussian.of(self.to_moments(self.encoder(image_ops.to_float(images, 0.5, 0.5))))

    def __call__(self, images: jax.Array, *, train: bool = False) -> KLOutput:
        """[B H W 3]. In training z is drawn, with random numbers of the stream "latents"; else it is the mean."""
        posterior = self.posterior(images)
        z = posterior.sample(self.make_rng("latents")) if train else posterior.mean
        features = self.decoder(self.from_latent(z))
        made = self.draw(features)
        if self.is_initializing() and self.config.adversary is not None:
            self.discriminator(made)
        return KLOutput(made, features, posterior)

    def encode(self, images: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """[B H W 3] -> [B h w Z] float32 times `scale`: a draw or, without rng, the mean."""
        posterior = self.posterior(images)
        return self.config.scale * (posterior.mean if rng is None else posterior.sample(rng))

    def decode(self, z: jax.Array) -> jax.Array:
        """What `encode` gives [B h w Z] -> [B H W 3] float32, about in [-1, 1]."""
        return self.draw(self.decoder(self.from_latent(z / self.config.scale)))

    def draw(self, features: jax.Array) -> jax.Array:
        """The last layer alone: [B H W C] -> [B H W 3] float32."""
        return self.to_image(features)

    def judge(self, images: jax.Array) -> jax.Array:
        """[B H W 3] in [-1, 1] -> [B p q] float32, above 0 for what looks real."""
        return self.discriminator(images)


def loss(model: AutoencoderKL, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Eq. 25 for both players: sums over a picture, means over pictures. batch: images [B H W 3]. Frozen networks of
    `features` are variables["perceptual"]."""
    images = image_ops.to_float(batch["images"], 0.5, 0.5)
    out = model.apply(variables, images, train=True, rngs={"latents": rng})

    def lost(made: jax.Array) -> jax.Array:
        return jnp.sum(vqgan.distortion(model.config, variables, images, made)) / images.shape[0]

    reconstruction, kl = lost(out.images), out.posterior.kl().mean()
    game, metrics = vqgan.play(model, variables["params"], images, out, lost, step)
    total = reconstruction + model.config.kl_weight * kl + game
    return total, Aux({"loss": total, "reconstruction": reconstruction, "kl": kl, **metrics})
