"""DiT: a transformer that turns noise into a picture, told by its norms what the picture shall show.

Sources: Peebles and Xie 2023, arXiv:2212.09748, sections 3.2 and 4 (adaLN-Zero); what the paper leaves open from
facebookresearch/DiT (models.py). Flows as in SiT: Ma et al. 2024, arXiv:2401.08740, section 2. The mathematics of noise
is ops/diffusion.py.

    x_t [B H W C] -patches-> [B N D] + fixed positions
    t [B] -sinusoid, two layers-> [B D]  +  condition -> [B D]  =  c
    blocks: x + gate * part(norm(x) (1 + scale) + shift), all three linear in c, for attention and MLP
        -norm, shift and scale by c, linear-> [B N p p C'] -> output [B H W C']

B batch, H W C the size of what is drawn (pixels, or the latents of an autoencoder), N patches in rows from the top
left, D width, C' = 2C where the variance is learned, else C. The output is noise (and where the variance lies in its
range), or a flow's velocity: which of them is the loss's choice, not the network's. At first all gates are 0 and the
output is 0; the first hundred steps are slow. Evaluate a moving average of the parameters (Task.after_update): 0.9999
as published, far less in short runs.

Not as in the original: guidance moves all channels of the noise, there the first three of four; pictures need not be
square; conditions may be vectors (Signal), as decoders behind a language model have them.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmjax.models.vit import PatchEmbed
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import attend, placed
from mmjax.nn.cache import Layer
from mmjax.nn.embeddings import Labels
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, gelu_tanh
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import diffusion

zeros, normal, xavier = nn.initializers.zeros, nn.initializers.normal(0.02), nn.initializers.xavier_uniform()


def uniform_times(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(rng, shape)


def middle_times(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Esser et al. 2024, arXiv:2403.03206, eq. 19 with m = 0, s = 1: more of what is half noise."""
    return jax.nn.sigmoid(jax.random.normal(rng, shape))


# --- what the picture shall show: modules of width and dtype


class Signal(nn.Module):
    """A vector from another network, at any length; what stands for none is learned."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, signal: jax.Array, dropped: jax.Array) -> jax.Array:  # [B E], [B] bool -> [B D]
        null = self.param("null", normal, (self.width,)).astype(self.dtype)
        x = Linear(self.width, True, self.dtype, xavier, name="linear")(
            LayerNorm(dtype=self.dtype, name="norm")(signal)
        )
        return jnp.where(dropped[:, None], null, x)


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes; the defaults are DiT-XL/2's for 256 x 256 pixels. Published sizes are the functions below."""

    size: tuple[int, int] = (32, 32)  # H W
    channels: int = 4  # C
    patch_size: int = 2  # p
    width: int = 1152  # D
    depth: int = 28
    num_heads: int = 16
    hidden: int = 4608  # of the MLP
    condition: Callable[..., nn.Module] = partial(Labels, (1000,))
    drop: float = 0.1  # share of the conditions that training leaves out, for guidance
    learn_variance: bool = True  # False for flows
    betas: Callable[[], np.ndarray] = diffusion.linear_betas  # of the noise
    times: Callable = uniform_times  # rng, shape -> where on its way a flow is trained
    time_scale: float = 1000.0  # what the network is told for t = 1 of a flow; SiT: 1, which moves few frequencies

    def __post_init__(self):
        if any(side % self.patch_size for side in self.size) or self.width % 4:
            raise ValueError(
                f"both sides of size must be multiples of patch_size, and width of 4, got size={self.size}, "
                f"patch_size={self.patch_size}, width={self.width}"
            )

    @property
    def out_channels(self) -> int:  # C'
        return self.channels * (1 + self.learn_variance)

    @property
    def grid(self) -> tuple[int, int]:  # patches in a column, patches in a row
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @classmethod
    def tiny(cls) -> "DiTConfig":
        return cls((8, 8), 3, 2, 16, 2, 2, 32, condition=partial(Labels, (4,)))


def dit_s(patch_size: int = 2) -> DiTConfig:  # table 1
    return DiTConfig(patch_size=patch_size, width=384, depth=12, num_heads=6, hidden=1536)


def dit_b(patch_size: int = 2) -> DiTConfig:  # table 1
    return DiTConfig(patch_size=patch_size, width=768, depth=12, num_heads=12, hidden=3072)


def dit_l(patch_size: int = 2) -> DiTConfig:  # table 1
    return DiTConfig(patch_size=patch_size, width=1024, depth=24, num_heads=16, hidden=4096)


def dit_xl(patch_size: int = 2) -> DiTConfig:  # table 1
    return DiTConfig(patch_size=patch_size)


def small(size: tuple[int, int], channels: int, tiny: bool = False) -> DiTConfig:
    """A flow behind vectors of another network, on latents a place at a time: 1.5 M parameters, or few."""
    width, depth = (16, 2) if tiny else (128, 4)
    return DiTConfig(
        size, channels, 1, width, depth, width // 32 or 1, 4 * width, Signal, learn_variance=False, times=middle_times
    )  # fmt: skip


# --- the paper's maths


def sinusoid(t: jax.Array, width: int, period: float = 10_000.0) -> jax.Array:
    """Times [...] -> [... width]: cosines, then sines, from the fastest to the slowest. Whole steps count as in DDPM,
    0 to 999."""
    frequencies = np.exp(-math.log(period) * np.arange(width // 2, dtype=np.float32) / (width // 2))
    angles = t[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def grid_sinusoid(rows: int, columns: int, width: int) -> np.ndarray:
    """Positions of a grid [rows * columns, width]: sines and cosines of the column in the first half, of the row in
    the second."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))

    def of(places: np.ndarray) -> np.ndarray:
        angles = places.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.mgrid[:rows, :columns]
    return np.concatenate([of(column), of(row)], axis=1).astype(np.float32)


def normed(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """LayerNorm without learned parameters, [... D] float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return x * (1 + scale) + shift


# --- modules


class Modulation(nn.Module):
    """What the condition does to the rest: `count` vectors of its width, 0 at first."""

    count: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, c: jax.Array) -> tuple[jax.Array, ...]:  # [... D] -> count times [... D]
        x = Linear(self.count * c.shape[-1], True, self.dtype, zeros, name="linear")(jax.nn.silu(c))
        return tuple(jnp.split(x, self.count, axis=-1))


class TimeEmbed(nn.Module):
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:  # [...] -> [... width]
        x = Linear(self.width, True, self.dtype, normal, name="up")(sinusoid(t, 256))
        return Linear(self.width, True, self.dtype, normal, name="down")(jax.nn.silu(x))


class Final(nn.Module):
    """The last layer of DiT, and of MAR's head: 0 at first."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:  # [... D] both -> [... features] float32
        shift, scale = Modulation(2, self.dtype, name="modulation")(c)
        x = modulate(normed(x), shift, scale)
        return Linear(self.features, True, self.dtype, zeros, name="linear")(x).astype(jnp.float32)


class Block(nn.Module):
    """adaLN-Zero, figure 3. With a cache it returns a pair, as nn/blocks.py's do."""

    num_heads: int
    hidden: int  # of the MLP
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: jax.Array, mask: Any = None, cache: Layer | None = None
    ) -> jax.Array | tuple[jax.Array, Any]:  # [B N D], [B 1 D] -> [B N D]
        dtype = self.dtype
        shift1, scale1, gate1, shift2, scale2, gate2 = Modulation(6, dtype, name="modulation")(condition)
        attention = Attention(self.num_heads, dtype, xavier, xavier, name="attention")
        y, renewed = attend(attention, modulate(normed(x), shift1, scale1), (mask,), cache)
        x = placed(x + gate1 * y)
        mlp = MLP(self.hidden, gelu_tanh, dtype, xavier, xavier, name="mlp")
        x = placed(x + gate2 * mlp(modulate(normed(x), shift2, scale2)))
        return x if cache is None else (x, renewed)


def flat_xavier(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Of the patches [p p C D], as of the matrix [p p C, D]."""
    return xavier(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


class DiT(nn.Module):
    config: DiTConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, images: jax.Array, condition: jax.Array, t: jax.Array | None = None, dropped: jax.Array | None = None
    ) -> jax.Array:
        """images [B H W C], as noisy as t [B] says: 0 to 999, or a flow's time multiplied by time_scale; None: 0.
        condition as config.condition reads it; dropped [B] bool, True where it is left out. Returns [B H W C'] float32.
        """
        c, dtype, batch_size = self.config, self.compute.dtype, images.shape[0]
        if images.ndim != 4 or images.shape[1:] != (*c.size, c.channels):
            raise ValueError(f"images must be [B {c.size[0]} {c.size[1]} {c.channels}], got {list(images.shape)}")
        t = jnp.zeros(batch_size) if t is None else t
        dropped = jnp.zeros(batch_size, bool) if dropped is None else dropped
        told = TimeEmbed(c.width, dtype, name="time")(t)
        told = told + c.condition(width=c.width, dtype=dtype, name="condition")(condition, dropped)
        told = told[:, None]
        embed = PatchEmbed(c.width, c.patch_size, dtype=dtype, kernel_init=flat_xavier, name="patch_embed")
        x = embed(images) + jnp.asarray(grid_sinusoid(*c.grid, c.width), dtype)
        x, _ = Stack(partial(Block, c.num_heads, c.hidden, dtype), c.depth, self.compute, name="layers")(x, told)
        x = Final(c.patch_size**2 * c.out_channels, dtype, name="final")(x, told)
        return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=c.grid[0], p=c.patch_size, q=c.patch_size)


# --- training. batch: images [B H W C] float, of deviation near 1, and condition


def draw(c: DiTConfig, rng: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A key for times [B], noise [B H W C], dropped [B]."""
    time_rng, noise_rng, drop_rng = jax.random.split(rng, 3)
    return time_rng, jax.random.normal(noise_rng, x.shape), jax.random.bernoulli(drop_rng, c.drop, x.shape[:1])


def noise_terms(model: DiT, variables: dict, batch: dict, t: jax.Array, noise: jax.Array, dropped: jax.Array) -> dict:
    """What each picture adds to the loss [B], at these steps t [B] of the noise."""
    c, x = model.config, batch["images"]
    chain = diffusion.chain(c.betas())
    output = model.apply(variables, diffusion.noised(chain, x, noise, t), batch["condition"], t, dropped)
    if not c.learn_variance:
        return {"error": diffusion.noise_error(output, noise, t.ndim)}
    return dict(zip(("error", "bound"), diffusion.hybrid_loss(chain, output, x, noise, t), strict=True))


def flow_terms(model: DiT, variables: dict, batch: dict, t: jax.Array, noise: jax.Array, dropped: jax.Array) -> dict:
    """The same of a flow at times t [B] in [0, 1]."""
    c, x = model.config, batch["images"]
    if c.learn_variance:
        raise ValueError("a flow has no variance to learn; set learn_variance=False")
    x_t = diffusion.on_path(x, noise, t)
    output = model.apply(variables, x_t, batch["condition"], t * c.time_scale, dropped)
    return {"error": diffusion.flow_error(output, x, noise, t.ndim)}


def _mean(terms: dict) -> tuple[jax.Array, Aux]:
    means = {name: x.mean() for name, x in terms.items()}
    value = sum(means.values())
    return value, Aux({"loss": value, **means}, weight=jnp.float32(terms["error"].size))


def noise_loss(model: DiT, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """DiT, section 3.1: the error of the noise, and the bound where the variance is learned."""
    rng, noise, dropped = draw(model.config, rng, batch["images"])
    t = jax.random.randint(rng, noise.shape[:1], 0, len(model.config.betas()))
    return _mean(noise_terms(model, variables, batch, t, noise, dropped))


def flow_loss(model: DiT, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """SiT, section 2: the velocity of the linear path."""
    rng, noise, dropped = draw(model.config, rng, batch["images"])
    t = model.config.times(rng, noise.shape[:1])
    return _mean(flow_terms(model, variables, batch, t, noise, dropped))


# --- drawing: condition [B ...] -> [B H W C]


def denoiser(model: DiT, variables: dict, condition: jax.Array, guidance: float = 1.0) -> diffusion.Denoise:
    """x_t, timestep [] -> output, guided where guidance is not 1: of both halves of one batch. What says where the
    variance lies is that of the conditional half."""
    rows, channels = condition.shape[0], model.config.channels

    def plain(x: jax.Array, t: jax.Array) -> jax.Array:
        return model.apply(variables, x, condition, jnp.broadcast_to(t, rows))

    def twice(x: jax.Array, t: jax.Array) -> jax.Array:
        dropped = jnp.arange(2 * rows) >= rows
        x, both = (jnp.concatenate([each, each]) for each in (x, condition))
        output = model.apply(variables, x, both, jnp.broadcast_to(t, 2 * rows), dropped)
        with_it, without = jnp.split(output, 2)
        noise = diffusion.guided(with_it[..., :channels], without[..., :channels], guidance)
        return jnp.concatenate([noise, with_it[..., channels:]], axis=-1)

    return plain if guidance == 1 else twice


def start(c: DiTConfig, rng: jax.Array, condition: jax.Array) -> tuple[jax.Array, diffusion.Noise]:
    """Noise to begin with, and that of each step."""
    start_rng, step_rng = jax.random.split(rng)
    shape = (condition.shape[0], *c.size, c.channels)
    return jax.random.normal(start_rng, shape), diffusion.normal_noise(step_rng, shape)


def sample(
    model: DiT, variables: dict, rng: jax.Array, condition: jax.Array, *, steps: int = 250, guidance: float = 1.0
) -> jax.Array:
    """For a model of noise_loss: DDPM's way back in `steps` of its steps."""
    c = model.config
    x, noise = start(c, rng, condition)
    reverse = diffusion.learned_range if c.learn_variance else diffusion.fixed_variance
    denoise = denoiser(model, variables, condition, guidance)
    return diffusion.ancestral(diffusion.chain(c.betas(), steps), denoise, x, noise, reverse=reverse)


def sample_ddim(
    model: DiT, variables: dict, rng: jax.Array, condition: jax.Array, *, steps: int = 50, guidance: float = 1.0,
    eta: float = 0.0,
) -> jax.Array:  # fmt: skip
    """For a model of noise_loss: DDIM's way back, which needs fewer steps."""
    x, noise = start(model.config, rng, condition)
    denoise = denoiser(model, variables, condition, guidance)
    return diffusion.ddim(diffusion.chain(model.config.betas(), steps), denoise, x, noise, eta=eta)


def sample_flow(
    model: DiT, variables: dict, rng: jax.Array, condition: jax.Array, *, steps: int = 25, guidance: float = 1.0,
    shift: float = 1.0, walk: Callable = diffusion.euler,
) -> jax.Array:  # fmt: skip
    """For a model of flow_loss. walk: ops.diffusion's euler, or heun with two calls a step."""
    x, _ = start(model.config, rng, condition)
    denoise = denoiser(model, variables, condition, guidance)
    velocity = lambda x, t: denoise(x, t * model.config.time_scale)  # noqa: E731
    return walk(velocity, x, diffusion.flow_times(steps, shift))
