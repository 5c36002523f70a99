"""Pictures as frequencies and back, by orthonormal transforms: as many real numbers as there were, with the same sum of
squares, so that what is left out or rounded costs the same among pixels and among coefficients.

    fft, inverse_fft, fft_places    the 2-D Fourier transform without the half that repeats the other (FFT: the three)
    dct, inverse_dct, dct_places    the 2-D cosine transform of type II (DCT)
    opponent, inverse_opponent      red, green and blue to lightness and two differences
    radius, shell, rank             how high a frequency is
    band, low_to_high               frequencies in bands, and in order

H W pixels, C channels, N = H W coefficients. Transforms are [... H W C] <-> [... N C] in float32, or in float64 where
that is given, and never in bfloat16. The cosine transform is two products with constant matrices: pictures here have
few pixels along a side, and accelerators multiply fast.

The FFT of a real picture holds each frequency (ky, kx) beside its conjugate at (-ky, -kx). `numpy.fft.rfft2` leaves out
those with negative kx, yet in its column kx = 0, and in kx = W / 2 of an even W, both remain; and the frequencies that
are their own conjugates are real. `fft` keeps each once: real frequencies as they are, of the others the real and the
imaginary part times the root of 2. That map of N numbers to N numbers is orthogonal, unlike that from the array of
rfft2, whose inverse ignores some numbers and averages others.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

# Rows: grey, red against blue, green against both.
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])


class Basis(NamedTuple):
    """A transform, its inverse, and which frequency each of its N coefficients is of."""

    forward: Callable[[jax.Array], jax.Array]  # [... H W C] -> [... N C]
    inverse: Callable[[jax.Array, int, int], jax.Array]  # [... N C], H, W -> [... H W C]
    places: Callable[[int, int], np.ndarray]  # H, W -> int [N 2], along columns (signed for the FFT) and along rows


# --- Fourier


class _Packing(NamedTuple):
    """Between N real numbers and the real, then the imaginary parts of rfft2's array [H V], V = W // 2 + 1."""

    taken: np.ndarray  # int [N], which of the 2 H V parts each number is
    weight: np.ndarray  # [N], what it is multiplied by
    source: np.ndarray  # int [2 H V], which number each part is
    factor: np.ndarray  # [2 H V], what that is multiplied by; 0: the part is none


@functools.cache
def _packing(height: int, width: int) -> _Packing:
    row, column = np.mgrid[:height, : width // 2 + 1]
    mirror = -row % height
    twice = (column == 0) | (2 * column == width)  # columns that hold the conjugates too
    real = twice & (mirror == row)
    owned = ~twice | (row <= mirror)
    taken = np.stack([owned, owned & ~real])  # [2 H V]
    number = np.where(taken, np.cumsum(taken).reshape(taken.shape) - 1, 0)
    number = np.where(owned, number, number[:, mirror, column])
    scale = np.where(real, 1.0, np.sqrt(2.0))
    factor = np.stack([np.ones_like(scale), np.where(real, 0.0, np.where(owned, 1.0, -1.0))]) / scale
    weight = np.stack([scale, scale])[taken]
    return _Packing(np.flatnonzero(taken), weight, number.ravel(), factor.ravel())


def fft(x: jax.Array) -> jax.Array:
    """[... H W C] -> [... H * W, C]: all real parts, then all imaginary parts, by rows of frequencies."""
    x = _exact(x)
    packing = _packing(*x.shape[-3:-1])
    half = rearrange(jnp.fft.rfft2(x, axes=(-3, -2), norm="ortho"), "... h v c -> ... (h v) c")
    parts = jnp.concatenate([half.real, half.imag], axis=-2)
    return parts[..., packing.taken, :] * jnp.asarray(packing.weight[:, None], x.dtype)


def inverse_fft(coefficients: jax.Array, height: int, width: int) -> jax.Array:
    """[... N C] -> [... H W C]."""
    c = _exact(coefficients, height * width)
    packing = _packing(height, width)
    parts = c[..., packing.source, :] * jnp.asarray(packing.factor[:, None], c.dtype)
    real, imaginary = (rearrange(x, "... (h v) c -> ... h v c", h=height) for x in jnp.split(parts, 2, axis=-2))
    return jnp.fft.irfft2(jax.lax.complex(real, imaginary), (height, width), axes=(-3, -2), norm="ortho")


def fft_places(height: int, width: int) -> np.ndarray:
    """int [N 2] (ky, kx) in cycles: -H / 2 <= ky < H / 2 and 0 <= kx <= W / 2."""
    row, column = np.mgrid[:height, : width // 2 + 1]
    signed = (row + height // 2) % height - height // 2
    places = np.stack([signed.ravel(), column.ravel()], axis=-1)
    return np.concatenate([places, places])[_packing(height, width).taken]


# --- cosines


def dct_matrix(size: int) -> np.ndarray:
    """float64 [size size], a frequency in each row: Ahmed et al. 1974, "Discrete Cosine Transform"; rows have length 1
    and are orthogonal."""
    frequency, pixel = np.mgrid[:size, :size]
    rows = np.cos(np.pi * (pixel + 0.5) * frequency / size)
    return rows * np.sqrt(np.where(frequency == 0, 1, 2) / size)


def dct(x: jax.Array) -> jax.Array:
    """[... H W C] -> [... H * W, C], by rows of frequencies."""
    x = _exact(x)
    rows, columns = (jnp.asarray(dct_matrix(size), x.dtype) for size in x.shape[-3:-1])
    return rearrange(_separable(x, rows, columns), "... u v c -> ... (u v) c")


def inverse_dct(coefficients: jax.Array, height: int, width: int) -> jax.Array:
    """[... N C] -> [... H W C]."""
    c = rearrange(_exact(coefficients, height * width), "... (u v) c -> ... u v c", u=height)
    return _separable(c, *(jnp.asarray(dct_matrix(size).T, c.dtype) for size in (height, width)))


def dct_places(height: int, width: int) -> np.ndarray:
    """int [N 2] (u, v) in half cycles, 0 <= u < H and 0 <= v < W."""
    return np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2)


def _separable(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:  # [... H W C], [U H], [V W] -> [...UVC]
    x = jnp.einsum("vw,...hwc->...hvc", columns, x, precision="highest")
    return jnp.einsum("uh,...hvc->...uvc", rows, x, precision="highest")


FFT = Basis(fft, inverse_fft, fft_places)
DCT = Basis(dct, inverse_dct, dct_places)


def _exact(x: jax.Array, numbers: int | None = None) -> jax.Array:
    """At least float32; [... H W C], or [... numbers C]."""
    wanted = "a picture [... H W C]" if numbers is None else f"coefficients [... {numbers} C]"
    if x.ndim < (3 if numbers is None else 2) or (numbers is not None and x.shape[-2] != numbers):
        raise ValueError(f"the transform takes {wanted}, got {list(x.shape)}")
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# --- colours


def opponent(x: jax.Array) -> jax.Array:
    """RGB [... 3] -> grey, red against blue, green against both. Unlike JPEG's colours, these keep sums of squares."""
    return jnp.einsum("oc,...c->...o", jnp.asarray(OPPONENT, x.dtype), x, precision="highest")


def inverse_opponent(x: jax.Array) -> jax.Array:
    return jnp.einsum("oc,...o->...c", jnp.asarray(OPPONENT, x.dtype), x, precision="highest")


# --- from low to high: places int [N 2]


def _longer(places: np.ndarray, height: int, width: int) -> np.ndarray:
    """Whole numbers, as high on both axes as pixels are: min(H, W) times the frequency along the longer side."""
    return places * np.array([width, height])


def radius(places: np.ndarray, height: int, width: int) -> np.ndarray:
    """[N] float64: 1 is the lowest frequency along the longer side; hypot(ky, kx) of a square."""
    return np.sqrt((_longer(places, height, width) ** 2).sum(-1)) / min(height, width)


def shell(places: np.ndarray, height: int, width: int) -> np.ndarray:
    """[N] float64: the higher of the two. The DCT's shells up to k of a square are its k + 1 by k + 1 lowest."""
    return np.abs(_longer(places, height, width)).max(-1) / min(height, width)


def band(measure: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """[N] int: band b begins at edges[b - 1], which belongs to it. edges rise. Edges at 0.5, 1.5, 2.5 ... round."""
    if not np.all(np.diff(edges) > 0) or not np.isfinite(edges).all():
        raise ValueError(f"edges of bands must be numbers that rise, got {tuple(edges)}")
    return np.searchsorted(np.asarray(edges, np.float64), measure, side="right")


def low_to_high(places: np.ndarray, height: int, width: int, bands: np.ndarray | None = None) -> np.ndarray:
    """[N] int, the coefficients in order: by band, in it by radius, then by angle; real before imaginary parts."""
    angle = np.arctan2(places[:, 0], places[:, 1])
    keys = angle, (_longer(places, height, width) ** 2).sum(-1)  # whole numbers, so that equals are equal
    return np.lexsort(keys if bands is None else (*keys, bands))


def rank(places: np.ndarray, height: int, width: int) -> np.ndarray:
    """[N] int: how many coefficients are lower, by `low_to_high`; edges at 8, 16 ... then give bands of 8."""
    return np.argsort(low_to_high(places, height, width))
