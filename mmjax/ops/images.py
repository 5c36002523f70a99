"""Pixels to what a vision tower reads, and grids of positions from one size to another.

H W pixels, h w cells of a grid, D width. `preprocess` and `resize` run on the host and need Pillow; the rest is JAX.
Grids are resized by a product with two matrices that are made on the host, one for rows and one for columns.
Which bicubic? There are two in use, and a mix-up is the most frequent reason for embeddings that are slightly off:
Pillow's (Keys, a = -0.5, with antialias), and torch's without antialias (a = -0.75).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def to_float(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """uint8 [... 3] -> float32 (images / 255 - mean) / std; float images are taken as normalised already.

    `mean` and `std` are numbers or three numbers, RGB in [0, 1]. Runs on the device: bytes travel, floats don't.
    """
    if images.shape[-1:] != (3,):
        # One channel would be broadcast to three.
        raise ValueError(
            f"images must be RGB with channels last, [... 3], got {list(images.shape)}; repeat grey three times, put "
            "RGBA on a background, move channels that come first"
        )
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8 in [0, 255] or float and normalised, got {images.dtype}")
    scale, offset = 1 / (255 * np.asarray(std)), np.asarray(mean) / np.asarray(std)
    return images.astype(jnp.float32) * np.float32(scale) - np.float32(offset)


def to_uint8(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """The way back of `to_float`: float [... 3], normalised -> uint8, rounded, and cut where it is out of range."""
    images = images.astype(jnp.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return jnp.round(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)


def to_pil(image: Any) -> Any:
    """A PIL image as it is; an array uint8 [H W], [H W 3] or [H W 4] as a PIL image."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (3, 4))):
        raise ValueError(f"an image is uint8 [H W], [H W 3] or [H W 4], got {image.dtype} {image.shape}")
    return Image.fromarray(image)


def save_png(image: np.ndarray, target: Any, milliseconds: int = 400) -> None:
    """uint8 [H W 3] to a path or an open file; of [T H W 3], an animation of T frames that begins again for ever, whose
    last frame stays four times as long. Programs that know no animated PNG show the first frame.
    """
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in (image if image.ndim == 4 else image[None])]
    times = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    how = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0} if len(frames) > 1 else {}
    frames[0].save(target, "png", **how)


def shown(image: Any) -> Any:
    """PIL image of a file -> PIL image in RGB, as a viewer shows it: upright, on white where it is transparent, grey
    three times. 16 bits of grey become 8, where Pillow's own conversion takes all above 255 for white. ValueError where
    pixels are numbers without a range: 32-bit integers and floats."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are 32-bit {'integers' if image.mode == 'I' else 'floats'}, and nothing says which is black "
            "and white; save it with 8 or 16 bits a channel"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.round(np.asarray(image, np.float32) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def shown_size(image: Any) -> tuple[int, int]:
    """PIL image of a file, of which no pixel need be read -> (width, height) that `shown` gives it."""
    from PIL import Image

    # Pillow's own method for PNG reads the pixels first, as what turns a picture may stand behind them.
    quarter = Image.Image.getexif(image).get(0x0112, 1) in (5, 6, 7, 8)
    return image.size[::-1] if quarter else image.size


def cover(image: Any, size: int) -> Any:
    """PIL image or array -> PIL image in RGB, size x size: shorter side resized to `size`, also where it is smaller,
    middle cut out. As CLIP does, what is transparent shows the colours behind it; see `shown`.

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


# A picture in the middle of a square, which is then resized without cutting anything off


class Frame(NamedTuple):
    """Where a picture lies in the smallest square around it, in pixels."""

    side: int
    left: int
    top: int


def frame(width: int, height: int) -> Frame:
    """As haotian-liu/LLaVA and shikras/shikra: of an odd difference, the smaller half is left of or above it."""
    side = max(width, height)
    return Frame(side, (side - width) // 2, (side - height) // 2)


def expand_to_square(image: Any, colour: tuple[int, int, int] = (255, 255, 255)) -> Any:
    """PIL image or array -> PIL image in RGB, square, on `colour` 0 to 255. Shikra and NExT-Chat take white; LLaVA-1.5
    takes `mean_colour` of what it normalises by, so that the ground is 0 for the tower."""
    from PIL import Image

    image = to_pil(image).convert("RGB")
    at = frame(*image.size)
    square = Image.new("RGB", (at.side, at.side), colour)
    square.paste(image, (at.left, at.top))
    return square


def mean_colour(mean: Any) -> tuple[int, ...]:
    """RGB in [0, 1] -> 0 to 255, rounded down."""
    return tuple(int(255 * x) for x in mean)


def in_square(places: Any, width: int, height: int) -> np.ndarray:
    """(x, y) or boxes (x0, y0, x1, y1) in pixels of a picture, [... 2] or [... 4] -> float64 in [0, 1] of its
    square; what lies outside is moved to the edge of the square. In float64, since digits are written from it."""
    places, at = np.asarray(places, np.float64), frame(width, height)
    return np.clip((places + np.tile([at.left, at.top], places.shape[-1] // 2)) / at.side, 0, 1)


def from_square(places: Any, width: int, height: int) -> np.ndarray:
    """The way back: [0, 1] of the square -> pixels of the picture, which may lie outside of it, where the ground is."""
    places, at = np.asarray(places, np.float64), frame(width, height)
    return places * at.side - np.tile([at.left, at.top], places.shape[-1] // 2)


def resize(image: Any, height: int, width: int) -> np.ndarray:
    """PIL image or array -> uint8 [height width ...]: Pillow's bicubic, which rounds to bytes. Distorts if need be."""
    from PIL import Image

    return np.asarray(to_pil(image).resize((width, height), Image.Resampling.BICUBIC))


def longest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of a picture whose longer side is made `size`; halves round up, as in segment_anything."""
    scale = size / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def fit_longest_side(image: Any, size: int, mean: Any, std: Any) -> np.ndarray:
    """PIL image or uint8 array [H W 3] -> float32 [size size 3]: the longer side made `size` (Pillow's bilinear on
    bytes), normalised, zeros at the right and below. What segment_anything does; `longest_side` tells the rest."""
    from PIL import Image

    image = to_pil(image).convert("RGB")
    height, width = longest_side(image.height, image.width, size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (pixels - np.float32(mean)) / np.float32(std)
    return np.pad(pixels, ((0, size - height), (0, size - width), (0, 0)))


def resize_cubic(grid: jax.Array, height: int, width: int) -> jax.Array:
    """[h w D] -> [height width D] as torch's bicubic without antialias: transformers, `interpolate_pos_encoding`."""
    return _product(grid, *(cubic_rows(old, new) for old, new in zip(grid.shape, (height, width), strict=False)))


def resize_cubic_offset(grid: jax.Array, height: int, width: int, offset: float = 0.1) -> jax.Array:
    """`resize_cubic` as though the new grid were larger by `offset` cells: facebookresearch/dino, and dinov2 where it
    has no registers. They hand torch such a factor, so that its product with the old size never rounds down."""
    sizes = zip(grid.shape, (height, width), strict=False)
    return _product(grid, *(cubic_rows(old, new, old / (new + offset)) for old, new in sizes))


def resize_cubic_antialias(grid: jax.Array, height: int, width: int) -> jax.Array:
    """[h w D] -> [height width D] as torch's bicubic with antialias: open_clip and timm, loading a checkpoint."""
    sizes = zip(grid.shape, (height, width), strict=False)
    return _product(grid, *(cubic_antialias_rows(old, new) for old, new in sizes))


def resize_linear_corners(grid: jax.Array, height: int, width: int) -> jax.Array:
    """[h w D] -> [height width D], linear, corners stay corners: big_vision (scipy.ndimage.zoom of order 1)."""
    sizes = zip(grid.shape, (height, width), strict=False)
    return _product(grid, *(linear_rows(old, np.linspace(0, old - 1, new)) for old, new in sizes))


def resize_linear(positions: jax.Array, length: int) -> jax.Array:
    """[T D] -> [length D], linear between centres, no antialias: open_clip's text positions."""
    old = positions.shape[0]
    at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    return jnp.einsum("nt,td->nd", linear_rows(old, at), positions, precision="highest")


def _product(grid: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """[h w D], [height h], [width w] -> [height width D]. In bfloat16 products, positions would lose their digits."""
    grid = jnp.einsum("mw,hwd->hmd", columns, grid, precision="highest")
    return jnp.einsum("nh,hmd->nmd", rows, grid, precision="highest")


# How much each old cell counts in each new one: [new old], each row sums to 1


def cubic_rows(old: int, new: int, step: float | None = None) -> np.ndarray:
    """Four taps with a = -0.75; what lies beyond the edge is the edge. step: old cells a new one; None: old / new."""
    at = (np.arange(new) + 0.5) * (old / new if step is None else step) - 0.5
    taps = np.floor(at)[:, None] + np.arange(-1, 3)  # [new 4]
    cells = taps.clip(0, old - 1)[..., None] == np.arange(old)
    return np.einsum("nk,nko->no", keys_cubic(at[:, None] - taps, a=-0.75), cells).astype(np.float32)


def cubic_antialias_rows(old: int, new: int) -> np.ndarray:
    """a = -0.5 and as wide as a new cell, where that is larger than an old one; what lies beyond the edge is left out.

    As Pillow and as jax.image.resize."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = keys_cubic((at[:, None] - np.arange(old)) / max(old / new, 1), a=-0.5)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def area_rows(old: int, new: int) -> np.ndarray:
    """The mean of all old cells that a new one touches, so neighbours overlap where the sizes do not divide: torch's
    adaptive average pooling, and its interpolation by area."""
    first = np.arange(new)[:, None] * old
    touched = (np.arange(old) >= first // new) & (np.arange(old) < -((-first - old) // new))
    return (touched / touched.sum(1, keepdims=True)).astype(np.float32)


def linear_rows(old: int, at: np.ndarray) -> np.ndarray:
    """Two taps around each of `at` [new], which lie in [0, old - 1]."""
    return np.maximum(1 - np.abs(at[:, None] - np.arange(old)), 0).astype(np.float32)


def keys_cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 4: 0 from |x| = 2 on."""
    x = np.minimum(np.abs(x), 2)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x <= 1, near, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)
