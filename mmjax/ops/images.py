"""Pixels to what a vision tower reads, and grids of positions from one size to another.

H W pixels, h w cells of a grid, D width. `preprocess` and `resize` run on the host and need Pillow; the rest is JAX.
Which bicubic? There are two in use, and a mix-up is the most frequent reason for embeddings that are slightly off:
Pillow's (Keys, a = -0.5, with antialias), and torch's without antialias (a = -0.75).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_float(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """uint8 [... 3] -> float32 (images / 255 - mean) / std; float images are taken as normalised already.

    `mean` and `std` are numbers or three numbers, RGB in [0, 1]. Runs on the device: bytes travel, floats don't.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8 in [0, 255] or float and normalised, got {images.dtype}")
    scale, offset = 1 / (255 * np.asarray(std)), np.asarray(mean) / np.asarray(std)
    return images.astype(jnp.float32) * np.float32(scale) - np.float32(offset)


def to_pil(image: Any) -> Any:
    """A PIL image as it is; an array uint8 [H W], [H W 3] or [H W 4] as a PIL image."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (3, 4))):
        raise ValueError(f"an image is uint8 [H W], [H W 3] or [H W 4], got {image.dtype} {image.shape}")
    return Image.fromarray(image)


def cover(image: Any, size: int) -> Any:
    """PIL image or array -> PIL image in RGB, size x size: shorter side resized to `size`, middle cut out.

    What OpenAI's CLIP does, step by step (openai/CLIP, clip/clip.py, through torchvision's Resize and CenterCrop):
    bicubic with antialias on bytes, the longer side rounded down, RGB after the cut.
    """
    from PIL import Image

    image = to_pil(image)
    width, height = image.size
    shorter = min(width, height)
    width, height = (size if side == shorter else int(size * side / shorter) for side in (width, height))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in (width, height))  # a half rounds to even, as in torchvision
    return image.crop((left, top, left + size, top + size)).convert("RGB")


def preprocess(image: Any, size: int, mean: Any, std: Any) -> np.ndarray:
    """PIL image or uint8 array of any size -> float32 [size size 3], as CLIP's vision tower was trained on."""
    pixels = np.asarray(cover(image, size), np.float32) / 255
    return (pixels - np.float32(mean)) / np.float32(std)


def resize(image: Any, height: int, width: int) -> np.ndarray:
    """PIL image or array -> uint8 [height width ...]: Pillow's bicubic, which rounds to bytes. Distorts if need be."""
    from PIL import Image

    return np.asarray(to_pil(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_cubic(grid: jax.Array, height: int, width: int) -> jax.Array:
    """[h w D] -> [height width D] as torch's bicubic without antialias: transformers, `interpolate_pos_encoding`."""
    shape = (height, width, grid.shape[-1])
    return jax.image.resize(grid, shape, "cubic-pytorch", antialias=False, precision=jax.lax.Precision.HIGHEST)


def resize_cubic_antialias(grid: jax.Array, height: int, width: int) -> jax.Array:
    """[h w D] -> [height width D] as torch's bicubic with antialias: open_clip and timm, loading a checkpoint."""
    shape = (height, width, grid.shape[-1])
    return jax.image.resize(grid, shape, "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST)


def resize_linear_corners(grid: jax.Array, height: int, width: int) -> jax.Array:
    """[h w D] -> [height width D], linear, corners stay corners: big_vision (scipy.ndimage.zoom of order 1)."""
    for axis, count in enumerate((height, width)):
        last = grid.shape[axis] - 1
        at = jnp.linspace(0, last, count)
        grid = _between(grid, at, axis)
    return grid


def resize_linear(positions: jax.Array, length: int) -> jax.Array:
    """[T D] -> [length D], linear between centres, no antialias: open_clip's text positions."""
    count = positions.shape[0]
    at = (jnp.arange(length) + 0.5) * (count / length) - 0.5
    return _between(positions, jnp.clip(at, 0, count - 1), 0)


def _between(x: jax.Array, at: jax.Array, axis: int) -> jax.Array:
    """Linear reads of `x` along `axis` at fractional positions `at`."""
    below = jnp.clip(jnp.floor(at).astype(int), 0, x.shape[axis] - 1)
    above = jnp.minimum(below + 1, x.shape[axis] - 1)
    weight = jnp.expand_dims(at - below, [i for i in range(x.ndim) if i != axis])
    return (1 - weight) * jnp.take(x, below, axis) + weight * jnp.take(x, above, axis)
