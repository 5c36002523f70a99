"""ViT: an image is a sequence of patches.

Source: Dosovitskiy et al. 2021, arXiv:2010.11929, eqs. 1-4; initial values from google-research/big_vision, which
computes GELU in its tanh form, where all ports of its weights take the exact one.

    images [B H W 3] -stem-> [B h w C] -patches-> [B N D] + positions, [class token; registers; patches] [B P+N D]
        -blocks, norm-> last_hidden_state [B P+N D] -pool-> pooler_output [B D] -head-> logits [B K]

B batch, H W pixels, N patches in rows from the top left, P tokens before them, R registers, D width, L layers,
K classes. Images are uint8, or float and already normalised, channels last.

What others added is off by default: the stem of Xiao et al. 2021 (arXiv:2106.14881), attention pooling (Zhai et al.
2022, arXiv:2106.04560), registers (Darcet et al. 2024, arXiv:2309.16588), LayerScale (Touvron et al. 2021,
arXiv:2103.17239), stochastic depth (Huang et al. 2016, arXiv:1603.09382), and images of other sizes than
config.image_size, for which the grid of positions is resized by one of the rules of ops/images.py.
"""

import dataclasses
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import placed
from mmjax.nn.linear import Linear, lecun_normal, matmul
from mmjax.nn.mlp import MLP, GatedMLP, gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import images as image_ops

zeros = nn.initializers.zeros


def by_width(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initial values of deviation D ** -0.5."""
    return jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5


@dataclasses.dataclass(frozen=True)
class Init:
    """Initial values, by default big_vision's. Norms and LayerScale have their own."""

    kernel: Callable = nn.initializers.xavier_uniform()  # of attention and MLP
    bias: Callable = nn.initializers.normal(1e-6)  # of the MLP
    patch: Callable = lecun_normal
    position: Callable = by_width
    token: Callable = zeros  # of the class token, registers and what stands for masked patches
    head: Callable = zeros


# The two kinds of MLP: config, dtype -> how to make one


def plain_mlp(c: "ViTConfig", dtype: Any) -> Callable[..., nn.Module]:
    init = c.init
    return partial(MLP, c.hidden, c.activation, dtype, init.kernel, init.kernel, init.bias, init.bias)


def swiglu(c: "ViTConfig", dtype: Any) -> Callable[..., nn.Module]:
    """DINOv2's giant. `hidden` is the width of the gate, two thirds of what a plain MLP would have."""
    return partial(GatedMLP, c.hidden, jax.nn.silu, dtype, c.init.kernel, use_bias=True)


# What speaks for the image: config, dtype -> function of the normed tokens [B P+N D] -> [B D]


def first_token(c: "ViTConfig", dtype: Any) -> Callable:
    """The class token: section 3.1."""
    return lambda x: x[:, 0]


def tanh_token(c: "ViTConfig", dtype: Any) -> Callable:
    """The class token through one more layer: the head of pre-training of section 3.1, transformers' pooler."""
    linear = Linear(c.width, True, dtype, c.init.kernel, name="pooler")
    return lambda x: jnp.tanh(linear(x[:, 0]))


def patch_mean(c: "ViTConfig", dtype: Any) -> Callable:
    """The mean of the patches: appendix D.3."""
    return lambda x: x[:, c.prefix :].mean(1)


def attention_pool(c: "ViTConfig", dtype: Any) -> Callable:
    """A learned query that attends to all tokens."""
    return MAPHead(c, dtype, name="map")


# Which branches are left out in training: rng, highest rate, L, B -> [L 2 B], what attention and MLP of each layer are
# multiplied by for each image: 0, or a factor that keeps the mean


def drop_uniform(rng: jax.Array, rate: float, depth: int, batch_size: int) -> jax.Array:
    """All layers alike: DINOv2, where the rate is at most 0.1."""
    return _drop(rng, np.full(depth, rate), batch_size)


def drop_linear(rng: jax.Array, rate: float, depth: int, batch_size: int) -> jax.Array:
    """From 0 in the first layer to `rate` in the last: Huang et al. 2016, section 3; DeiT and DINO."""
    return _drop(rng, np.linspace(0, rate, depth), batch_size)


def drop_subset(rng: jax.Array, rate: float, depth: int, batch_size: int) -> jax.Array:
    """The same number of images of the global batch in each branch: DINOv2, where the rate is above 0.1."""
    kept = max(int(batch_size * (1 - rate)), 1)
    place = jnp.argsort(jnp.argsort(jax.random.uniform(rng, (depth, 2, batch_size))))
    return jnp.where(place < kept, batch_size / kept, 0.0)


def _drop(rng: jax.Array, rates: np.ndarray, batch_size: int) -> jax.Array:  # rates [L]
    kept = jnp.asarray(1 - rates, jnp.float32)[:, None, None]
    return jax.random.bernoulli(rng, kept, (len(rates), 2, batch_size)) / kept


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes; the defaults are ViT-B/16, table 1. Published sizes are the functions below."""

    image_size: int = 224  # pixels along a side
    patch_size: int = 16  # pixels along a side, strides of the stem included
    width: int = 768  # D
    depth: int = 12  # L
    num_heads: int = 12
    hidden: int = 3072  # of the MLP
    activation: Callable = gelu
    epsilon: float = 1e-6  # of the norms
    stem: tuple[int, ...] = ()  # channels of the stride-2 convolutions before the patches
    resize: Callable | None = None  # ops/images.py's rule for images of other sizes; None refuses them
    cut: bool = False  # whether pixels at the right and below that fill no patch are dropped; otherwise refused
    class_token: bool = True
    registers: int = 0  # R, tokens that hold nothing of the image
    pool: Callable = first_token
    mlp: Callable = plain_mlp
    qkv_bias: bool = True
    layer_scale: float | None = None  # initial factor of each branch, learned; None: no factor
    drop_path: float = 0.0  # share of the images for which a branch is left out in training
    drop: Callable = drop_linear
    mask_token: bool = False  # whether there is something to show in place of masked patches
    init: Init = Init()
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # what uint8 images are normalised by, RGB in [0, 1]
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        fits = self.image_size >= self.patch_size if self.cut else self.image_size % self.patch_size == 0
        if not fits or self.patch_size % 2 ** len(self.stem):
            raise ValueError(
                f"image_size must be a multiple of patch_size, and patch_size of 2 for each of the {len(self.stem)} "
                f"stem layers, got image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if self.pool in (first_token, tanh_token) and not self.class_token:
            raise ValueError(f"pool={self.pool.__name__} reads the class token; set class_token=True or another pool")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")

    @property
    def num_patches(self) -> int:  # N
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix(self) -> int:  # P
        return self.class_token + self.registers

    @classmethod
    def tiny(cls) -> "ViTConfig":
        return cls(image_size=32, patch_size=8, width=16, depth=2, num_heads=2, hidden=32)


def vit_ti(patch_size: int = 16, image_size: int = 224) -> ViTConfig:  # Touvron et al. 2021, arXiv:2012.12877, table 1
    return ViTConfig(image_size, patch_size, width=192, depth=12, num_heads=3, hidden=768)


def vit_s(patch_size: int = 16, image_size: int = 224) -> ViTConfig:  # the same table
    return ViTConfig(image_size, patch_size, width=384, depth=12, num_heads=6, hidden=1536)


def vit_b(patch_size: int = 16, image_size: int = 224) -> ViTConfig:  # table 1
    return ViTConfig(image_size, patch_size, width=768, depth=12, num_heads=12, hidden=3072)


def vit_l(patch_size: int = 16, image_size: int = 224) -> ViTConfig:  # table 1
    return ViTConfig(image_size, patch_size, width=1024, depth=24, num_heads=16, hidden=4096)


def vit_so400m(patch_size: int = 14, image_size: int = 224) -> ViTConfig:
    """Alabdulmohsin et al. 2023, arXiv:2305.13035: the shape that is best for its compute."""
    return ViTConfig(image_size, patch_size, width=1152, depth=27, num_heads=16, hidden=4304)


def vit_h(patch_size: int = 14, image_size: int = 224) -> ViTConfig:  # table 1
    return ViTConfig(image_size, patch_size, width=1280, depth=32, num_heads=16, hidden=5120)


def vit_g(patch_size: int = 14, image_size: int = 224) -> ViTConfig:  # Zhai et al. 2022, arXiv:2106.04560, table 2
    return ViTConfig(image_size, patch_size, width=1408, depth=40, num_heads=16, hidden=6144)


def vit_gigantic(patch_size: int = 14, image_size: int = 224) -> ViTConfig:
    """ViT-G, the same table."""
    return ViTConfig(image_size, patch_size, width=1664, depth=48, num_heads=16, hidden=8192)


@struct.dataclass
class ViTOutput:
    last_hidden_state: jax.Array  # [B P+N D] after the norm: class token, registers, patches
    pooler_output: jax.Array  # [B D] what config.pool makes of them
    hidden_states: jax.Array | None  # [L B P+N D] after each block, where asked for with collect=True


@struct.dataclass
class ClassifierOutput:
    logits: jax.Array  # [B K]
    last_hidden_state: jax.Array  # [B P+N D]


def check_images(c: ViTConfig, images: jax.Array) -> tuple[int, int]:
    """Rows and columns of patches in images [B H W 3]."""
    side, patch = c.image_size, c.patch_size
    if images.ndim != 4 or images.shape[-1] != 3 or (c.resize is None and images.shape[1:3] != (side, side)):
        wanted = f"[B {side} {side} 3]" if c.resize is None else "[B H W 3]"
        hint = "; for other sizes set the config's resize to a rule of ops/images.py" if c.resize is None else ""
        raise ValueError(f"images must be {wanted}, got {list(images.shape)}{hint}")
    height, width = images.shape[1:3]
    rows, columns = height // patch, width // patch
    if not rows * columns or (not c.cut and (height % patch or width % patch)):
        wanted = "at least" if c.cut else "multiples of"
        raise ValueError(f"the sides of images must be {wanted} patch_size={patch}, got {height} x {width}")
    return rows, columns


def resized_positions(table: jax.Array, resize: Callable, before: int, rows: int, columns: int) -> jax.Array:
    """[before + n * n, D] -> [before + rows * columns, D]: those of tokens that stand before the grid stay."""
    side = round((table.shape[0] - before) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    grid = rearrange(jnp.asarray(table[before:], jnp.float32), "(h w) d -> h w d", h=side)
    grid = rearrange(resize(grid, rows, columns), "h w d -> (h w) d")
    return jnp.concatenate([table[:before], grid.astype(table.dtype)])


def class_attention(c: ViTConfig, layers: dict, states: jax.Array) -> jax.Array:
    """Attention of the class token in the last block: [B heads N], each sums to less than 1, since the class token and
    registers get the rest. layers: parameters of the blocks, [L ...] each; states [L B T D] after each block, L > 1."""
    if not c.class_token:
        raise ValueError(f"attention is read at the class token, got {c}")
    last = jax.tree.map(lambda x: x[-1], layers)
    x = LayerNorm(c.epsilon, parent=None).apply({"params": last["norm1"]}, states[-2])

    def heads(x: jax.Array, name: str) -> jax.Array:  # [B T D] -> [B T H D/H]
        weights = last["attention"][name]
        x = jnp.einsum("btd,de->bte", x, weights["kernel"], precision="highest") + weights.get("bias", 0.0)
        return rearrange(x, "b t (h e) -> b t h e", h=c.num_heads)

    query, key = heads(x[:, :1], "query")[:, 0], heads(x, "key")
    scores = jnp.einsum("bhe,bthe->bht", query, key, precision="highest") * query.shape[-1] ** -0.5
    return jax.nn.softmax(scores)[..., c.prefix :]


def only(c: ViTConfig, names: Collection[str], whose: str) -> None:
    """Refuses what a system that has its own tower would leave unread."""
    for field in dataclasses.fields(c):
        if field.name not in names and getattr(c, field.name) != field.default:
            raise ValueError(f"{whose} has no {field.name}, got {getattr(c, field.name)!r}")


def with_tokens(tokens: jax.Array, x: jax.Array) -> jax.Array:  # [R D], [B N D] -> [B R+N D]
    tokens = jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape))
    return jnp.concatenate([tokens, x], axis=1)


class Stem(nn.Module):
    """Stride-2 3x3 convolutions, each with a norm (over channels, where the paper's is over the batch) and a ReLU."""

    channels: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [B H W C] -> [B H/2^n W/2^n channels[-1]]
        x = images
        for i, channels in enumerate(self.channels):
            x = nn.Conv(channels, (3, 3), (2, 2), use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(LayerNorm(dtype=self.dtype, name=f"norm{i}")(x))
        return x


class PatchEmbed(nn.Module):
    """Eq. 1's E: a convolution whose stride is its kernel, done as the matrix product that it is."""

    width: int
    size: int  # of the patch, in pixels of its input
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = lecun_normal
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B H W C] -> [B N width]
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.width))
        x = rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=self.size, q=self.size)
        x = matmul(x.astype(self.dtype), rearrange(kernel, "p q c d -> (p q c) d").astype(self.dtype))
        if self.use_bias:
            x = x + self.param("bias", self.bias_init, (self.width,)).astype(self.dtype)
        return x


class Block(nn.Module):
    """nn.blocks.PreNormBlock, whose branches may have a learned factor and may be left out."""

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    layer_scale: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array | None = None) -> jax.Array:  # [B T D], [2 B] factors -> [B T D]
        for i, (name, part) in enumerate((("attention", self.attention), ("mlp", self.mlp))):
            y = part(name=name)(self.norm(name=f"norm{i + 1}")(x))
            if self.layer_scale is not None:
                initial = nn.initializers.constant(self.layer_scale)
                y = y * self.param(f"layer_scale{i + 1}", initial, x.shape[-1:]).astype(y.dtype)
            x = placed(x + (y if kept is None else y * kept[i, :, None, None].astype(y.dtype)))
        return x


class MAPHead(nn.Module):
    """Multihead attention pooling: Zhai et al. 2022, section 3.2. Its residual is what was attended to, not the query;
    the tokens come as they are, already normed."""

    config: ViTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B T D] -> [B D]
        c, kernel = self.config, self.config.init.kernel
        probe = self.param("probe", kernel, (1, c.width)).astype(self.dtype)
        query = jnp.broadcast_to(probe, (x.shape[0], 1, c.width))
        y = Attention(c.num_heads, self.dtype, kernel, kernel, name="attention")(query, context=x)
        y = y + plain_mlp(c, self.dtype)(name="mlp")(LayerNorm(c.epsilon, self.dtype, name="norm")(y))
        return y[:, 0]


class ViT(nn.Module):
    config: ViTConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, images: jax.Array, masked: jax.Array | None = None, *, train: bool = False, collect: bool = False
    ) -> ViTOutput:
        """images [B H W 3]; masked [B N] bool, True at patches that are not shown. In training with drop_path, its
        random numbers are the stream "drop_path"."""
        c, dtype = self.config, self.compute.dtype
        rows, columns = check_images(c, images)
        images = images[:, : rows * c.patch_size, : columns * c.patch_size]
        x = Stem(c.stem, dtype, name="stem")(image_ops.to_float(images, c.image_mean, c.image_std))
        patch_size = c.patch_size // 2 ** len(c.stem)
        x = PatchEmbed(c.width, patch_size, dtype=dtype, kernel_init=c.init.patch, name="patch_embed")(x)
        x = self._tokens(self._shown(x, masked), rows, columns)

        norm = partial(LayerNorm, c.epsilon, dtype)
        kernel = c.init.kernel
        attention = partial(Attention, c.num_heads, dtype, kernel, kernel, use_bias=c.qkv_bias, out_bias=True)
        block = partial(Block, attention, c.mlp(c, dtype), norm, c.layer_scale)
        dropping = train and c.drop_path > 0
        kept = c.drop(self.make_rng("drop_path"), c.drop_path, c.depth, x.shape[0]) if dropping else None
        x, hidden_states = Stack(block, c.depth, self.compute, name="layers")(x, each=kept, collect=collect)
        x = norm(name="norm")(x)
        return ViTOutput(x, c.pool(c, dtype)(x), hidden_states)

    def _shown(self, patches: jax.Array, masked: jax.Array | None) -> jax.Array:  # [B N D], [B N] -> [B N D]
        if not self.config.mask_token:
            if masked is not None:
                raise ValueError("this ViT has nothing to put in place of masked patches; set mask_token=True")
            return patches
        token = self.param("mask_embed", self.config.init.token, patches.shape[-1:]).astype(patches.dtype)
        return patches if masked is None else jnp.where(masked[..., None], token, patches)

    def _tokens(self, x: jax.Array, rows: int, columns: int) -> jax.Array:  # [B N D] -> [B P+N D]
        c, first = self.config, int(self.config.class_token)
        if first:
            x = with_tokens(self.param("class_embed", c.init.token, (c.width,))[None], x)
        table = self.param("pos_embed", c.init.position, (first + c.num_patches, c.width))
        x = x + resized_positions(table, c.resize, first, rows, columns).astype(x.dtype)
        if c.registers:  # after the positions: a register has none
            registers = self.param("register_embed", c.init.token, (c.registers, c.width))
            x = jnp.concatenate([x[:, :first], with_tokens(registers, x[:, first:])], axis=1)
        return x

    def encode_image(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B D] float32, not normalised: what evals of image features read."""
        return self(images).pooler_output.astype(jnp.float32)


class ViTForClassification(nn.Module):
    """One of K classes for each image."""

    config: ViTConfig
    labels: tuple[str, ...]  # names of the K classes
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> ClassifierOutput:
        out = ViT(self.config, self.compute, name="vit")(images, train=train)
        head = Linear(len(self.labels), True, self.compute.dtype, self.config.init.head, name="head")
        return ClassifierOutput(head(out.pooler_output), out.last_hidden_state)


def loss(
    model: ViTForClassification, variables: dict, batch: dict, rng: jax.Array, step: jax.Array
) -> tuple[jax.Array, Aux]:
    """Cross entropy; batch: images [B H W 3], label [B] int in [0, K)."""
    logits = model.apply(variables, batch["images"], train=True, rngs={"drop_path": rng}).logits
    chances, label = jax.nn.log_softmax(logits.astype(jnp.float32)), batch["label"]
    value = -jnp.take_along_axis(chances, label[:, None], axis=-1).mean()
    accuracy = jnp.mean(jnp.argmax(logits, -1) == label)
    return value, Aux({"loss": value, "accuracy": accuracy}, weight=jnp.float32(label.size))
