"""Boxes: how much two of them share, three ways of writing them, which are none, and which say the same again.

A box is (x0, y0, x1, y1), left, top, right, bottom, with the origin in the top left corner; in [0, 1] or in pixels,
as long as two that meet have the same unit. Axes before the last broadcast: `iou(a, b)` compares box by box, and
`iou(a[:, None], b)` each of N with each of M. NumPy arrays are computed by NumPy, in their precision; all else by JAX.

iou and giou as torchvision's box_iou and generalized_box_iou, where those are numbers: two boxes without any area
share 0 here, and NaN there. Sources: Rezatofighi et al. 2019, arXiv:1902.09630 (giou).
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def _numbers(*arrays: Any) -> ModuleType:
    return np if all(isinstance(x, np.ndarray) for x in arrays) else jnp


# Three ways of writing a box, [... 4] each


def from_xywh(boxes: Array) -> Array:
    """(left, top, width, height), as COCO has it -> (x0, y0, x1, y1)."""
    return _numbers(boxes).concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_xywh(boxes: Array) -> Array:
    return _numbers(boxes).concatenate([boxes[..., :2], sides(boxes)], axis=-1)


def from_cxcywh(boxes: Array) -> Array:
    """(middle x, middle y, width, height), as DETR has it -> (x0, y0, x1, y1)."""
    half = boxes[..., 2:] / 2
    return _numbers(boxes).concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def to_cxcywh(boxes: Array) -> Array:
    return _numbers(boxes).concatenate([centre(boxes), sides(boxes)], axis=-1)


def sides(boxes: Array) -> Array:  # [... 4] -> [... 2] width and height, negative where reversed
    return boxes[..., 2:] - boxes[..., :2]


def centre(boxes: Array) -> Array:  # [... 4] -> [... 2]
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def area(boxes: Array) -> Array:  # [... 4] -> [...]
    width_height = sides(boxes)
    return width_height[..., 0] * width_height[..., 1]


def clip(boxes: Array, width: float = 1.0, height: float = 1.0) -> Array:
    """The part of each box that lies in the image; one that lies outside of it becomes a line or point of the edge."""
    xp = _numbers(boxes)
    return xp.clip(boxes, 0, xp.asarray([width, height, width, height], boxes.dtype))


# What two share


def overlap(a: Array, b: Array) -> Array:
    """[... 4] twice -> the area of both, [...]."""
    xp = _numbers(a, b)
    meet = xp.concatenate([xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    width_height = sides(meet)
    # Not maximum(., 0), whose gradient of 0 is half of torch's: boxes without width do occur.
    width_height = xp.where(width_height >= 0, width_height, 0)
    return width_height[..., 0] * width_height[..., 1]


def enclosing(a: Array, b: Array) -> Array:
    """The smallest box around both, [... 4]."""
    xp = _numbers(a, b)
    return xp.concatenate([xp.minimum(a[..., :2], b[..., :2]), xp.maximum(a[..., 2:], b[..., 2:])], axis=-1)


def iou(a: Array, b: Array) -> Array:
    """Intersection over union, [...] in [0, 1]."""
    both = overlap(a, b)
    return _ratio(both, area(a) + area(b) - both)


def giou(a: Array, b: Array) -> Array:
    """Generalised intersection over union, [...] in [-1, 1]: iou less the share of the enclosing box that neither
    covers, so that boxes that don't meet feel a pull too. Means nothing for reversed boxes: leave those out by `valid`.
    """
    both, around = overlap(a, b), area(enclosing(a, b))
    either = area(a) + area(b) - both
    return _ratio(both, either) - _ratio(around - either, around)


def contains(boxes: Array, points: Array) -> Array:
    """boxes [... 4], points [... 2] as (x, y) -> [...] bool; the edge belongs to the box."""
    xp = _numbers(boxes, points)
    return xp.all((points >= boxes[..., :2]) & (points <= boxes[..., 2:]), axis=-1)


def _ratio(a: Array, b: Array) -> Array:
    """0 where b is not positive. The inner `where` keeps the division's NaN out of the gradient."""
    xp = _numbers(a, b)
    return xp.where(b > 0, a / xp.where(b > 0, b, 1), 0)


# Which are none


def valid(boxes: Array) -> Array:
    """[... 4] -> [...] bool, False for reversed boxes; those without area, and those outside of an image, are valid."""
    return _numbers(boxes).all(sides(boxes) >= 0, axis=-1)


def check(boxes: Any, name: str = "boxes", width: float = 1.0, height: float = 1.0) -> np.ndarray:
    """On the host: `boxes` as float [... 4]. ValueError where one is reversed, outside of the image or no number."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} must be [... 4] with (x0, y0, x1, y1), got {list(boxes.shape)}")
    inside = (boxes >= 0).all(-1) & (boxes <= [width, height, width, height]).all(-1)
    for good, what, advice in (
        (np.isfinite(boxes).all(-1), "is not finite", "leave it out"),
        (valid(boxes), "is reversed", "a box is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1; see boxes.from_xywh"),
        (inside, f"is not within {width:g} x {height:g}", "divide pixels by the image's size, or cut by boxes.clip"),
    ):
        if not good.all():
            at = tuple(int(i) for i in np.argwhere(~good)[0])
            values = ", ".join(f"{x:g}" for x in boxes[at])
            raise ValueError(f"{name}{list(at) or ''} ({values}) {what}; {advice}")
    return boxes


# Which say the same again


def nms(boxes: jax.Array, scores: jax.Array, threshold: float, mask: jax.Array | None = None) -> jax.Array:
    """Non-maximum suppression: boxes [N 4], scores [N] -> [N] bool, those to keep.

    From the highest score down, a box is kept unless its iou with one that was kept is above `threshold`. Of equal
    scores the first wins. mask [N] bool: False for rows that hold no box.
    """
    if not scores.size:
        return jnp.zeros(0, bool)
    order = jnp.argsort(-scores, stable=True)
    ranked = boxes[order]
    counts = jnp.ones(scores.shape, bool) if mask is None else mask[order]
    doubles = iou(ranked[:, None], ranked) > threshold  # [N N]

    def body(i: int, kept: jax.Array) -> jax.Array:
        before = jnp.arange(kept.size) < i
        return kept.at[i].set(counts[i] & ~jnp.any(kept & before & doubles[i]))

    kept = jax.lax.fori_loop(0, scores.size, body, jnp.zeros(scores.shape, bool))
    return jnp.zeros(scores.shape, bool).at[order].set(kept)
