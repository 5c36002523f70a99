"""DINO: a student says of every view of an image what its own moving average says of the other large views.

Source: Caron et al. 2021, arXiv:2104.14294, algorithm 1 and section 3; what the paper leaves open from
facebookresearch/dino (main_dino.py, vision_transformer.py, utils.py).

    global_crops [B 2 H W 3] -teacher-> logits [B 2 K] - center -softmax(/ low temperature)-> targets [B 2 K]
    all crops    [B V H W 3] -student-> logits [B V K] -log softmax(/ temperature)-> cross entropy with the targets of
                                                                                    the global views that it is not

B batch, V views of an image with the two global ones first, H W pixels, N patches, P tokens before them, D width of the
backbone, K prototypes. The teacher is the collection "teacher", a moving average of the parameters (Task.after_update);
the center is the collection "center", a moving average of the teacher's mean logits over the GLOBAL batch. Both keep
answers from being the same for all images: watch teacher_entropy, batch_entropy and feature_rank.

Not as in the original: views lie beside their image, not one after the other; biases of the patches start at zero;
`spread` may push features apart as DINOv2 does (None as published).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import vit
from mmjax.nn.linear import Linear, matmul, torch_linear
from mmjax.nn.mlp import gelu
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops
from mmjax.ops import sharding

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
FLOAT32 = Compute()
GAIN_FIXED = r"^(?!.*prototypes/gain$)"  # Task.trainable where the original sets norm_last_layer=True

normal = nn.initializers.normal(0.02)  # the original cuts it off at 2, which is 100 deviations
lecun = nn.initializers.lecun_normal()
INIT = vit.Init(normal, nn.initializers.zeros, torch_linear, normal, normal, normal)


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The projection head, section 3.2 and appendix C."""

    hidden: int = 2048  # of its three layers
    bottleneck: int = 256
    prototypes: int = 65536  # K
    init: Callable = normal  # initial values of the three layers


@dataclasses.dataclass(frozen=True)
class DINOConfig:
    """Sizes and temperatures; the defaults are main_dino.py's. Published backbones are the functions below."""

    vision: vit.ViTConfig
    head: HeadConfig = HeadConfig()
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.04)  # at first, and after the ramp
    ramp: int = 0  # epochs from the first to the second
    epoch: int = 1  # steps; the temperature moves once in each
    center_momentum: float = 0.9
    spread: Callable | None = None  # features of the student's global views [B 2 D] -> what is added to the loss
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "DINOConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        vision = dataclasses.replace(vit.ViTConfig.tiny(), **as_published(drop_path=0.1))
        return cls(vision, HeadConfig(hidden=32, bottleneck=8, prototypes=24), ramp=3, epoch=2)


def as_published(drop_path: float) -> dict[str, Any]:
    """What all backbones of DINO have in common, as fields of vit.ViTConfig."""
    constants = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "init": INIT}
    return {"resize": image_ops.resize_cubic_offset, "drop_path": drop_path, "drop": vit.drop_linear, **constants}


SMALL_HEAD = HeadConfig(hidden=256, bottleneck=64, prototypes=1024, init=lecun)


def small(image_size: int = 32) -> DINOConfig:
    """Not published: 0.56 M parameters that learn from scratch in minutes on a CPU.

    Convolutions make a token of each 8 x 8 pixels: what a run this short learns most from. The published initial values
    are meant for wider layers; in these, all pictures would look alike at first.
    """
    return DINOConfig(small_vision(image_size, **as_published(0.05)), SMALL_HEAD)


def small_vision(image_size: int, **changes) -> vit.ViTConfig:
    init = vit.Init(lecun, patch=lecun, position=normal, token=normal)
    sizes = vit.ViTConfig(image_size, 8, 128, depth=2, num_heads=4, hidden=256, stem=(32, 64, 128))
    return dataclasses.replace(sizes, **{**changes, "init": init})


def vit_ti16() -> vit.ViTConfig:  # vision_transformer.py's vit_tiny
    return dataclasses.replace(vit.vit_ti(16), **as_published(0.1))


def vit_s16() -> vit.ViTConfig:  # table 1
    return dataclasses.replace(vit.vit_s(16), **as_published(0.1))


def vit_s8() -> vit.ViTConfig:  # table 1
    return dataclasses.replace(vit.vit_s(8), **as_published(0.1))


def vit_b16() -> vit.ViTConfig:  # table 1
    return dataclasses.replace(vit.vit_b(16), **as_published(0.1))


def vit_b8() -> vit.ViTConfig:  # table 1
    return dataclasses.replace(vit.vit_b(8), **as_published(0.1))


@struct.dataclass
class DINOOutput:
    features: jax.Array  # [B V D] what speaks for each view, before the head
    logits: jax.Array  # [B V K] float32


# --- the paper's maths


def self_distillation(logits: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Eq. 3: the mean cross entropy over all pairs of a target and another view. logits [B V K], targets [B 2 K]."""
    log_chances = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    cross = -jnp.einsum("btk,bvk->tv", targets, log_chances, precision="highest") / logits.shape[0]
    pairs = 1 - jnp.eye(*cross.shape)  # views 0 and 1 are those that the targets are of
    return jnp.sum(cross * pairs) / jnp.sum(pairs)


def centred(logits: jax.Array, center: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """[... K], [K] -> targets [... K] that send no gradient: eq. 1 with centering (section 3.1)."""
    return jax.lax.stop_gradient(jax.nn.softmax((logits.astype(jnp.float32) - center) / temperature))


def moved_center(center: jax.Array, logits: jax.Array, momentum: float) -> jax.Array:
    """[K], the teacher's logits [B ... K] of the global batch -> [K]: eq. 4."""
    mean = logits.astype(jnp.float32).mean(tuple(range(logits.ndim - 1)))
    return jax.lax.stop_gradient(momentum * center + (1 - momentum) * mean)


def ramp(first: float, last: float, count: int, at: jax.Array) -> jax.Array:
    """`first` at 0 and `last` at count - 1, straight between, and `last` from there on."""
    share = jnp.clip(at / max(count - 1, 1), 0, 1)
    return jnp.where(at < count, first + (last - first) * share, last)


def teacher_temperature(c: DINOConfig, step: jax.Array) -> jax.Array:
    return ramp(*c.teacher_temperature, c.ramp, step // c.epoch)


def health(features: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """What tells early that the answers have become the same for all images. features [B V D], targets [B 2 K].

    teacher_entropy: mean entropy of a target; log K where all prototypes fit alike. batch_entropy: entropy of the mean
    target; where it equals the former, all images get one answer. feature_rank: how many directions the features of the
    batch spread over, (sum of variances)^2 / sum of squared variances, from 1 to D.
    """
    x = rearrange(features, "b v d -> (b v) d").astype(jnp.float32)
    x = x - x.mean(0)
    covariance = jnp.einsum("nd,ne->de", x, x, precision="highest") / x.shape[0]
    entropy = jax.scipy.special.entr(targets).sum(-1).mean()
    mean = targets.mean(tuple(range(targets.ndim - 1)))
    values = {
        "teacher_entropy": entropy,
        "batch_entropy": jax.scipy.special.entr(mean).sum(),
        "feature_rank": jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), 1e-30),
    }
    return jax.lax.stop_gradient(values)


def class_attention(c: vit.ViTConfig, params: dict, images: jax.Array, compute: Compute = FLOAT32) -> jax.Array:
    """Where the class token looks in the last block, head by head: [B H W 3] -> [B heads N], see vit.class_attention.
    params: of the ViT."""
    if c.depth < 2:
        raise ValueError(f"attention is read in the last of two or more blocks, got {c}")
    states = vit.ViT(c, compute, parent=None).apply({"params": params}, images, collect=True).hidden_states
    return vit.class_attention(c, params["layers"], states)


# --- modules


def whole(x: jax.Array) -> jax.Array:  # [... D]
    """Keeps D together on a mesh. Between two kernels that are both split as (fsdp, tensor), XLA (jax 0.10.2) wants
    the gradient split as ((data, fsdp), tensor), and computes a wrong product of that form on a mesh with all three."""
    return sharding.constrain(x, *[sharding.ANY] * (x.ndim - 1), None)


class Head(nn.Module):
    """Section 3.2: three layers, length 1, and as many prototypes of length `gain` to compare with."""

    config: HeadConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... K] float32
        c = self.config
        x = whole(gelu(Linear(c.hidden, True, self.dtype, c.init, name="up")(x)))
        x = whole(gelu(Linear(c.hidden, True, self.dtype, c.init, name="transform")(x)))
        x = Linear(c.bottleneck, True, self.dtype, c.init, name="down")(x).astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-24))
        return Prototypes(c.prototypes, self.dtype, name="prototypes")(x)


class Prototypes(nn.Module):
    """A linear layer whose columns have a direction and a length: Salimans and Kingma 2016, arXiv:1602.07868, eq. 2."""

    count: int  # K
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... C] -> [... K] float32
        kernel = self.param("kernel", torch_linear, (x.shape[-1], self.count))
        gain = self.param("gain", nn.initializers.ones, (self.count,))
        weight = kernel * (gain * jax.lax.rsqrt(jnp.sum(kernel**2, axis=0)))
        return matmul(x.astype(self.dtype), weight.astype(self.dtype)).astype(jnp.float32)


def check_views(global_crops: jax.Array, local_crops: jax.Array | None) -> None:
    """Raises where the crops are not views of the same images."""
    if local_crops is not None and local_crops.shape[0] != global_crops.shape[0]:
        raise ValueError(
            "global_crops [B 2 H W 3] and local_crops [B n h w 3] must be of the same images, got "
            f"{list(global_crops.shape)} and {list(local_crops.shape)}"
        )


def encode_views(backbone: vit.ViT, crops: jax.Array, masked: jax.Array | None = None, **how: Any) -> vit.ViTOutput:
    """crops [B V H W 3], masked [B V N] -> what the backbone gives of each, with axes B V first."""
    if crops.ndim != 5:
        raise ValueError(f"crops must be [B V H W 3], the views of an image side by side, got {list(crops.shape)}")
    views = crops.shape[1]
    masked = None if masked is None else rearrange(masked, "b v n -> (b v) n")
    out = backbone(rearrange(crops, "b v h w c -> (b v) h w c"), masked, **how)
    return jax.tree.map(lambda x: rearrange(x, "(b v) ... -> b v ...", v=views), out)


class DINO(nn.Module):
    """Student or teacher, by the parameters that it is given."""

    config: DINOConfig

    def setup(self):
        c = self.config
        self.backbone = vit.ViT(c.vision, c.compute)
        self.head = Head(c.head, c.compute.dtype)
        self.center = self.variable("center", "cls", jnp.zeros, (c.head.prototypes,))

    def __call__(
        self, global_crops: jax.Array, local_crops: jax.Array | None = None, *, train: bool = False
    ) -> DINOOutput:
        """[B 2 H W 3] and [B V-2 h w 3], uint8 or float already normalised."""
        check_views(global_crops, local_crops)
        groups = [global_crops] if local_crops is None else [global_crops, local_crops]
        features = [encode_views(self.backbone, crops, train=train).pooler_output for crops in groups]
        features = jnp.concatenate(features, axis=1)
        return DINOOutput(features, self.head(features))

    def encode_image(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B D] float32, the class token."""
        return self.backbone.encode_image(images)

    def encode_patches(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B N D] float32."""
        return self.backbone(images).last_hidden_state[:, self.config.vision.prefix :].astype(jnp.float32)

    def attend(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B heads N], see class_attention."""
        return class_attention(self.config.vision, self.backbone.variables["params"], images, self.config.compute)


def loss(model: DINO, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Algorithm 1. batch: global_crops [B 2 H W 3] and, where there are any, local_crops [B n h w 3]."""
    c, center = model.config, variables["center"]["cls"]
    teacher = model.apply({**variables, "params": variables["teacher"]}, batch["global_crops"])
    rngs = {"drop_path": rng}
    student = model.apply(variables, batch["global_crops"], batch.get("local_crops"), train=True, rngs=rngs)

    temperature = teacher_temperature(c, step)
    targets = centred(teacher.logits, center, temperature)
    value = self_distillation(student.logits, targets, c.student_temperature)
    if c.spread is not None:
        value = value + c.spread(student.features[:, :2])
    metrics = {"loss": value, "teacher_temperature": temperature, **health(teacher.features, targets)}
    # The next step's: this one's targets know nothing of this batch's mean.
    center = moved_center(center, teacher.logits, c.center_momentum)
    return value, Aux(metrics, {"center": {"cls": center}})
