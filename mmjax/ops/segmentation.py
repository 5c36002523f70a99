"""Masks: losses of their logits, how much two of them share, the box around one, a pixel of one, their size.

[... h w] are pixels in rows from the top left; what stands before them broadcasts. Logits are above 0 inside; targets
and masks are bool, or float in [0, 1]. Computed in float32.

Sources: Lin et al. 2017, arXiv:1708.02002, eq. 5 (focal); Milletari et al. 2016, arXiv:1606.04797, eq. 3 (dice), here
with plain sums below and `smooth` above and below, as MaskFormer and those who train SAM have it.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.ops import images


def sigmoid_focal(
    logits: jax.Array, targets: jax.Array, alpha: float | None = 0.25, gamma: float = 2.0
) -> jax.Array:  # [...] twice -> [...], of each pixel
    """Cross entropy, less where the pixel is already right: alpha_t (1 - p_t)^gamma (-log p_t), where p_t is what the
    right answer is given, and alpha_t alpha inside and 1 - alpha outside (None: 1 everywhere)."""
    x, t = logits.astype(jnp.float32), targets.astype(jnp.float32)
    entropy = jax.nn.softplus(x) - x * t
    wrong = jax.nn.sigmoid(x) * (1 - t) + jax.nn.sigmoid(-x) * t  # 1 - p_t, without the digits that 1 - p loses
    value = entropy * wrong**gamma
    return value if alpha is None else value * (alpha * t + (1 - alpha) * (1 - t))


def dice(logits: jax.Array, targets: jax.Array, smooth: float = 1.0) -> jax.Array:
    """[... h w] twice -> [...] of each mask, in [0, 1)."""
    p, t = jax.nn.sigmoid(logits.astype(jnp.float32)), targets.astype(jnp.float32)
    both, all_ = (p * t).sum((-1, -2)), p.sum((-1, -2)) + t.sum((-1, -2))
    return 1 - (2 * both + smooth) / (all_ + smooth)


def iou(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """[... h w] bool twice -> [...] in [0, 1]; nothing found where nothing is wanted counts as right."""
    both, either = (x.sum((-1, -2), dtype=jnp.float32) for x in (found & wanted, found | wanted))
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


def box_around(masks: jax.Array) -> jax.Array:
    """[... h w] bool -> [... 4] float32 (x0, y0, x1, y1) in pixels, along their outer edges; zeros where empty."""
    edges = []
    for axis in (-2, -1):
        touched = masks.any(axis)
        count = touched.shape[-1]
        edges.append((jnp.argmax(touched, -1), count - jnp.argmax(touched[..., ::-1], -1)))
    (x0, x1), (y0, y1) = edges
    boxes = jnp.stack([x0, y0, x1, y1], -1) * masks.any((-1, -2))[..., None]
    return boxes.astype(jnp.float32)


def random_pixel(rng: jax.Array, masks: jax.Array) -> jax.Array:
    """[... h w] bool -> [... 2] int (x, y), of each mask a pixel at random; of an empty one the first."""
    width = masks.shape[-1]
    flat = rearrange(masks, "... h w -> ... (h w)")
    at = jax.random.categorical(rng, jnp.where(flat, 0.0, -1e30))
    return jnp.stack([at % width, at // width], -1)


def resize(logits: jax.Array, height: int, width: int) -> jax.Array:
    """[... h w] -> [... height width], linear between centres, no antialias: torch's bilinear."""
    shape = (*logits.shape[:-2], height, width)
    return logits if logits.shape == shape else jax.image.resize(logits, shape, "bilinear", antialias=False)


def to_picture(logits: jax.Array, height: int, width: int, size: int) -> jax.Array:
    """[... h w] of a square that `images.fit_longest_side` made -> [... height width] of the picture; `size` of the
    square. As segment_anything: to the square's pixels, without those that were padded, to the picture's pixels."""
    rows, columns = images.longest_side(height, width, size)
    return resize(resize(logits, size, size)[..., :rows, :columns], height, width)
