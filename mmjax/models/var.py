"""VAR: a picture said scale by scale; a step says all codes of the next scale at once, from the picture so far.

Source: Tian et al. 2024, arXiv:2404.02905, section 3; what the paper leaves open from FoundationVision/VAR
(models/var.py, models/basic_var.py). The tokenizer is var_tokenizer.py's.

    class [B W] + start                              at the first scale
    fhat of the scales before, averaged [B n D] -> [B n W]      at the n places of each other scale
        + what scale it is + where it is -blocks, each looks at its own scale and those before-> logits [B L K]

B batch, L codes of a picture among K, n = p^2 of a scale with p a side, D width of a code, W width, H heads. No code is
fed in as such: what stands at a place is the mean of the sum of all codes before, at the resolution of the scale to be
said, so nothing is shifted within a scale. Ids are int32 [B L] as the tokenizer's.

The tokenizer is frozen: its variables are the collection variables["tokenizer"], of which codes and phi are read here.
As published, weights decay by 0.05 but not biases, positions, levels, `start`, and the attention's `scale`.

Not here: the original's smoothed codes for nicer pictures (more_smooth), which its numbers do without either.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models.diffusion import modulate, normed
from mmjax.models.var_tokenizer import Tokenizer, TokenizerConfig, published
from mmjax.models.vit import drop_linear
from mmjax.nn import sampling
from mmjax.nn.blocks import attend, placed
from mmjax.nn.cache import Layer
from mmjax.nn.embeddings import Labels
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, gelu_tanh
from mmjax.nn.outputs import Aux
from mmjax.nn.sampling import Sampling
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import attention, diffusion, masks
from mmjax.ops.cross_entropy import softmax_cross_entropy
from mmjax.ops.quantize import unit

# --- sizes


@dataclasses.dataclass(frozen=True)
class VARConfig:
    """The defaults are VAR-d16's for 256 x 256 pixels. Published sizes are the functions below."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    width: int = 1024  # W
    depth: int = 16
    num_heads: int = 16  # H
    hidden: int = 4096  # of the MLP
    classes: tuple[int, ...] = (1000,)  # as counts of nn/embeddings.py's Labels
    drop: float = 0.1  # share of the classes that training leaves out, for guidance
    drop_path: float = 0.1 * 16 / 24  # of the last layer, rising from 0: share of pictures without a branch
    unit_length: bool = True  # whether queries and keys are, with a learned factor for each head
    shared: bool = False  # whether the class modulates all layers by one product, plus what each layer learns
    gate_init: float = 1e-3  # of the gates' weights beside the usual ones

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads, got width={self.width}, num_heads={self.num_heads}"
            )

    @property
    def deviation(self) -> float:  # of initial weights
        return math.sqrt(1 / (3 * self.width))

    @classmethod
    def tiny(cls) -> "VARConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        return cls(TokenizerConfig.tiny(), 16, 2, 2, 32, (3,), drop_path=0.0)


def _published(depth: int, gate_init: float, image_size: int = 256, shared: bool = False) -> VARConfig:
    sizes = {"width": 64 * depth, "depth": depth, "num_heads": depth, "hidden": 256 * depth}
    rates = {"drop_path": 0.1 * depth / 24, "gate_init": gate_init}
    return VARConfig(published(image_size), **sizes, **rates, shared=shared)


def var_d16() -> VARConfig:  # README of FoundationVision/VAR: 310 M parameters
    return _published(16, 1e-3)


def var_d20() -> VARConfig:  # 600 M
    return _published(20, 1e-3)


def var_d24() -> VARConfig:  # 1.0 B
    return _published(24, 1e-4)


def var_d30() -> VARConfig:  # 2.0 B
    return _published(30, 1e-5)


def var_d36s() -> VARConfig:  # 2.3 B, 512 x 512 pixels
    return _published(36, 5e-6, 512, shared=True)


# --- what has been said


@struct.dataclass
class Said:
    """Keys and values of the scales before, for all layers; how many there are is known when the program is built, so
    a scale looks at no empty slots."""

    key: jax.Array  # [layers B L H W/H]
    value: jax.Array  # the same
    count: int = struct.field(pytree_node=False, default=0)

    def append(self, layer: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, "Said"]:
        """A layer's new keys and values [B n H W/H]; returns what to look at, and all."""
        start, end = (layer, 0, self.count, 0, 0), self.count + key.shape[1]
        put = lambda x, new: jax.lax.dynamic_update_slice(x, new[None].astype(x.dtype), start)  # noqa: E731
        whole = self.replace(key=put(self.key, key), value=put(self.value, value))
        key, value = Layer((whole.key, whole.value), layer).read()
        return key[:, :end], value[:, :end], whole


# --- modules


class Attention(nn.Module):
    """Keys have no bias. Queries and keys of length 1, times a factor that is learned for each head, up to 100; or a
    quarter of the usual scale."""

    config: VARConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: Any = None, cache: Layer | None = None) -> Any:  # [B T W] -> [B T W]
        c, init = self.config, nn.initializers.normal(self.config.deviation)

        def heads(name: str, use_bias: bool) -> jax.Array:
            y = Linear(c.width, use_bias, self.dtype, init, name=name)(x)
            return rearrange(y, "b t (h d) -> b t h d", h=c.num_heads)

        query, key, value = heads("query", True), heads("key", False), heads("value", True)
        scale = 0.25 * (c.width // c.num_heads) ** -0.5
        if c.unit_length:
            factor = self.param("scale", nn.initializers.constant(math.log(4)), (c.num_heads,))
            factor = jnp.exp(jnp.minimum(factor, math.log(100)))[:, None]
            query, key, scale = unit(query, 1e-12) * factor, unit(key, 1e-12), 1.0
        query, key = query.astype(self.dtype), key.astype(self.dtype)
        if cache is not None:
            key, value, renewed = cache.whole.append(cache.index, key, value)
        y = rearrange(attention.attention(query, key, value, mask=mask, scale=scale), "b t h d -> b t (h d)")
        init = nn.initializers.normal(c.deviation / math.sqrt(2 * c.depth))
        y = Linear(c.width, True, self.dtype, init, name="out")(y)
        return y if cache is None else (y, renewed)


def modulation_init(c: VARConfig, *factors: float) -> nn.initializers.Initializer:
    """Normal, each W columns times one of `factors`."""

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return c.deviation * np.repeat(np.float32(factors), c.width) * jax.random.normal(rng, shape, dtype)

    return init


class Block(nn.Module):
    """Gates, scales and shifts of attention and MLP, in this order: the class's."""

    config: VARConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, told: jax.Array, mask: Any = None, kept: jax.Array | None = None,
        cache: Layer | None = None,
    ) -> Any:  # fmt: skip
        """x [B T W]; told [B 1 W] of the class or, shared, [B 1 6W]; kept [2 B], factors of the branches."""
        c, init = self.config, modulation_init(self.config, *[self.config.gate_init] * 2, *[0.5] * 4)
        if c.shared:
            own = self.param("modulation", lambda *a: math.sqrt(3) * init(*a), (6 * c.width,))  # of deviation W^-0.5
            told = told + own.astype(self.dtype)
        else:
            told = Linear(6 * c.width, True, self.dtype, init, name="modulation")(jax.nn.silu(told))
        gate1, gate2, scale1, scale2, shift1, shift2 = jnp.split(told, 6, axis=-1)

        def keep(y: jax.Array, branch: int) -> jax.Array:
            return y if kept is None else y * kept[branch, :, None, None].astype(y.dtype)

        mixer = Attention(c, self.dtype, name="attention")
        y, renewed = attend(mixer, modulate(normed(x), shift1, scale1), (mask,), cache)
        x = placed(x + keep(gate1 * y, 0))
        up, down = (nn.initializers.normal(c.deviation / d) for d in (1, math.sqrt(2 * c.depth)))
        y = MLP(c.hidden, gelu_tanh, self.dtype, up, down, name="mlp")(modulate(normed(x), shift2, scale2))
        x = placed(x + keep(gate2 * y, 1))
        return x if cache is None else (x, renewed)


class VAR(nn.Module):
    config: VARConfig
    compute: Compute = Compute()

    def setup(self):
        c, dtype = self.config, self.compute.dtype
        init, sizes = nn.initializers.normal(c.deviation), c.tokenizer.sizes
        self.class_embed = Labels(c.classes, c.width, embedding_init=init)
        self.start = self.param("start", init, (sizes[0], c.width))
        self.level_embed = self.param("level_embed", init, (len(sizes), c.width))
        self.pos_embed = self.param("pos_embed", init, (sum(sizes), c.width))
        self.embed = Linear(c.width, True, kernel_init=init)
        if c.shared:
            self.modulation = Linear(6 * c.width, True, dtype, init)
        self.layers = Stack(partial(Block, c, dtype), c.depth, self.compute)
        self.head_modulation = Linear(2 * c.width, True, kernel_init=modulation_init(c, 0.5, 0.5))
        self.head = Linear(c.tokenizer.num_codes, True, kernel_init=nn.initializers.normal(0.02 * c.deviation))

    def __call__(
        self, label: jax.Array, inputs: jax.Array | None = None, dropped: jax.Array | None = None, *,
        train: bool = False,
    ) -> jax.Array:  # fmt: skip
        """label as of Labels; inputs [B L-n D], the tokenizer's `inputs` (None: zeros); dropped [B] bool, classes that
        are left out -> logits [B L K] float32. In training with drop_path, random numbers are the stream "drop_path".
        """
        c = self.config
        shape = (label.shape[0], c.tokenizer.length - c.tokenizer.sizes[0], c.tokenizer.dim)
        inputs = jnp.zeros(shape) if inputs is None else inputs
        if inputs.shape != shape:
            raise ValueError(f"inputs must be {list(shape)} for scales {c.tokenizer.scales}, got {list(inputs.shape)}")
        told = self.class_embed(label, dropped)
        x = jnp.concatenate([told[:, None] + self.start, self.embed(inputs)], axis=1)
        dropping = train and c.drop_path > 0
        kept = drop_linear(self.make_rng("drop_path"), c.drop_path, c.depth, shape[0]) if dropping else None
        mask = masks.BlockCausal(c.tokenizer.sizes)
        return self._run(x, told, 0, mask=mask, each=kept)[0]

    def init_cache(self, batch_size: int) -> Said:
        c = self.config
        shape = (c.depth, batch_size, c.tokenizer.length, c.num_heads, c.width // c.num_heads)
        return Said(*(jnp.zeros(shape, self.compute.dtype) for _ in range(2)))

    def extend(self, label: jax.Array, inputs: jax.Array | None, cache: Said) -> tuple[jax.Array, Said]:
        """A scale's inputs [B n D], None for the first -> its logits [B n K], and the cache with it."""
        told = self.class_embed(label)
        x = told[:, None] + self.start if inputs is None else self.embed(inputs)
        logits, renewed = self._run(x, told, cache.count, cache=cache)
        return logits, renewed.replace(count=cache.count + x.shape[1])

    def _run(self, x: jax.Array, told: jax.Array, first: int, mask: Any = None, **stack: Any) -> tuple[jax.Array, Any]:
        """x [B T W] from place `first` on, told [B W]."""
        sizes, dtype = self.config.tokenizer.sizes, self.compute.dtype
        levels = np.repeat(np.arange(len(sizes)), sizes)
        x = placed((x + (self.level_embed[levels] + self.pos_embed)[first : first + x.shape[1]]).astype(dtype))
        told = told[:, None]
        each = self.modulation(jax.nn.silu(told)) if self.config.shared else told.astype(dtype)
        x, cache = self.layers(x, each, mask, **stack)
        # In float32, as the embedding of inputs is.
        scale, shift = jnp.split(self.head_modulation(jax.nn.silu(told)), 2, axis=-1)
        return self.head(modulate(normed(x), shift, scale)), cache


def inputs_of(tokenizer: Tokenizer, variables: dict, ids: jax.Array) -> jax.Array:
    """ids [B L] -> what VAR reads of them in training [B L-n D]. variables: the tokenizer's."""
    return jax.lax.stop_gradient(tokenizer.apply(variables, ids, method="inputs"))


def loss(model: VAR, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Cross entropy, the mean over all codes. batch: ids [B L], label as of Labels; variables["tokenizer"] are the
    tokenizer's."""
    c, ids, label = model.config, batch["ids"], batch["label"]
    drop_rng, path_rng = jax.random.split(rng)
    inputs = inputs_of(Tokenizer(c.tokenizer), variables["tokenizer"], ids)
    dropped = jax.random.bernoulli(drop_rng, c.drop, ids.shape[:1])
    logits = model.apply(variables, label, inputs, dropped, train=True, rngs={"drop_path": path_rng})
    losses = softmax_cross_entropy(logits, ids)
    value, ends = losses.mean(), np.cumsum(c.tokenizer.sizes)[:-1]
    metrics = {f"loss_{p}": x.mean() for p, x in zip(c.tokenizer.scales, jnp.split(losses, ends, 1), strict=True)}
    metrics |= {"loss": value, "accuracy": jnp.mean(jnp.argmax(logits, -1) == ids)}
    return value, Aux(metrics, weight=jnp.float32(ids.size))


# --- drawing

BENCHMARK = Sampling(temperature=1.0, top_k=900, top_p=0.96)  # of the published FID, with guidance 1.5


def sample(
    model: VAR, variables: dict, rng: jax.Array, label: jax.Array, *, guidance: float = 1.5, how: Sampling = BENCHMARK
) -> jax.Array:  # fmt: skip
    """label as of Labels, -1 for any -> ids [B L], for the tokenizer's `decode` and `progressive`.

    guidance: what the last scale has; it rises from 0, without which a step costs half. One program over all scales:
    jit it with model and what is keyword static. how: temperature, top_k and top_p.
    """
    c, tokenizer = model.config.tokenizer, Tokenizer(model.config.tokenizer)
    rows, last = label.shape[0], max(len(c.scales) - 1, 1)
    double = (lambda x: jnp.concatenate([x, x])) if guidance else lambda x: x
    labels = jnp.concatenate([label, jnp.full_like(label, -1)]) if guidance else label
    cache, inputs, ids = model.init_cache(labels.shape[0]), None, []
    fhat = jnp.zeros((rows, c.side, c.side, c.dim))
    for k in range(len(c.scales)):
        inputs = None if inputs is None else double(inputs)
        logits, cache = model.apply(variables, labels, inputs, cache, method="extend")
        if guidance:
            logits = diffusion.guided(*jnp.split(logits, 2), 1 + guidance * k / last)
        logits = sampling.filtered(rearrange(logits, "b n k -> (b n) k"), None, how)
        drawn = jax.random.categorical(jax.random.fold_in(rng, k), logits)
        drawn = jnp.argmax(logits, -1) if how.temperature == 0 else drawn
        ids.append(rearrange(drawn.astype(jnp.int32), "(b n) -> b n", b=rows))
        fhat, inputs = tokenizer.apply(variables["tokenizer"], k, ids[-1], fhat, method="advance")
    return jnp.concatenate(ids, axis=1)
