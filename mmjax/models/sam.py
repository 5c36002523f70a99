"""SAM: a picture is encoded once, and any number of points, boxes and masks each ask for the object that they mean.

Source: Kirillov et al. 2023, arXiv:2304.02643, section 3 and appendix A; details that the paper leaves open from
facebookresearch/segment-anything, which holds no training.

    images [B H H 3] -ViTDet-> image embeddings [B S S C] --------------------------------.
    points [B P N 2], labels [B P N], boxes [B P 4] -Fourier-> sparse prompts [B P T C] --two-way decoder-> pred_masks
    masks [B P 4S 4S] -convolutions-> dense prompts [B P S S C], added to the image ------'  [B P K 4S 4S], iou_scores

B pictures, H pixels along a side, S patches along a side, C width, P prompts of a picture (each for one object), N
points and T tokens of a prompt, K masks: 3 where the prompt may mean several things, 1 where it cannot.
Coordinates are (x, y) in pixels of the square that the encoder reads; whole numbers are the centres of pixels.

Not as in the paper: the decoder has no dropout (as the authors' code), and `loss` is the mean over the rounds of a
person who corrects, where the paper does not say how rounds are added.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import vit, vitdet
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.mlp import MLP, gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.ops import attention, masks, segmentation
from mmjax.ops import images as image_ops

BACKGROUND, OBJECT, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3  # labels of points; the last two are a box
NOT_A_POINT, IGNORED = -1, -10  # a learned token in place of a point; zeros, with which transformers fills up rows
TRAINABLE = r"^(?!prompt/frequencies)"  # for Task: the Fourier frequencies are drawn once and kept
normal, zeros = nn.initializers.normal(1.0), nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Appendix A: how a person is imitated who points, looks, and points at what is wrong; the weights of losses."""

    points: int = 8  # drawn from the errors, one a round
    again: int = 2  # rounds that only see their own last mask: one of them last, the others anywhere
    boxes: float = 0.5  # share of objects that a box begins with; a point otherwise
    noise: float = 0.1  # deviation of a box's corners, in sides of the box
    most_noise: float = 20 / 1024  # in sides of the picture
    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    # Whether all three predicted scores learn, or that of the best mask alone. The paper's text says the latter; what
    # ranks three masks has then never learned what a worse one looks like.
    rank_all: bool = False


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Published sizes are the functions below."""

    vision: vitdet.ViTDetConfig = vitdet.ViTDetConfig()
    dim: int = 256  # C
    mask_channels: int = 16  # between a mask prompt and C
    depth: int = 2  # blocks of the decoder
    num_heads: int = 8
    hidden: int = 2048  # of its MLPs
    downsample: int = 2  # C over the inner width of its cross-attentions
    num_masks: int = 3
    iou_hidden: int = 256
    epsilon: float = 1e-5  # of the norms in its blocks; transformers has 1e-6 there
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # what uint8 images are normalised by, RGB in [0, 1]
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    recipe: Recipe = Recipe()
    compute: Compute = Compute()

    def __post_init__(self):
        if self.dim % 8 or self.mask_channels % 4 or self.dim // self.downsample % self.num_heads:
            raise ValueError(
                "dim must be a multiple of 8, mask_channels of 4, and dim / downsample of num_heads, got "
                f"dim={self.dim}, mask_channels={self.mask_channels}, downsample={self.downsample}, "
                f"num_heads={self.num_heads}"
            )

    @classmethod
    def tiny(cls, image_size: int = 32) -> "SamConfig":
        vision = vitdet.ViTDetConfig(
            image_size, 8, width=16, depth=3, num_heads=2, hidden=32, window=3, global_layers=(2,)
        )
        return cls(vision, dim=16, num_heads=2, hidden=32, iou_hidden=16, recipe=Recipe(points=1))


def vit_b() -> SamConfig:  # build_sam.py, as the two below
    return SamConfig()


def vit_l() -> SamConfig:
    return SamConfig(vitdet.ViTDetConfig(1024, 16, 1024, 24, 16, 4096, global_layers=(5, 11, 17, 23)))


def vit_h() -> SamConfig:
    return SamConfig(vitdet.ViTDetConfig(1024, 16, 1280, 32, 16, 5120, global_layers=(7, 15, 23, 31)))


def small() -> SamConfig:  # not published: pictures of 64 pixels, in minutes on a CPU
    vision = vitdet.ViTDetConfig(64, 8, width=128, depth=4, num_heads=4, hidden=256, window=4, global_layers=(1, 3))
    recipe, compute = Recipe(points=1, again=0, rank_all=True), Compute(unroll=True)
    return SamConfig(vision, dim=96, num_heads=4, hidden=192, iou_hidden=96, recipe=recipe, compute=compute)


@struct.dataclass
class SamOutput:
    pred_masks: jax.Array  # [B P K 4S 4S] float32 logits
    iou_scores: jax.Array  # [B P K] float32, what the model takes each mask's IoU for


def fourier(places: jax.Array, frequencies: jax.Array) -> jax.Array:
    """[... 2] in [0, 1], [2 C/2] -> [... C]: Tancik et al. 2020, arXiv:2006.10739. In float32: the angles are large."""
    places, frequencies = places.astype(jnp.float32), jax.lax.stop_gradient(frequencies)
    angle = 2 * jnp.pi * jnp.einsum("...k,kc->...c", 2 * places - 1, frequencies, precision="highest")
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class MaskEmbed(nn.Module):
    config: SamConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B 4S 4S] logits -> [B S S C]
        c, dtype = self.config, self.config.compute.dtype
        x = x[..., None].astype(dtype)
        for i, channels in enumerate((c.mask_channels // 4, c.mask_channels)):
            side = x.shape[1] // 2
            x = vit.PatchEmbed(channels, 2, dtype=dtype, kernel_init=torch_linear, name=f"conv{i + 1}")(x)
            x = gelu(LayerNorm(1e-6, dtype, name=f"norm{i + 1}")(rearrange(x, "b (i j) c -> b i j c", i=side)))
        return Linear(c.dim, dtype=dtype, kernel_init=torch_linear, name="conv3")(x)


class PromptEncoder(nn.Module):
    config: SamConfig

    def setup(self):
        dim = self.config.dim
        self.frequencies = self.param("frequencies", normal, (2, dim // 2))
        self.point_embed = self.param("point_embed", normal, (4, dim))  # by label
        self.not_a_point = self.param("not_a_point", normal, (dim,))
        self.no_mask = self.param("no_mask", normal, (dim,))
        self.mask_embed = MaskEmbed(self.config)

    def points(self, points: jax.Array, labels: jax.Array) -> jax.Array:  # [... 2] pixels, [...] int -> [... C]
        # A pixel is at its centre.
        places = fourier((points.astype(jnp.float32) + 0.5) / self.config.vision.image_size, self.frequencies)
        known = places + self.point_embed[jnp.clip(labels, 0, 3)]
        labels = labels[..., None]
        return jnp.where(labels >= 0, known, jnp.where(labels == NOT_A_POINT, self.not_a_point, 0.0))

    def grid(self) -> jax.Array:  # [S S C], of the patches
        centres = (np.arange(self.config.vision.grid) + 0.5) / self.config.vision.grid
        return fourier(jnp.stack(jnp.meshgrid(centres, centres), -1), self.frequencies)

    def dense(self, prompts: jax.Array | None) -> jax.Array:  # [B P 4S 4S] logits -> [B|1 P|1 S|1 S|1 C]
        side = 4 * self.config.vision.grid
        if prompts is None:
            if self.is_initializing():
                self.mask_embed(jnp.zeros((1, side, side)))
            return self.no_mask[None, None, None, None]
        if prompts.ndim != 4 or prompts.shape[2:] != (side, side):
            raise ValueError(f"mask prompts must be logits [B P {side} {side}], got {list(prompts.shape)}")
        embeds = self.mask_embed(rearrange(prompts, "b p h w -> (b p) h w"))
        return rearrange(embeds, "(b p) i j c -> b p i j c", b=prompts.shape[0])


class TokenAttention(nn.Module):
    """Queries, keys and values of three inputs, C wide each, in an inner width of its own."""

    num_heads: int
    inner: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Any = None) -> jax.Array:
        """[B T C], [B S C], [B S C] -> [B T C]; mask as in ops.attention."""

        def heads(x: jax.Array, name: str) -> jax.Array:
            x = Linear(self.inner, dtype=self.dtype, kernel_init=torch_linear, name=name)(x)
            return rearrange(x, "b t (h e) -> b t h e", h=self.num_heads)

        y = attention.attention(heads(query, "query"), heads(key, "key"), heads(value, "value"), mask=mask)
        out = Linear(query.shape[-1], dtype=self.dtype, kernel_init=torch_linear, name="out")
        return out(rearrange(y, "b t h e -> b t (h e)"))


class TwoWayBlock(nn.Module):
    """Tokens look at each other and at the image, and the image at the tokens; places are added at every look."""

    config: SamConfig
    first: bool  # tokens are then nothing but their places, so the first look needs neither those nor a residual

    @nn.compact
    def __call__(
        self, tokens: jax.Array, image: jax.Array, token_places: jax.Array, places: jax.Array, mask: Any
    ) -> tuple[jax.Array, jax.Array]:
        """tokens [B T C], image [B N C] and the places of both; mask: which tokens count."""
        c, dtype = self.config, self.config.compute.dtype
        norm = partial(LayerNorm, c.epsilon, dtype)
        attend = partial(TokenAttention, c.num_heads, dtype=dtype)
        inner = c.dim // c.downsample
        itself = attend(inner=c.dim, name="self_attention")
        if self.first:
            tokens = itself(tokens, tokens, tokens, mask)
        else:
            tokens = tokens + itself(tokens + token_places, tokens + token_places, tokens, mask)
        tokens = norm(name="norm1")(tokens)
        look = attend(inner=inner, name="token_to_image")
        tokens = norm(name="norm2")(tokens + look(tokens + token_places, image + places, image))
        mlp = MLP(c.hidden, jax.nn.relu, dtype, torch_linear, torch_linear, name="mlp")
        tokens = norm(name="norm3")(tokens + mlp(tokens))
        look = attend(inner=inner, name="image_to_token")
        image = norm(name="norm4")(image + look(image + places, tokens + token_places, tokens, mask))
        return tokens, image


class Head(nn.Module):
    """Three layers with ReLUs between."""

    hidden: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = partial(Linear, dtype=self.dtype, kernel_init=torch_linear)
        x = jax.nn.relu(linear(self.hidden, name="in_projection")(x))
        x = jax.nn.relu(linear(self.hidden, name="middle")(x))
        return linear(self.features, name="out_projection")(x)


class Upsample(nn.Module):
    """A transposed convolution of kernel and stride 2, which is a product: each cell becomes four."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B h w C] -> [B 2h 2w features]
        kernel = self.param("kernel", torch_linear, (2, 2, x.shape[-1], self.features)).astype(self.dtype)
        y = jnp.einsum("bhwc,pqcd->bhpwqd", x.astype(self.dtype), kernel)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        return rearrange(y, "b h p w q d -> b (h p) (w q) d") + bias


class MaskDecoder(nn.Module):
    config: SamConfig

    @nn.compact
    def __call__(
        self, image: jax.Array, places: jax.Array, sparse: jax.Array, mask: Any, multimask: bool
    ) -> tuple[jax.Array, jax.Array]:
        """image [M S S C] with its dense prompt, places [S S C], sparse [M T C] -> masks [M K 4S 4S], scores [M K]."""
        c, dtype, side = self.config, self.config.compute.dtype, image.shape[1]
        own = jnp.concatenate(
            [self.param("iou_token", normal, (1, c.dim)), self.param("mask_tokens", normal, (c.num_masks + 1, c.dim))]
        )
        token_places = vit.with_tokens(own, sparse.astype(dtype))
        places = rearrange(places.astype(dtype), "i j c -> 1 (i j) c")
        tokens, image = token_places, rearrange(image.astype(dtype), "m i j c -> m (i j) c")
        for i in range(c.depth):
            block = TwoWayBlock(c, first=i == 0, name=f"block{i}")
            tokens, image = block(tokens, image, token_places, places, mask)
        look = TokenAttention(c.num_heads, c.dim // c.downsample, dtype, name="final_attention")
        tokens = LayerNorm(1e-5, dtype, name="norm")(tokens + look(tokens + token_places, image + places, image))

        x = Upsample(c.dim // 4, dtype, name="up1")(rearrange(image, "m (i j) c -> m i j c", i=side))
        x = gelu(Upsample(c.dim // 8, dtype, name="up2")(gelu(LayerNorm(1e-6, dtype, name="up_norm")(x))))
        heads = nn.vmap(Head, in_axes=1, out_axes=1, variable_axes={"params": 0}, split_rngs={"params": True})
        weights = heads(c.dim, c.dim // 8, dtype, name="mask_heads")(tokens[:, 1 : c.num_masks + 2])
        scores = Head(c.iou_hidden, c.num_masks + 1, dtype, name="iou_head")(tokens[:, 0])
        which = slice(1, None) if multimask else slice(0, 1)
        logits = jnp.einsum("mkc,mhwc->mkhw", weights[:, which], x)
        return logits.astype(jnp.float32), scores[:, which].astype(jnp.float32)


class SAM(nn.Module):
    config: SamConfig

    def setup(self):
        c = self.config
        self.vision = vitdet.ViTDet(c.vision, c.dim, c.compute)
        self.prompt = PromptEncoder(c)
        self.decoder = MaskDecoder(c)

    def encode_image(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """[B H H 3] uint8, or float already normalised (ops.images.fit_longest_side) -> [B S S C]."""
        images = image_ops.to_float(images, mean=self.config.image_mean, std=self.config.image_std)
        return self.vision(images, train=train)

    def encode_points(self, points: jax.Array, labels: jax.Array) -> jax.Array:
        """[B P N 2] pixels, [B P N] int, one of the constants above -> [B P N C]. A box is two points."""
        if points.ndim != 4 or points.shape[-1] != 2 or labels.shape != points.shape[:-1]:
            raise ValueError(f"points must be [B P N 2] and labels [B P N], got {points.shape} and {labels.shape}")
        return self.prompt.points(points, labels)

    def encode_prompts(
        self, points: jax.Array | None = None, labels: jax.Array | None = None, boxes: jax.Array | None = None
    ) -> jax.Array | None:
        """[B P N 2], [B P N] (None: all are OBJECT), [B P 4] as (x0, y0, x1, y1) -> [B P T C]; None without any.

        Points come first. Without a box, one that is NOT_A_POINT follows them: the model was trained so.
        """
        if boxes is not None and (boxes.ndim != 3 or boxes.shape[-1] != 4):
            raise ValueError(f"boxes must be [B P 4], one for each prompt, got {boxes.shape}")
        tokens = []
        if points is not None:
            tokens.append(self.encode_points(points, jnp.full(points.shape[:-1], OBJECT) if labels is None else labels))
            if boxes is None:
                empty = jnp.zeros((*points.shape[:2], 1, 2))
                tokens.append(self.encode_points(empty, jnp.full(empty.shape[:-1], NOT_A_POINT)))
        if boxes is not None:
            corners = rearrange(boxes, "b p (n x) -> b p n x", n=2)
            which = jnp.broadcast_to(jnp.array([TOP_LEFT, BOTTOM_RIGHT]), corners.shape[:-1])
            tokens.append(self.encode_points(corners, which))
        return jnp.concatenate(tokens, 2) if tokens else None

    def decode(
        self, image_embeddings: jax.Array, sparse: jax.Array | None = None, input_masks: jax.Array | None = None,
        *, multimask: bool = True, counts: jax.Array | None = None,
    ) -> SamOutput:  # fmt: skip
        """image_embeddings [B S S C]; sparse [B P T C] of any origin; input_masks [B P|1 4S 4S] logits of an earlier
        answer; counts [B P T] bool, False for tokens that nobody shall see."""
        dense = self.prompt.dense(input_masks)
        batch, prompts = image_embeddings.shape[0], dense.shape[1] if sparse is None else sparse.shape[1]
        image = jnp.broadcast_to(image_embeddings[:, None] + dense, (batch, prompts, *image_embeddings.shape[1:]))
        sparse = jnp.zeros((batch, prompts, 0, self.config.dim)) if sparse is None else sparse
        image, sparse = (rearrange(x, "b p ... -> (b p) ...") for x in (image, sparse))
        mask = None
        if counts is not None:
            counts = rearrange(counts, "b p t -> (b p) t")
            mask = masks.Padding(jnp.pad(counts, ((0, 0), (self.config.num_masks + 2, 0)), constant_values=True))
        logits, scores = self.decoder(image, self.prompt.grid(), sparse, mask, multimask)
        return SamOutput(*(rearrange(x, "(b p) ... -> b p ...", b=batch) for x in (logits, scores)))

    def __call__(
        self,
        images: jax.Array,
        input_points: jax.Array | None = None,
        input_labels: jax.Array | None = None,
        input_boxes: jax.Array | None = None,
        input_masks: jax.Array | None = None,
        multimask: bool = True,
    ) -> SamOutput:
        """As `encode_image`, `encode_prompts` and `decode`; multimask: three masks of each prompt, or one."""
        sparse = self.encode_prompts(input_points, input_labels, input_boxes)
        return self.decode(self.encode_image(images), sparse, input_masks, multimask=multimask)


def compared(out: SamOutput, wanted: jax.Array, recipe: Recipe) -> dict[str, jax.Array]:
    """wanted [B P h w] bool -> losses of each mask, [B P K], and its `iou`."""
    logits, target = segmentation.resize(out.pred_masks, *wanted.shape[-2:]), wanted[:, :, None]
    iou = segmentation.iou(logits > 0, target)
    error = (out.iou_scores - iou) ** 2  # no gradient comes through a threshold
    if recipe.rank_all:
        error = jnp.broadcast_to(error.mean(-1, keepdims=True), error.shape)
    focal = segmentation.sigmoid_focal(logits, target).mean((-1, -2))
    return {"focal": focal, "dice": segmentation.dice(logits, target), "iou_error": error, "iou": iou}


def weighted(parts: dict[str, jax.Array], recipe: Recipe) -> jax.Array:
    return recipe.focal * parts["focal"] + recipe.dice * parts["dice"] + recipe.iou * parts["iou_error"]


def first_prompt(rng: jax.Array, wanted: jax.Array, side: int, recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """wanted [B P h w] bool, side H -> points [B P 2 2] and labels [B P 2]: a shaken box, or a point of the object."""
    which, shake, place = jax.random.split(rng, 3)
    factor = side / jnp.array(wanted.shape[:-3:-1])  # of x, y
    corners = rearrange(segmentation.box_around(wanted), "b p (n x) -> b p n x", n=2) * factor
    most = recipe.most_noise * side
    noise = recipe.noise * (corners[:, :, 1:] - corners[:, :, :1]) * jax.random.normal(shake, corners.shape)
    corners = corners + jnp.clip(noise, -most, most)
    point = (segmentation.random_pixel(place, wanted) + 0.5) * factor - 0.5
    point = jnp.stack([point, jnp.zeros_like(point)], 2)
    box = jax.random.bernoulli(which, recipe.boxes, wanted.shape[:2])[..., None]
    labels = jnp.where(box, jnp.array([TOP_LEFT, BOTTOM_RIGHT]), jnp.array([OBJECT, NOT_A_POINT]))
    return jnp.where(box[..., None], corners, point), labels


def correction(rng: jax.Array, shown: jax.Array, wanted: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """[B P h w] bool twice -> a point [B P 2] where they differ, else of the object, and its label [B P]."""
    wrong = shown != wanted
    pixel = segmentation.random_pixel(rng, jnp.where(wrong.any((-1, -2), keepdims=True), wrong, wanted))
    flat = rearrange(wanted, "b p h w -> b p (h w)")
    inside = jnp.take_along_axis(flat, (pixel[..., 1] * wanted.shape[-1] + pixel[..., 0])[..., None], -1)[..., 0]
    factor = side / jnp.array(wanted.shape[:-3:-1])
    return (pixel + 0.5) * factor - 0.5, jnp.where(inside, OBJECT, BACKGROUND)


def loss(model: SAM, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Appendix A. batch: images [B H H 3], masks [B P h w] bool, present [B P] bool (else: which masks have pixels).

    The first prompt may mean several things, so of three masks only the best one learns; each later round sees all
    points so far and the last mask, and answers with one.
    """
    recipe, side, wanted = model.config.recipe, model.config.vision.image_size, batch["masks"]
    present = batch["present"] if "present" in batch else wanted.any((-1, -2))
    prompt_rng, order_rng, rounds_rng, drop_rng = jax.random.split(rng, 4)
    apply = partial(model.apply, variables)
    image = apply(batch["images"], train=True, rngs={"drop_path": drop_rng}, method="encode_image")
    points, labels = first_prompt(prompt_rng, wanted, side, recipe)
    out = apply(image, apply(points, labels, method="encode_points"), method="decode")
    parts = compared(out, wanted, recipe)
    best = jnp.argmin(weighted(parts, recipe), -1, keepdims=True)
    parts = {name: jnp.take_along_axis(x, best, -1)[..., 0] for name, x in parts.items()}
    trusted = jnp.argmax(out.iou_scores, -1)[..., None, None, None]
    previous = jax.lax.stop_gradient(jnp.take_along_axis(out.pred_masks, trusted, 2)[:, :, 0])

    def again(carry: tuple, now: tuple) -> tuple[tuple, dict]:
        previous, points, labels = carry
        key, adds, slot = now
        shown = segmentation.resize(previous, *wanted.shape[-2:]) > 0
        point, label = correction(key, shown, wanted, side)
        points = points.at[:, :, slot].set(point)
        labels = labels.at[:, :, slot].set(jnp.where(adds, label, IGNORED))
        sparse = apply(points, labels, method="encode_points")
        out = apply(image, sparse, previous, multimask=False, counts=labels != IGNORED, method="decode")
        parts = {name: x[..., 0] for name, x in compared(out, wanted, recipe).items()}
        return (jax.lax.stop_gradient(out.pred_masks[:, :, 0]), points, labels), parts

    rounds = recipe.points + recipe.again
    if rounds:
        # Which rounds bring a point: not the last one, and not some of the others.
        order = jax.random.permutation(order_rng, max(rounds - 1, 0))
        adds = jnp.append(order >= recipe.again - 1, recipe.again == 0)
        points = jnp.pad(points, ((0, 0), (0, 0), (0, rounds), (0, 0)))
        labels = jnp.pad(labels, ((0, 0), (0, 0), (0, rounds)), constant_values=IGNORED)
        each = (jax.random.split(rounds_rng, rounds), adds, 2 + jnp.arange(rounds))
        _, later = jax.lax.scan(again, (previous, points, labels), each)
        parts = {name: jnp.concatenate([x[None], later[name]]) for name, x in parts.items()}
    else:
        parts = {name: x[None] for name, x in parts.items()}
    count = jnp.maximum(present.sum(), 1).astype(jnp.float32)
    means = {name: jnp.where(present, x, 0).sum((-1, -2)) / count for name, x in parts.items()}  # [rounds] each
    iou = means.pop("iou")
    means = {name: x.mean() for name, x in means.items()}
    total = weighted(means, recipe)
    return total, Aux({"loss": total, **means, "first_iou": iou[0], "last_iou": iou[-1]}, weight=count)
