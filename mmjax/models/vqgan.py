"""VQGAN: a convolutional autoencoder around a codebook, whose pictures have to pass a discriminator.

Source: Esser et al. 2021, arXiv:2012.09841, section 3.1 and appendix; what the paper leaves open from
CompVis/taming-transformers (modules/diffusionmodules/model.py, modules/discriminator/model.py, losses/vqperceptual.py).
The discriminator: Isola et al. 2017, arXiv:1611.07004; the distance of features: Zhang et al. 2018, arXiv:1801.03924.

    images [B H W 3] -encoder-> z [B h w D] -nearest code-> ids [B h w] -decoder-> features -to_image-> images [B H W 3]
    images [B H W 3] -discriminator-> logits [B p q], one for each overlapping patch: above 0 for what looks real

B pictures, H W pixels, h = H / 2^(levels - 1), w alike, D width of a code, K codes, C channels. Images are uint8, or
float in [-1, 1].

One scalar holds both players' losses: what the discriminator is told of the pictures it may not send back to them, and
what the pictures learn from it does not move it.

Not as in the original: both step at once, from the same pictures, where there the discriminator steps second and sees
those of the renewed autoencoder; batch norm takes its statistics from the batch always (no running averages for
validation), over `group` pictures, whatever the mesh is; the distance of features takes those that it is handed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from flax import struct

from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.outputs import Aux
from mmjax.nn.quantizers import Codebook, MovingCodebook, Quantized
from mmjax.nn.stack import REMAT, Compute
from mmjax.ops import attention
from mmjax.ops import images as image_ops

# --- sizes


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """Encoder and decoder; the defaults are taming's imagenet_vqgan.yaml's."""

    image_size: int = 256  # where attention stands follows from it; pictures may have any size that halves evenly
    width: int = 128  # C at the first level
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # of the width, level by level, each half as large as the one before
    blocks: int = 2  # residual blocks of a level of the encoder; the decoder has one more
    latent: int = 256  # C at the lowest level's end
    encoder_attention: tuple[int, ...] = (16,)  # sides of the grids that look at themselves
    decoder_attention: tuple[int, ...] = (16,)
    groups: int = 32  # of the norms
    patch: int = 1  # pixels along a side that the first and the last layer take as one; published: 1, small codecs: 2
    compute: Compute = Compute()

    def __post_init__(self):
        if self.image_size % self.stride or any(self.width * m % self.groups for m in self.multipliers):
            raise ValueError(
                f"image_size must be a multiple of {self.stride} for {len(self.multipliers)} levels, and width times "
                f"each of multipliers one of groups, got image_size={self.image_size}, width={self.width}, "
                f"multipliers={self.multipliers}, groups={self.groups}"
            )

    @property
    def stride(self) -> int:  # pixels along a side of what a code stands for
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:  # side of the grid and C of each
        side = self.image_size // self.patch
        return tuple((side // 2**i, self.width * m) for i, m in enumerate(self.multipliers))

    @classmethod
    def tiny(cls) -> "CodecConfig":
        return cls(32, 8, (1, 2, 2), blocks=1, latent=8, encoder_attention=(8,), decoder_attention=(8,), groups=4)


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The discriminator and its share of the loss; the defaults are imagenet_vqgan.yaml's."""

    width: int = 64  # C after its first convolution
    layers: int = 3  # convolutions that halve, the first included
    weight: float = 0.8  # of the adversarial loss, beside the adaptive weight
    start: int = 250_001  # step before which neither player hears of the other
    group: int | None = None  # pictures that share a batch norm: what the original had on one device; None: the batch


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """The defaults are imagenet_vqgan.yaml's."""

    codec: CodecConfig = CodecConfig()
    quantizer: nn.Module = Codebook(1024, 256, commitment=1.0, codebook=0.25)  # any of nn/quantizers.py
    adversary: Adversary | None = Adversary()  # None: nobody judges the pictures
    square: bool = False  # pixels differ by squares, as in VQ-VAE, instead of by absolute values
    # (variables["perceptual"], images [B H W 3] in [-1, 1]) -> maps [B h w C] of any number and size, for
    # `perceptual_distance`; the weights of their channels, where there are any, are variables["perceptual"]["channels"]
    features: Callable | None = None
    perceptual_weight: float = 1.0

    @classmethod
    def tiny(cls) -> "VQGANConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        codes = MovingCodebook(16, 4, threshold=0.1)
        return cls(CodecConfig.tiny(), codes, Adversary(width=8, layers=2, start=2))


def vqgan_f16(num_codes: int = 1024) -> VQGANConfig:  # table 5: 72.1 M parameters without the discriminator
    return VQGANConfig(quantizer=Codebook(num_codes, 256, commitment=1.0, codebook=0.25))


def small_codec(latent: int) -> CodecConfig:
    """32 pixels to a grid of 8 x 8, 1.1 M parameters; trains on a CPU core in minutes."""
    return CodecConfig(32, 40, (1, 2), 1, latent, encoder_attention=(), decoder_attention=(), groups=8, patch=2)


# --- the paper's maths


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's loss of its logits [...] of real pictures and of made ones."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def adaptive_weight(
    distortion: Callable, realism: Callable, draw: Callable[[jax.Array], jax.Array], kernel: jax.Array
) -> jax.Array:
    """Eq. 7: how much the adversarial loss must count to pull as hard as the distortion at the last layer.

    draw: the last layer, kernel -> images; the two losses: images -> scalar. Sends no gradient.
    """
    pulls = [jax.grad(lambda kernel, loss=loss: loss(draw(kernel)))(kernel) for loss in (distortion, realism)]
    norms = [jnp.sqrt(jnp.sum(jnp.square(pull))) for pull in pulls]
    return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0, 1e4))


def perceptual_distance(
    left: Sequence[jax.Array], right: Sequence[jax.Array], channels: Sequence[jax.Array] | None = None
) -> jax.Array:
    """Maps [B h w C] of two lots of pictures, weights [C] of each map's channels (None: 1) -> [B], LPIPS (eq. 1 there):
    square differences of vectors of length 1, the mean over places, the sum over channels and maps."""

    def length_one(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        square = jnp.sum(x**2, -1, keepdims=True)
        # Where all of a place is 0 (after a ReLU it may), the root's slope is not finite.
        return x / (jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0) + 1e-10)

    def apart(x: jax.Array, y: jax.Array, weight: jax.Array | float) -> jax.Array:
        return jnp.mean(jnp.sum(weight * jnp.square(length_one(x) - length_one(y)), -1), (1, 2))

    weights = [1.0] * len(left) if channels is None else channels
    return sum(apart(*pair) for pair in zip(left, right, weights, strict=True))


# --- modules: the codec


def conv(features: int, size: int, dtype: Any, **how: Any) -> nn.Conv:
    return nn.Conv(features, (size, size), dtype=dtype, kernel_init=torch_linear, **how)


def normed(x: jax.Array, groups: int, dtype: Any, name: str) -> jax.Array:
    # use_fast_variance: E[x^2] - E[x]^2 loses the digits that epsilon keeps.
    return nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)(x)


class ResBlock(nn.Module):
    features: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B h w C] -> [B h w features]
        y = conv(self.features, 3, self.dtype, name="conv1")(jax.nn.silu(normed(x, self.groups, self.dtype, "norm1")))
        y = conv(self.features, 3, self.dtype, name="conv2")(jax.nn.silu(normed(y, self.groups, self.dtype, "norm2")))
        if x.shape[-1] != self.features:
            x = Linear(self.features, dtype=self.dtype, kernel_init=torch_linear, name="shortcut")(x)
        return x + y


class Attention(nn.Module):
    """Each place looks at all, with one head."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B h w C] -> the same
        linear = partial(Linear, x.shape[-1], dtype=self.dtype, kernel_init=torch_linear)
        y = rearrange(normed(x, self.groups, self.dtype, "norm"), "b h w c -> b (h w) c")
        q, k, v = (linear(name=name)(y)[:, :, None] for name in ("query", "key", "value"))
        y = linear(name="out")(attention.attention(q, k, v)[:, :, 0])
        return x + rearrange(y, "b (h w) c -> b h w c", h=x.shape[1])


def res_block(c: CodecConfig) -> Callable[..., nn.Module]:
    """ResBlock, which keeps what `compute.remat` says for the backward pass."""
    kind = ResBlock if c.compute.remat is None else nn.remat(ResBlock, policy=REMAT[c.compute.remat])
    return partial(kind, groups=c.groups, dtype=c.compute.dtype)


def middle(c: CodecConfig, x: jax.Array) -> jax.Array:
    """What both halves have at the lowest level, always with attention."""
    block = res_block(c)
    x = block(x.shape[-1], name="mid_block0")(x)
    x = Attention(c.groups, c.compute.dtype, name="mid_attention")(x)
    return block(x.shape[-1], name="mid_block1")(x)


class Encoder(nn.Module):
    config: CodecConfig
    features: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [B H W 3] float -> [B h w features]
        c, dtype = self.config, self.config.compute.dtype
        if images.ndim != 4 or images.shape[1] % c.stride or images.shape[2] % c.stride:
            raise ValueError(f"images must be [B H W 3], H and W multiples of {c.stride}, got {list(images.shape)}")
        block = res_block(c)
        images = rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=c.patch, q=c.patch)
        x = conv(c.width, 3, dtype, name="conv_in")(images)
        for i, (side, width) in enumerate(c.levels):
            for j in range(c.blocks):
                x = block(width, name=f"level{i}_block{j}")(x)
                if side in c.encoder_attention:
                    x = Attention(c.groups, dtype, name=f"level{i}_attention{j}")(x)
            if i + 1 < len(c.levels):  # padded at the right and below only
                x = conv(width, 3, dtype, strides=2, padding=((0, 1), (0, 1)), name=f"conv_down{i}")(x)
        x = jax.nn.silu(normed(middle(c, x), c.groups, dtype, "norm"))
        return conv(self.features, 3, dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """All but the last convolution, which is the model's `to_image`: eq. 7 asks for its gradient."""

    config: CodecConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:  # [B h w latent] -> [B H/patch W/patch width]
        c, dtype = self.config, self.config.compute.dtype
        block = res_block(c)
        x = middle(c, conv(c.levels[-1][1], 3, dtype, name="conv_in")(z))
        for i, (side, width) in reversed(list(enumerate(c.levels))):
            for j in range(c.blocks + 1):
                x = block(width, name=f"level{i}_block{j}")(x)
                if side in c.decoder_attention:
                    x = Attention(c.groups, dtype, name=f"level{i}_attention{j}")(x)
            if i:
                x = conv(width, 3, dtype, name=f"conv_up{i}")(repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2))
        return jax.nn.silu(normed(x, c.groups, dtype, "norm"))


class ToImage(nn.Conv):
    """The last convolution: `to_image(config)`."""

    def __call__(self, x: jax.Array) -> jax.Array:  # [B H/patch W/patch C] -> [B H W 3] float32
        patch = math.isqrt(self.features // 3)
        x = super().__call__(x).astype(jnp.float32)
        return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=patch, q=patch)


def to_image(c: CodecConfig, **how: Any) -> ToImage:
    return ToImage(3 * c.patch**2, (3, 3), dtype=c.compute.dtype, kernel_init=torch_linear, **how)


# --- modules: the discriminator

near_one = lambda rng, shape: 1 + 0.02 * jax.random.normal(rng, shape)  # noqa: E731


class BatchNorm(nn.Module):
    """Statistics of the batch: of all of it, or of `group` pictures that lie next to each other."""

    group: int | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B h w C] -> the same
        group = self.group or x.shape[0]
        if x.shape[0] % group:
            raise ValueError(f"the batch must be a multiple of group={group} pictures, got {x.shape[0]}")
        scale = self.param("scale", near_one, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = rearrange(x.astype(jnp.float32), "(g r) h w c -> g r h w c", r=group)
        y = y - y.mean((1, 2, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, (1, 2, 3), keepdims=True) + self.epsilon)
        return (rearrange(y, "g r h w c -> (g r) h w c") * scale + bias).astype(x.dtype)


class Discriminator(nn.Module):
    """PatchGAN: 4 x 4 convolutions that halve, then two that do not."""

    config: Adversary
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [B H W 3] in [-1, 1] -> [B p q] float32
        c = self.config
        if min(images.shape[1:3]) < 3 * 2**c.layers:
            raise ValueError(
                f"a discriminator of {c.layers} layers needs {3 * 2**c.layers} pixels along a side, got "
                f"{list(images.shape[1:3])}; give it fewer layers"
            )
        make = partial(
            nn.Conv, kernel_size=(4, 4), padding=1, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02)
        )
        x = jax.nn.leaky_relu(make(c.width, strides=2, name="conv0")(images), 0.2)
        for i in range(1, c.layers + 1):
            stride = 2 if i < c.layers else 1
            x = make(c.width * min(2**i, 8), strides=stride, use_bias=False, name=f"conv{i}")(x)
            x = jax.nn.leaky_relu(BatchNorm(c.group, name=f"norm{i}")(x), 0.2)
        return make(1, name="out")(x)[..., 0].astype(jnp.float32)


# --- the system


@struct.dataclass
class VQGANOutput:
    images: jax.Array  # [B H W 3] float32, about in [-1, 1]
    features: jax.Array  # [B H W C], what `to_image` made them of
    z: jax.Array  # [B h w D] float32, before quantisation
    quantized: Quantized


class VQGAN(nn.Module):
    config: VQGANConfig

    def setup(self):
        c, dtype = self.config, self.config.codec.compute.dtype
        self.encoder = Encoder(c.codec, c.codec.latent)
        self.decoder = Decoder(c.codec)
        self.to_image = to_image(c.codec)
        self.quantizer = c.quantizer
        self.to_code = Linear(c.quantizer.dim, dtype=dtype, kernel_init=torch_linear)
        self.from_code = Linear(c.codec.latent, dtype=dtype, kernel_init=torch_linear)
        if c.adversary is not None:
            self.discriminator = Discriminator(c.adversary, dtype)

    def latents(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B h w D] float32, before quantisation."""
        return self.to_code(self.encoder(image_ops.to_float(images, 0.5, 0.5))).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool = False) -> VQGANOutput:
        """[B H W 3]. With train=True a codebook of averages is renewed: give mutable=["codebook"]."""
        z = self.latents(images)
        quantized = self.quantizer(z, train=train)
        features = self.decoder(self.from_code(quantized.latents))
        made = self.to_image(features)
        if self.is_initializing() and self.config.adversary is not None:
            self.discriminator(made)
        return VQGANOutput(made, features, z, quantized)

    def encode(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> ids [B h w] int32."""
        return self.quantizer(self.latents(images)).ids

    def decode(self, ids: jax.Array) -> jax.Array:
        """ids [B h w] in [0, K) -> [B H W 3] float32, about in [-1, 1]."""
        return self.draw(self.decoder(self.from_code(self.quantizer.embed(ids))))

    def draw(self, features: jax.Array) -> jax.Array:
        """The last layer alone: [B H W C] -> [B H W 3] float32."""
        return self.to_image(features)

    def judge(self, images: jax.Array) -> jax.Array:
        """[B H W 3] in [-1, 1] -> [B p q] float32, above 0 for what looks real."""
        return self.discriminator(images)


def distortion(c: Any, variables: dict, images: jax.Array, made: jax.Array) -> jax.Array:
    """Difference of each number and, where the config has `features`, their distance beside it: [B H W 3]."""
    apart = jnp.square(images - made) if c.square else jnp.abs(images - made)
    if c.features is None:
        return apart
    frozen = variables.get("perceptual", {})
    maps = [c.features(frozen, x) for x in (images, made)]
    return apart + c.perceptual_weight * perceptual_distance(*maps, frozen.get("channels"))[:, None, None, None]


def play(
    model: nn.Module, params: dict, images: jax.Array, made: Any, lost: Callable, step: jax.Array
) -> tuple[jax.Array, dict]:
    """Both players' losses as one term, and metrics.

    made: the model's output, with images and features. lost: images -> scalar, as hard as which the adversarial loss
    is to pull.

    The pictures' gradient goes through a discriminator that this does not move; the discriminator's own stops at them.
    """
    c = model.config.adversary
    if c is None:
        return jnp.zeros(()), {}
    apply = partial(model.apply, method="judge")
    still = {"params": jax.lax.stop_gradient(params)}
    real, fake = apply({"params": params}, images), apply({"params": params}, jax.lax.stop_gradient(made.images))
    told = hinge(real, fake)

    def realism(x: jax.Array) -> jax.Array:
        return -jnp.mean(apply(still, x))

    def draw(kernel: jax.Array) -> jax.Array:
        last = {"to_image": {**still["params"]["to_image"], "kernel": kernel}}
        return model.apply({"params": last}, jax.lax.stop_gradient(made.features), method="draw")

    weight = adaptive_weight(lost, realism, draw, still["params"]["to_image"]["kernel"])
    fooled, begun = realism(made.images), jnp.where(step >= c.start, 1.0, 0.0)
    metrics = {"generator": fooled, "discriminator": told, "adaptive_weight": weight}
    metrics |= {"logits_real": real.mean(), "logits_fake": fake.mean()}
    return begun * (c.weight * weight * fooled + told), metrics


def loss(model: VQGAN, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Eq. 5 for both players. batch: images [B H W 3]. Frozen networks of `features` are variables["perceptual"]."""
    images = image_ops.to_float(batch["images"], 0.5, 0.5)
    out, changed = model.apply(variables, images, train=True, mutable=["codebook"], rngs={"codes": rng})

    def lost(made: jax.Array) -> jax.Array:
        return jnp.mean(distortion(model.config, variables, images, made))

    reconstruction = lost(out.images)
    game, metrics = play(model, variables["params"], images, out, lost, step)
    total = reconstruction + out.quantized.loss + game
    metrics |= {"loss": total, "reconstruction": reconstruction, **out.quantized.metrics}
    return total, Aux(metrics, changed)
