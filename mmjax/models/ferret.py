"""Ferret: a region of a picture, of any shape, is its coordinates and one more word that was read off the picture.

Source: You et al. 2023, arXiv:2310.07704, section 3; what the paper leaves open from apple/ml-ferret (ferret_arch.py).

    images [B H W 3] -vision-> features [B n D] -projector-> [B n W] --------------------------------.
    points of regions [B M N 2], features as a map -regions-> [B M W] --------------------------------x-> logits [B T V]
    input_ids [B T] -embed-> [B T W] ("... what is [410, 220] <region_fea> doing?") -----------------'

and in the sampler, block after block (section 3.2; as PointNet++, Qi et al. 2017, arXiv:1706.02413):

    x [N 2], z [N D] -farthest points-> anchors x_i, z_i [S] -nearest points-> k neighbours each
    theta([z_ik - z_i; x_ik - x_i]), [z_i; x_i] -linear, ReLU, LayerNorm-> [S k D] -pool over k-> z of the next block
    after the last block: z [S D] -flatten-> [S D] -two linear layers-> [W]

B batch, M regions of a row at most, N points of a region, S anchors, k neighbours, n patches, D width of what sees, W
of the language model, T tokens, V vocabulary. A point is (x, y) in [0, 1]; ops.points.inside takes N of them from a
mask, text/regions.py makes the mask and the words. `region_token` stands once for each region: the m-th of a row takes
the row's m-th region, and further ones of the M, which fill up the array, are not read. The sampler reads what CLIP
gives, not what the projector makes of it. The loss is LLaVA's.

The released code reads the map with x and y exchanged (it flips coordinates for an order that they had already), and
its weights were trained so: `transposed`. Not as in the original: of points that are equally far the lower index is
taken; the first anchor is the first point unless `starts` says another, where the original always draws one (as `loss`
does); pictures are told by `image_token`, once for each patch, as in models/llava.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmjax.models import clip, llama, llava
from mmjax.nn.cache import KVCache
from mmjax.nn.linear import Linear, matmul
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux, LMOutput
from mmjax.ops import points as point_ops

TRAINED = r"^(projector|regions|language)/"  # Task.trainable: all but the tower
NUL_BYTE = 3  # LLaMA's id of a byte that no text holds; stands where a patch does, so that no row of the table is new


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """[R k S D] -> [R S D], as the released models."""
    return x.max(axis=1)


def _winners(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x.max(axis=1), (x.argmax(axis=1), jnp.arange(x.shape[1]))


def _to_winners(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    """The first of the largest gets all, as in torch. JAX's own rule looks for what equals the maximum after x was
    computed again, which compiled code may round another way: then nothing does, and the gradient is 0 / 0."""
    winner, k = saved
    return (jnp.where(k[:, None, None] == winner[:, None], cotangent[:, None], 0),)


max_pool.defvjp(_winners, _to_winners)


def mean_pool(x: jax.Array) -> jax.Array:
    """The original's other choice."""
    return x.mean(axis=1)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The defaults are the released models'."""

    points: int = 512  # N
    anchors: tuple[int, ...] = (128, 32)  # S of each block
    neighbours: tuple[int, ...] = (24, 24)  # k of each block
    pool: Callable[[jax.Array], jax.Array] = max_pool
    transposed: bool = False  # True for the released weights
    implementation: str | None = None  # of ops.points.neighbourhoods

    def __post_init__(self):
        sizes = (self.points, *self.anchors)
        if len(self.anchors) != len(self.neighbours) or not self.anchors:
            raise ValueError(f"each block has anchors and neighbours, got {self.anchors} and {self.neighbours}")
        for among, k in zip(sizes, self.neighbours, strict=False):
            if k > among:
                raise ValueError(f"a block of {among} points has no {k} neighbours: {self}")


def sampler(c: "FerretConfig") -> nn.Module:
    """Section 3.2."""
    return Sampler(c.sampler, c.llava.language.width, c.llava.language.compute.dtype)


def plain(c: "FerretConfig") -> nn.Module:
    """What table 6 compares with: the mean over the region's points, which are those of ops.points.inside_once."""
    return Plain(c.llava.language.width, c.sampler.transposed, c.llava.language.compute.dtype)


@dataclasses.dataclass(frozen=True)
class FerretConfig:
    """A LLaVA, and how it is told of regions; published sizes are the functions below."""

    llava: llava.LlavaConfig
    region_token: int = 32_000
    regions: Callable[["FerretConfig"], nn.Module] = sampler
    sampler: SamplerConfig = SamplerConfig()

    def __post_init__(self):
        if not 0 <= self.region_token < self.vocab_size or self.region_token == self.llava.image_token:
            raise ValueError(
                f"region_token must be an id of the vocabulary, 0 to {self.vocab_size - 1}, and not the image_token "
                f"{self.llava.image_token}, got {self.region_token}"
            )
        if self.llava.class_token:
            raise ValueError("regions are read off a map of patches, in which a class token has no place")

    @property
    def vocab_size(self) -> int:
        return self.llava.vocab_size

    @property
    def length(self) -> int:
        return self.llava.length

    @classmethod
    def tiny(cls) -> "FerretConfig":
        language = dataclasses.replace(llama.LlamaConfig.tiny(), length=64)
        small = dataclasses.replace(llava.LlavaConfig.tiny(), language=language, projector=llava.linear)
        return cls(small, 62, sampler=SamplerConfig(16, (8, 4), (4, 3)))


def _published(language: llama.LlamaConfig) -> FerretConfig:
    language = dataclasses.replace(language, vocab_size=32_001)  # Vicuna 1.3's, and <region_fea>
    towers = llava.LlavaConfig(clip.vit_l14_336().vision, language, NUL_BYTE, projector=llava.linear)
    return FerretConfig(towers, sampler=SamplerConfig(transposed=True))


def ferret_7b() -> FerretConfig:  # section 4
    return _published(llama.llama_7b())


def ferret_13b() -> FerretConfig:
    return _published(llama.llama_13b())


def check_regions(config: FerretConfig, input_ids: np.ndarray, regions: Sequence[int]) -> None:
    """input_ids [B T], regions [B], how many regions each row comes with. Raises ValueError where a row says another
    number of them, or says one before its picture. On the host, before any of it runs."""
    input_ids = np.asarray(input_ids)
    said = input_ids == config.region_token
    if len(regions) != len(input_ids):
        raise ValueError(f"input_ids have {len(input_ids)} rows, but regions are given for {len(regions)}")
    for row, (found, given) in enumerate(zip(said.sum(1), regions, strict=True)):
        if found != given:
            raise ValueError(
                f"row {row} has {found} region tokens (id {config.region_token}), but {given} regions; each region is "
                "said once, and a row that was cut may have lost one"
            )
        before = np.flatnonzero(said[row])[:1]
        if len(before) and not (input_ids[row, : before[0]] == config.llava.image_token).any():
            raise ValueError(f"row {row} says a region at token {before[0]}, before its picture")


# --- the sampler


def looked_up(maps: jax.Array, points: jax.Array, transposed: bool) -> jax.Array:
    """maps [B n D] of a square of patches, points [B M N 2] -> float32 [B M N D]: what the map holds there."""
    side = round(maps.shape[1] ** 0.5)
    if side * side != maps.shape[1]:
        raise ValueError(f"regions are read off a square of patches, got {maps.shape[1]}")
    grid = rearrange(maps, "b (h w) d -> b h w d", h=side)
    places = rearrange(points[..., ::-1] if transposed else points, "b m n c -> b (m n) c")
    return rearrange(point_ops.sample(grid, places), "b (m n) d -> b m n d", m=points.shape[1])


def torch_uniform(fan_in: int) -> Callable:
    """torch.nn.Linear's and Conv1d's first values, of weights and biases."""
    return clip.uniform(fan_in**-0.5)


def dense(features: int, fan_in: int, dtype: Any, name: str) -> Linear:
    return Linear(features, True, dtype, torch_uniform(fan_in), torch_uniform(fan_in), name=name)


class Weights(nn.Module):
    """A linear layer that its owner applies in parts."""

    features: int

    @nn.compact
    def __call__(self, fan_in: int) -> tuple[jax.Array, jax.Array]:
        initial = torch_uniform(fan_in)
        kernel = self.param("kernel", initial, (fan_in, self.features))
        return kernel, self.param("bias", initial, (self.features,))


class Block(nn.Module):
    """R regions: N points become `count`, each of which knows its k neighbours.

    With u = [z; x], theta is linear, so theta(u_ik - u_i) = theta(u_ik) - theta(u_i): it and the part of the next layer
    that reads it are applied to the N points and not to the S k pairs, which are 6 times as many.
    """

    count: int  # S
    k: int
    pool: Callable[[jax.Array], jax.Array]
    implementation: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [R N 2] float32, z [R N D], start [R] int -> x [R S 2], z [R S D]."""
        width = z.shape[-1]
        theta, theta_bias = Weights(width + 2, name="difference")(width + 2)
        sigma, sigma_bias = Weights(width, name="aggregate")(2 * (width + 2))
        of_difference, of_anchor = (part.astype(self.dtype) for part in jnp.split(sigma, 2))

        u = jnp.concatenate([z, x], axis=-1).astype(self.dtype)  # [R N D+2]
        v = matmul(matmul(u, theta.astype(self.dtype)), of_difference)  # [R N D]
        found = point_ops.neighbourhoods(x, v, self.count, self.k, start, implementation=self.implementation)
        taken = partial(point_ops.take, indices=found.anchors)
        bias = matmul(theta_bias.astype(self.dtype)[None], of_difference)[0] + sigma_bias.astype(self.dtype)
        anchor = matmul(taken(u), of_anchor) + bias  # [R S D]
        # Differences of close numbers, which bfloat16 cannot tell apart.
        pairs = found.values.astype(jnp.float32) + (anchor.astype(jnp.float32) - taken(v).astype(jnp.float32))[:, None]
        pairs = LayerNorm(1e-5, self.dtype, name="norm")(nn.relu(pairs))  # [R k S D]
        return taken(x), self.pool(pairs)


class Sampler(nn.Module):
    config: SamplerConfig
    width: int  # W
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array, points: jax.Array, starts: jax.Array | None = None) -> jax.Array:
        """maps [B n D], points [B M N 2], starts [B M 2] int, the first anchor of each block -> [B M W]."""
        c, depth = self.config, maps.shape[-1]
        if points.ndim != 4 or points.shape[-2:] != (c.points, 2):
            raise ValueError(f"points must be [B M {c.points} 2], got {list(points.shape)}; see ops.points.inside")
        x = rearrange(points, "b m n c -> (b m) n c").astype(jnp.float32)
        z = rearrange(looked_up(maps, points, c.transposed), "b m n d -> (b m) n d")
        starts = jnp.zeros((*points.shape[:2], len(c.anchors)), jnp.int32) if starts is None else starts
        starts = rearrange(starts, "b m s -> s (b m)")
        for i, (count, k) in enumerate(zip(c.anchors, c.neighbours, strict=True)):
            x, z = Block(count, k, c.pool, c.implementation, self.dtype, name=f"block{i}")(x, z, starts[i])
        z = rearrange(z, "r s d -> r (s d)")
        z = dense(depth, z.shape[-1], self.dtype, "flatten")(z)
        return rearrange(dense(self.width, depth, self.dtype, "out")(z), "(b m) w -> b m w", m=points.shape[1])

    @nn.nowrap
    def starts(self, rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """[B M 2] drawn among the points of each block."""
        most = jnp.asarray((self.config.points, *self.config.anchors[:-1]))
        return jax.random.randint(rng, (*shape, len(self.config.anchors)), 0, most)


class Plain(nn.Module):
    """The original maps all patches and then takes the mean; as both are linear, this takes the mean first."""

    width: int  # W
    transposed: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array, points: jax.Array, starts: jax.Array | None = None) -> jax.Array:
        """maps [B n D], points [B M N 2], NOWHERE where there is none -> [B M W]."""
        there = (points >= 0).all(-1)[..., None]
        total = jnp.sum(jnp.where(there, looked_up(maps, points, self.transposed), 0), axis=2)
        mean = total / jnp.maximum(there.sum(2), 1)
        return dense(self.width, maps.shape[-1], self.dtype, "out")(mean)

    @nn.nowrap
    def starts(self, rng: jax.Array, shape: tuple[int, int]) -> None:
        return None


# --- the model


class Ferret(nn.Module):
    config: FerretConfig

    def setup(self):
        c = self.config
        self.vision, self.projector = c.llava.see(c.llava), c.llava.projector(c.llava)
        self.regions, self.language = c.regions(c), llama.Llama(c.llava.language)

    def __call__(
        self,
        input_ids: jax.Array,
        images: jax.Array | None = None,
        points: jax.Array | None = None,
        starts: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> llava.LlavaOutput:
        """input_ids [B T] int; images [B H W 3], one a row, uint8 or float already normalised, not cropped but resized
        to a square; points [B M N 2] of each region, (x, y) in [0, 1]; starts as the sampler's; the rest as in Llava.
        """
        features = None if images is None else self.vision(images)
        splice = self.splice(input_ids, images, features, points, starts)
        out = llava.read(self.language, input_ids, splice, attention_mask, positions, segments)
        return llava.LlavaOutput(out.last_hidden_state, out.logits, features)

    def extend(
        self, input_ids: jax.Array, cache: KVCache, attention_mask: jax.Array | None = None, *,
        images: jax.Array | None = None, points: jax.Array | None = None, starts: jax.Array | None = None,
    ) -> tuple[LMOutput, KVCache]:  # fmt: skip
        """As llama.Llama's; the rest as in a call, with the part of the text that they stand in."""
        features = None if images is None else self.vision(images)
        splice = self.splice(input_ids, images, features, points, starts)
        return self.language.extend(input_ids, cache, attention_mask, splice=splice)

    def encode_regions(self, images: jax.Array, points: jax.Array, starts: jax.Array | None = None) -> jax.Array:
        """images [B H W 3], points [B M N 2] -> [B M W], what the language model reads in place of <region_fea>."""
        return self.regions(self.vision(images), points, starts)

    def splice(
        self, input_ids: jax.Array, images: jax.Array | None, features: jax.Array | None, points: jax.Array | None,
        starts: jax.Array | None,
    ) -> llama.Splice | None:  # fmt: skip
        """What puts picture and regions in their places, for the language model; features [B n D] of the images."""
        if images is None:
            if points is not None:
                raise ValueError("regions are read off a picture; give images too")
            return None
        rows = {len(x) for x in (input_ids, images, points) if x is not None}
        if images.ndim != 4 or len(rows) > 1:
            given = None if points is None else list(points.shape)
            raise ValueError(
                f"each row has one picture and its regions: input_ids [B T], images [B H W 3] and points [B M N 2], "
                f"got {list(input_ids.shape)}, {list(images.shape)} and {given}"
            )
        c, pictures = self.config, self.projector(features)
        regions = None if points is None else self.regions(features, points, starts)

        def into(embeds: jax.Array) -> jax.Array:
            embeds = llava.put(embeds, input_ids == c.llava.image_token, pictures)
            return embeds if regions is None else llava.put(embeds, input_ids == c.region_token, regions)

        return into

    @nn.nowrap
    def init_cache(self, batch_size: int, length: int) -> KVCache:
        return llama.Llama(self.config.llava.language).init_cache(batch_size, length)

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[W V] what the last hidden state is multiplied by."""
        return llama.Llama(self.config.llava.language).head(params["language"])


def loss(model: Ferret, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """-log p of what the assistant says, the mean over its tokens of the global batch.

    batch: input_ids [B T], spoken [B T] bool (the assistant wrote this token, the end of its turn included), images,
    points, and where there are any starts (otherwise drawn), attention_mask, positions and segments, as in a call.
    """
    out, labels = forward(model, variables, batch, rng), llava.labels_of(batch)
    value, count = llava.answer_loss(model, variables, out.last_hidden_state, labels)
    return value, Aux({"loss": value}, weight=count)


def forward(model: Ferret, variables: dict, batch: dict, rng: jax.Array) -> llava.LlavaOutput:
    """The model on a batch of `loss`."""
    points, starts = batch["points"], batch.get("starts")
    if starts is None:
        starts = model.config.regions(model.config).starts(rng, points.shape[:2])
    names = ("attention_mask", "positions", "segments")
    others = {name: batch[name] for name in names if name in batch}
    return model.apply(variables, batch["input_ids"], batch["images"], points, starts, **others)
