"""DINOv2: DINO for whole images, iBOT for hidden patches, and features that keep their distance.

Source: Oquab et al. 2023, arXiv:2304.07193, section 4; iBOT: Zhou et al. 2022, arXiv:2111.07832; registers: Darcet et
al. 2024, arXiv:2309.16588; what the papers leave open from facebookresearch/dinov2 (train/ssl_meta_arch.py, loss/).

    global_crops [B 2 H W 3] -teacher-> class tokens [B 2 D] -head-> logits [B 2 K] -assign-> targets of whole images
                                        the patches that are hidden from the student -patch head-> targets of patches
    global_crops, masks      -student-> the same tokens; the same patches, from what surrounds them
    local_crops [B V-2 ...]  -student-> class tokens

B batch, V views of an image with the two global ones first, N patches of a global view, D width, K prototypes.
G groups of R images: what the original had on one device, whatever the mesh is. Neighbours are sought, and patches
gathered, in a group: Q = 2 R N tokens, of which at most U are hidden.

Not as in the original: views lie beside their image; above a rate of 0.1, stochastic depth keeps the same number of
images in each branch, but computes all of them; the mask token starts at random values of deviation 1e-6, not at zero.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import dino, vit
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops

TINY = 1e-8  # the original's epsilon in KoLeo
INIT = dataclasses.replace(dino.INIT, token=nn.initializers.normal(1e-6))

# --- the paper's maths. Two ways from the teacher's logits to targets: (logits [... M K], counts [... M] bool, center
# [K], temperature, momentum) -> targets [... M K] that send no gradient, and the next center


def center_and_sharpen(
    logits: jax.Array, counts: jax.Array, center: jax.Array, temperature: jax.Array, momentum: float
) -> tuple[jax.Array, jax.Array]:
    """DINO's. Each of the leading axes' sets has the same weight in the center, however many of its rows count."""
    targets = dino.centred(logits, center, temperature)
    total = jnp.sum(logits.astype(jnp.float32) * counts[..., None], axis=-2)
    means = total / jnp.maximum(counts.sum(-1), 1)[..., None]
    return targets, dino.moved_center(center, means, momentum)


def sinkhorn(
    logits: jax.Array, counts: jax.Array, center: jax.Array, temperature: jax.Array, momentum: float
) -> tuple[jax.Array, jax.Array]:
    """SwAV's balanced assignment (Caron et al. 2020, arXiv:2006.09882, section 3.1): all prototypes get equal shares of
    the rows of the GLOBAL batch. `center` and `momentum` are unused."""
    flat, rows = logits.reshape(-1, logits.shape[-1]), counts.reshape(-1)
    return sinkhorn_knopp(flat, rows, temperature).reshape(logits.shape), center


def sinkhorn_knopp(logits: jax.Array, counts: jax.Array, temperature: jax.Array, iterations: int = 3) -> jax.Array:
    """[M K], [M] bool -> [M K], each row that counts sums to 1, the others are zero.

    In logarithms, where no exponential overflows. Split by rows over a mesh, what devices tell each other is one number
    for each prototype; the logits stay where they are.
    """
    rows = counts[:, None]
    x = jax.lax.stop_gradient(logits.astype(jnp.float32) / temperature)
    for _ in range(iterations):
        x = x - jax.nn.logsumexp(x, axis=0, where=rows, keepdims=True)
        x = x - jax.nn.logsumexp(x, axis=1, keepdims=True)
    return jnp.where(rows, jnp.exp(x), 0.0)


def masked_distillation(logits: jax.Array, targets: jax.Array, weight: jax.Array, temperature: float) -> jax.Array:
    """iBOT, eq. 2, summed: cross entropies of hidden patches [G U K], each times its `weight` [G U]."""
    log_chances = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    cross = -jnp.einsum("guk,guk->gu", targets, log_chances, precision="highest")
    return jnp.sum(cross * weight)


def koleo(features: jax.Array, group: int) -> jax.Array:
    """features [B V D] -> minus the mean logarithm of the distance to the nearest other image of its group, summed over
    views: Sablayrolles et al. 2019, arXiv:1806.03198, section 3.2. Images of other groups are not seen."""
    if features.shape[0] % group:
        raise ValueError(f"the batch must be a multiple of group={group} images, got {features.shape[0]}")
    x = rearrange(features.astype(jnp.float32), "(g r) v d -> g v r d", r=group)
    x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), TINY**2))
    # Which one is nearest is a decision, and rounding must not take it.
    cosine = jnp.einsum("gvrd,gvsd->gvrs", x, x, precision="highest")
    nearest = jnp.argmax(jnp.where(jnp.eye(group, dtype=bool), -1.0, cosine), axis=-1)  # [G V R]
    other = jnp.take_along_axis(x, nearest[..., None], axis=2)
    distance = jnp.sqrt(jnp.sum((x - other + TINY) ** 2, -1))
    return -jnp.log(distance + TINY).mean((0, 2)).sum()


@struct.dataclass
class Hidden:
    """Where the hidden patches of each group are, padded to the same number."""

    index: jax.Array  # [G U] into the Q tokens of a group
    counts: jax.Array  # [G U] bool; the rest is padding
    weight: jax.Array  # [G U] so that views with hidden patches weigh the same, 0 for padding

    def gather(self, patches: jax.Array) -> jax.Array:
        """[B 2 N D] -> [G U D]."""
        tokens = rearrange(patches, "(g r) v n d -> g (r v n) d", g=self.index.shape[0])
        return jnp.take_along_axis(tokens, self.index[..., None], axis=1)


def find_hidden(masks: jax.Array, group: int, most: int) -> Hidden:
    """masks [B 2 N] bool, True where hidden; of a group's, those beyond the first `most` are left out."""
    if masks.shape[0] % group:
        raise ValueError(f"the batch must be a multiple of group={group} images, got {masks.shape[0]}")
    flat = rearrange(masks, "(g r) v n -> g (r v n)", r=group)
    index = jnp.argsort(~flat, axis=1, stable=True)[:, :most]  # the hidden ones first, in their order
    counts = jnp.take_along_axis(flat, index, axis=1)
    share = 1 / jnp.maximum(masks.sum(-1, keepdims=True), 1)  # of each patch in its view
    share = rearrange(jnp.broadcast_to(share, masks.shape), "(g r) v n -> g (r v n)", r=group)
    # The original divides by all global views, also those that hide nothing.
    weight = jnp.take_along_axis(share, index, axis=1) * counts / (masks.shape[0] * masks.shape[1])
    return Hidden(index, counts, weight)


# --- sizes


@dataclasses.dataclass(frozen=True)
class DINOv2Config:
    """Sizes, temperatures and weights; the defaults are train/vitg14.yaml's. Published backbones are the functions
    below."""

    vision: vit.ViTConfig
    head: dino.HeadConfig = dino.HeadConfig(bottleneck=384, prototypes=131072)
    patch_head: dino.HeadConfig | None = dino.HeadConfig(prototypes=131072)  # None: the other head speaks for both
    assign: Callable = sinkhorn  # or center_and_sharpen
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)  # at first, and after the ramp
    ramp: int = 0  # steps from the first to the second
    center_momentum: float = 0.9
    image_weight: float = 1.0
    patch_weight: float = 1.0
    koleo_weight: float = 0.1
    group: int = 12  # R, images that the original had on one device
    hidden: int = 967  # U, most hidden patches in a group (data/masking.py's `most`)
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "DINOv2Config":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        # With 1e-5, class tokens of fresh weights are so close to each other that KoLeo sees nothing but rounding.
        published = as_published(registers=2) | {"layer_scale": 0.5}
        vision = dataclasses.replace(vit.ViTConfig.tiny(), **published)
        heads = (dino.HeadConfig(hidden=32, bottleneck=8, prototypes=24), dino.HeadConfig(32, 8, 20))
        return cls(vision, *heads, ramp=3, group=2, hidden=12)


def as_published(registers: int) -> dict[str, Any]:
    """What all backbones of DINOv2 have in common, as fields of vit.ViTConfig."""
    rule = image_ops.resize_cubic_antialias if registers else image_ops.resize_cubic_offset
    colours = {"image_mean": dino.IMAGENET_MEAN, "image_std": dino.IMAGENET_STD}
    return {"registers": registers, "resize": rule, "init": INIT, "layer_scale": 1e-5, "mask_token": True, **colours}


def small(image_size: int = 32) -> DINOv2Config:
    """Not published: 0.74 M parameters that learn from scratch in minutes on a CPU. As dino.small, with 4 registers."""
    published = as_published(registers=4) | {"layer_scale": 1.0}  # 1e-5 takes longer to grow than the run lasts
    vision = dino.small_vision(image_size, **published)
    return DINOv2Config(vision, dino.SMALL_HEAD, dino.SMALL_HEAD, group=16, hidden=74)


def vit_s14(registers: int = 0, image_size: int = 518) -> vit.ViTConfig:  # table 17; section 3 of the registers' paper
    return dataclasses.replace(vit.vit_s(14, image_size), **as_published(registers))


def vit_b14(registers: int = 0, image_size: int = 518) -> vit.ViTConfig:  # table 17
    return dataclasses.replace(vit.vit_b(14, image_size), **as_published(registers))


def vit_l14(registers: int = 0, image_size: int = 518) -> vit.ViTConfig:  # table 17
    return dataclasses.replace(vit.vit_l(14, image_size), **as_published(registers))


def vit_g14(registers: int = 0, image_size: int = 518) -> vit.ViTConfig:
    """Table 17. Heads are 64 wide, and MLPs gated: unlike the ViT-g of Zhai et al."""
    sizes = vit.ViTConfig(image_size, 14, width=1536, depth=40, num_heads=24, hidden=4096, mlp=vit.swiglu)
    return dataclasses.replace(sizes, **as_published(registers))


# --- modules


class Backbone(vit.ViT):
    """vit.ViT under a name of its own, so that its weights find the format of DINOv2."""


@struct.dataclass
class DINOv2Output:
    features: jax.Array  # [B V D] the class token of each view, before the head
    logits: jax.Array  # [B V K] float32
    patch_logits: jax.Array  # [G U K] float32, of hidden patches
    hidden: Hidden


class DINOv2(nn.Module):
    """Student or teacher, by the parameters that it is given."""

    config: DINOv2Config

    def setup(self):
        c, dtype = self.config, self.config.compute.dtype
        self.backbone = Backbone(c.vision, c.compute)
        self.head = dino.Head(c.head, dtype)
        self.patch_head = self.head if c.patch_head is None else dino.Head(c.patch_head, dtype)
        self.center = self.variable("center", "cls", jnp.zeros, (c.head.prototypes,))
        self.patch_center = self.variable("center", "patch", jnp.zeros, ((c.patch_head or c.head).prototypes,))

    def __call__(
        self,
        global_crops: jax.Array,
        masks: jax.Array,
        local_crops: jax.Array | None = None,
        *,
        hide: bool = True,
        train: bool = False,
    ) -> DINOv2Output:
        """[B 2 H W 3], [B 2 N] bool and [B V-2 h w 3]; uint8, or float already normalised. With hide=False, as for the
        teacher, patches that are masked are seen, and only speak."""
        c = self.config
        dino.check_views(global_crops, local_crops)
        sides = [side // c.vision.patch_size for side in global_crops.shape[2:4]]
        if masks.shape != (*global_crops.shape[:2], math.prod(sides)):
            raise ValueError(
                f"masks must be [B 2 N], one for each patch of global_crops, {sides[0]} x {sides[1]} of "
                f"{c.vision.patch_size} pixels, got {list(masks.shape)} for {list(global_crops.shape)}"
            )
        out = dino.encode_views(self.backbone, global_crops, masks if hide else None, train=train)
        features = [out.pooler_output]
        if local_crops is not None:
            features.append(dino.encode_views(self.backbone, local_crops, train=train).pooler_output)
        features = jnp.concatenate(features, axis=1)
        hidden = find_hidden(masks, c.group, c.hidden)
        patches = hidden.gather(out.last_hidden_state[:, :, c.vision.prefix :])
        return DINOv2Output(features, self.head(features), self.patch_head(patches), hidden)

    def encode_image(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B D] float32, the class token."""
        return self.backbone.encode_image(images)

    def encode_patches(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B N D] float32."""
        return self.backbone(images).last_hidden_state[:, self.config.vision.prefix :].astype(jnp.float32)

    def attend(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B heads N], see dino.class_attention."""
        c = self.config
        return dino.class_attention(c.vision, self.backbone.variables["params"], images, c.compute)


def loss(model: DINOv2, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Section 4. batch: global_crops [B 2 H W 3], masks [B 2 N] and, where there are any, local_crops [B n h w 3]."""
    c, center = model.config, variables["center"]
    views, masks = batch["global_crops"], batch["masks"]
    teacher = model.apply({**variables, "params": variables["teacher"]}, views, masks, hide=False)
    rngs = {"drop_path": rng}
    student = model.apply(variables, views, masks, batch.get("local_crops"), train=True, rngs=rngs)

    temperature = dino.ramp(*c.teacher_temperature, c.ramp, step)
    all_count = jnp.ones(teacher.logits.shape[:-1], bool)
    how = (temperature, c.center_momentum)
    targets, cls_center = c.assign(teacher.logits, all_count, center["cls"], *how)
    patch_targets, patch_center = c.assign(teacher.patch_logits, teacher.hidden.counts, center["patch"], *how)

    image = dino.self_distillation(student.logits, targets, c.student_temperature)
    patch = masked_distillation(student.patch_logits, patch_targets, student.hidden.weight, c.student_temperature)
    distance = koleo(student.features[:, :2], c.group)
    total = c.image_weight * image + c.patch_weight * patch + c.koleo_weight * distance

    metrics = {"loss": total, "image_loss": image, "patch_loss": patch, "koleo": distance}
    # More than 0 where masks hide more than `hidden`: see the data's BlockMasks.most.
    metrics["patches_left_out"] = masks.sum() - student.hidden.counts.sum()
    metrics |= {"teacher_temperature": temperature, **dino.health(teacher.features, targets)}
    # The next step's: this one's targets know nothing of this batch's mean.
    return total, Aux(metrics, {"center": {"cls": cls_center, "patch": patch_center}})
