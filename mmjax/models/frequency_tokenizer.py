"""Frequencies as tokens, the tokenizer: it learns nothing but the mean and the deviation of each coefficient.

Source: none holds it whole; steps of one size for coefficients of one band are JPEG's. Fact sheets of its relatives are
named in models/frequency.py.

    images [B H W C] -colours, blocks, T-> coefficients [B P n C] -whitened, in groups of a band-> values [B L m]
    values of any first bands -T inverse, colours-> images, blurred
    values [B L m] -divided by the step, rounded-> codes in [-Q, Q] -times the step-> values

B pictures, H W pixels, C channels, P blocks of a picture (1: the whole), n coefficients of a block and channel, K
bands, L tokens, g coefficients in a token, m = g C numbers in it (behind the last of a band: zeros that do not count),
Q the largest code. T is orthonormal (ops/fourier.py), so no network decodes, and the errors of bands add up. A step is
one of coefficients, before they are whitened: it costs its square / 12 wherever they are larger.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from mmjax.ops import fourier
from mmjax.ops import images as image_ops

Statistics = dict[str, Any]  # "mean" and "deviation" [n C] of coefficients, "step" [n] of their codes


# --- which numbers are a token, and when it comes


class Layout(NamedTuple):
    """Tokens in the order in which they are said."""

    numbers: np.ndarray  # int [L g], the coefficients of a token, of P n; -1: none
    kinds: np.ndarray  # int [L], equal where tokens hold the same frequencies of different blocks
    sizes: tuple[int, ...]  # tokens of each band

    @property
    def ends(self) -> np.ndarray:
        """[K + 1] int, how many tokens stand before each band, and behind the last."""
        return np.cumsum((0, *self.sizes))


def low_to_high(c: "TokenizerConfig") -> Layout:
    """By bands; in a band, block by block."""
    return _by_band(c, c.kinds)


def high_to_low(c: "TokenizerConfig") -> Layout:
    return _by_band(c, c.kinds[::-1])


def shuffled(c: "TokenizerConfig", seed: int = 0) -> Layout:
    """Bands in one order by chance."""
    return _by_band(c, [c.kinds[i] for i in np.random.default_rng(seed).permutation(len(c.kinds))])


def raster(c: "TokenizerConfig") -> Layout:
    """Blocks by rows from the top left, each with all of its frequencies, as JPEG has them."""
    return _layout(c, [[(block, kind) for band in c.kinds for kind in band] for block in range(c.blocks)])


def _by_band(c: "TokenizerConfig", bands: list[list[int]]) -> Layout:
    return _layout(c, [[(block, kind) for block in range(c.blocks) for kind in band] for band in bands])


def _layout(c: "TokenizerConfig", bands: list[list[tuple[int, int]]]) -> Layout:
    block, kinds = np.array([token for band in bands for token in band]).T
    numbers = np.where(c.groups[kinds] < 0, -1, c.groups[kinds] + block[:, None] * c.block_numbers)
    return Layout(numbers, kinds, tuple(len(band) for band in bands))


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Defaults: 32 x 32 pixels whole, in 8 bands (the mean alone, the 8 lowest ...) and 131 tokens of 24 numbers."""

    size: tuple[int, int] = (32, 32)  # H W
    channels: int = 3  # C
    basis: fourier.Basis = fourier.FFT
    block: int | None = None  # pixels along a side of a block; None: the whole picture is one
    measure: Callable = fourier.radius  # or another of ops/fourier.py, of which edges are
    edges: tuple[float, ...] = (0.5, 1.5, 2.5, 4.5, 7.5, 11.5, 16.5)  # where bands but the first begin
    group: int = 8  # g
    order: Callable[["TokenizerConfig"], Layout] = low_to_high
    step: float | tuple[float, ...] = 0.5  # least step of codes, of all bands or of each; pixels are in [-1, 1]
    clip: int = 31  # Q
    floor: float = 0.01  # least deviation that values are divided by, about one of 256 shades

    def __post_init__(self):
        if self.block and any(side % self.block for side in self.size):
            raise ValueError(f"both sides of size must be multiples of block, got {self.size} and {self.block}")
        counts = np.bincount(self.bands, minlength=len(self.edges) + 1)
        if not counts.all():
            raise ValueError(f"edges {self.edges} leave bands without a coefficient; they hold {counts.tolist()}")
        if np.size(self.step) not in (1, len(counts)) or np.min(self.step) <= 0:
            raise ValueError(
                f"step must be above 0, one number or one for each of {len(counts)} bands, got {self.step}"
            )

    @classmethod
    def tiny(cls, **changes: Any) -> "TokenizerConfig":
        return cls(**{"size": (8, 8), "edges": (0.5, 1.5, 2.5), "group": 4, "clip": 7, **changes})

    @property
    def block_size(self) -> tuple[int, int]:
        return (self.block, self.block) if self.block else self.size

    @property
    def block_numbers(self) -> int:  # n
        return math.prod(self.block_size)

    @property
    def blocks(self) -> int:  # P
        return math.prod(self.size) // self.block_numbers

    @property
    def features(self) -> int:  # m
        return self.group * self.channels

    @property
    def bands(self) -> np.ndarray:
        """int [n], the band of each coefficient by its frequency, whatever the order."""
        measured = self.measure(self.basis.places(*self.block_size), *self.block_size)
        return fourier.band(measured, self.edges)

    @property
    def steps(self) -> np.ndarray:
        """[n], the least step of each coefficient."""
        return np.broadcast_to(self.step, len(self.edges) + 1)[self.bands]

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """int [kinds g]: coefficients of a block that one token holds, from low to high; -1: none."""
        order = fourier.low_to_high(self.basis.places(*self.block_size), *self.block_size, self.bands)
        rows = []
        for band in np.split(order, np.cumsum(np.bincount(self.bands))[:-1]):
            filled = np.append(band, np.full(-len(band) % self.group, -1))
            rows.append(filled.reshape(-1, self.group))
        return np.concatenate(rows)

    @property
    def kinds(self) -> list[list[int]]:
        """The rows of `groups` in each band."""
        counts = -(-np.bincount(self.bands) // self.group)
        return [list(range(end - count, end)) for end, count in zip(np.cumsum(counts), counts, strict=True)]

    @functools.cached_property
    def layout(self) -> Layout:
        return self.order(self)

    @functools.cached_property
    def live(self) -> np.ndarray:
        """bool [L m], the numbers that count."""
        return repeat(self.layout.numbers >= 0, "l g -> l (g c)", c=self.channels)

    @property
    def tokens(self) -> int:  # L
        return len(self.layout.kinds)


def cosines(**changes: Any) -> TokenizerConfig:
    """The whole picture in cosines, which count half cycles: edges are about twice as high."""
    return TokenizerConfig(**{"basis": fourier.DCT, "edges": (0.5, 3, 5, 9, 15, 23, 33), **changes})


def cosine_blocks(**changes: Any) -> TokenizerConfig:
    """16 blocks of 8 x 8 cosines in 8 bands of 8: 128 tokens of 24 numbers, said from low to high in all blocks."""
    by_eights = {"measure": fourier.rank, "edges": tuple(range(8, 64, 8))}
    return TokenizerConfig(**{"basis": fourier.DCT, "block": 8, **by_eights, **changes})


def raster_blocks(**changes: Any) -> TokenizerConfig:
    """The same tokens, block after block: what the order from low to high is worth."""
    return cosine_blocks(**{"order": raster, **changes})


# --- pictures to coefficients and back; statistics


def coefficients(c: TokenizerConfig, images: jax.Array) -> jax.Array:
    """images [B H W C], uint8 RGB or float in [-1, 1] -> [B P n C] float32."""
    if images.ndim != 4 or images.shape[1:] != (*c.size, c.channels):
        raise ValueError(f"images must be [B {c.size[0]} {c.size[1]} {c.channels}], got {list(images.shape)}")
    if c.channels == 3:
        x = fourier.opponent(image_ops.to_float(images, 0.5, 0.5).astype(jnp.float32))
    elif jnp.issubdtype(images.dtype, jnp.floating):
        x = images
    else:
        raise ValueError(f"bytes are read as RGB only; with {c.channels} channels images must be float in [-1, 1]")
    height, width = c.block_size
    return c.basis.forward(rearrange(x, "b (h p) (w q) c -> b (h w) p q c", p=height, q=width))


def pixels(c: TokenizerConfig, coefficients: jax.Array) -> jax.Array:
    """[B P n C] -> [B H W C] float32."""
    x = c.basis.inverse(coefficients, *c.block_size)
    x = rearrange(x, "b (h w) p q c -> b (h p) (w q) c", h=c.size[0] // c.block_size[0])
    return fourier.inverse_opponent(x) if c.channels == 3 else x


def fit(c: TokenizerConfig, images: Any, *, rows: int = 1024) -> dict[str, np.ndarray]:
    """What the tokenizer knows, of training images [B H W C]: the collection "statistics" of a model's variables.

    mean and deviation [n C] of each coefficient, over pictures and blocks; the latter at least `floor`. step [n], one
    for each band, so that no training picture has a code beyond Q. `rows` pictures are read at a time.
    """
    of_rows = jax.jit(partial(coefficients, c))
    count, mean, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for start in range(0, len(images), rows):
        found = of_rows(jnp.asarray(images[start : start + rows]))
        x = rearrange(np.asarray(found, np.float64), "b p n c -> (b p) n c")
        if not np.isfinite(x).all():
            picture = start + int(np.argmin(np.isfinite(np.asarray(found)).all((1, 2, 3))))
            raise ValueError(f"images[{picture}] holds NaN or infinite numbers, of which there are no statistics")
        # Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
        change, total = x.mean(0) - mean, count + len(x)
        squares = squares + ((x - x.mean(0)) ** 2).sum(0) + change**2 * count * len(x) / total
        mean, count = mean + change * len(x) / total, total
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
    if not count:
        raise ValueError("statistics need images, got none")
    reach, bands = np.maximum(high - mean, mean - low).max(-1), c.bands
    reach = np.array([reach[bands == band].max() for band in range(bands.max() + 1)])[bands]
    found = {
        "mean": mean,
        "deviation": np.maximum(np.sqrt(squares / count), c.floor),
        "step": np.maximum(reach / c.clip, c.steps),
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


def checked(statistics: Statistics) -> Statistics:
    """As they are; ValueError where their values are known and cannot be."""
    for name, x in statistics.items():
        if isinstance(x, jax.core.Tracer):
            continue
        if not np.isfinite(np.asarray(x)).all() or (name != "mean" and (np.asarray(x) <= 0).any()):
            raise ValueError(f'"statistics" hold a {name} that is NaN, infinite or not above 0; make them with `fit`')
    return statistics


# --- coefficients to what tokens hold, and back


def values(c: TokenizerConfig, statistics: Statistics, images: jax.Array) -> jax.Array:
    """[B H W C] -> [B L m] float32, of mean 0 and deviation 1 among training pictures; 0 where there is no number."""
    x = (coefficients(c, images) - statistics["mean"]) / statistics["deviation"]
    x = rearrange(x, "b p n c -> b (p n) c")[:, c.layout.numbers]
    return jnp.where(c.live, rearrange(x, "b l g c -> b l (g c)"), 0)


def pictures(c: TokenizerConfig, statistics: Statistics, values: jax.Array, bands: int | None = None) -> jax.Array:
    """[B L m] -> [B H W C] float32, about in [-1, 1]; of the first `bands` bands alone, 0 being all others."""
    numbers, known = c.layout.numbers, c.layout.ends[-1 if bands is None else bands] * c.group
    place = np.argsort(numbers.ravel(), kind="stable")[np.sum(numbers < 0) :]  # [P n], where each coefficient is
    x = rearrange(values, "b l (g c) -> b (l g) c", g=c.group)[:, place]
    x = rearrange(x, "b (p n) c -> b p n c", p=c.blocks) * statistics["deviation"] + statistics["mean"]
    return pixels(c, jnp.where((place < known).reshape(c.blocks, -1, 1), x, 0))


def grain(c: TokenizerConfig, statistics: Statistics) -> jax.Array:
    """[L m], how large the step of each number is among values; 1 where there is no number."""
    steps = statistics["step"][:, None] / statistics["deviation"]  # [n C]
    return jnp.where(c.live, rearrange(steps[c.layout.numbers % c.block_numbers], "l g c -> l (g c)"), 1.0)


def rounded(values: jax.Array, grain: jax.Array, clip: int) -> jax.Array:
    """[B L m] -> codes int32 in [-Q, Q]; times the grain they are values again, within half a step unless clipped."""
    return jnp.clip(jnp.rint(values / grain), -clip, clip).astype(jnp.int32)
