"""How well an object is cut out of a scene by who points at it, or puts a box around it.

A model is used through `encode_image`, `encode_prompts` and `decode` of models/sam.py and its config, data through
`scenes(split, count)` (data/scenes.py), whose masks are exact. Metrics of a split "twemoji", means over objects of the
intersection over union with the object, in pixels of the scene:

    twemoji/point_iou        by one point, the object's innermost (Kirillov et al. 2023, arXiv:2304.02643, section 7.1);
                             of three masks the one that the model takes for the best
    twemoji/point_best_iou   the best of the three: what a point means is not always clear
    twemoji/box_iou          by the exact box, as above

point_iou_chance is what all of the picture scores, and box_iou_chance the box, filled.

B scenes, n objects, h pixels along a side.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from einops import rearrange

from mmjax.evals import features
from mmjax.evals.segmentation import filled, iou
from mmjax.nn.outputs import Result
from mmjax.ops import segmentation
from mmjax.report import pictures
from mmjax.report.page import CHANCE

SHOWN = 8  # objects of the picture
AT_ONCE = 32  # scenes


def innermost(masks: np.ndarray) -> np.ndarray:
    """[... h w] bool -> [... 2] int (x, y): the pixel that is furthest from the edge, in steps along rows and columns;
    the first of several. The picture's own edge counts as one."""
    left = np.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(1, 1)] * 2)
    depth = np.zeros(left.shape, np.int32)
    while left.any():
        depth += left
        around = [np.roll(left, step, axis) for axis in (-1, -2) for step in (-1, 1)]
        left = np.logical_and.reduce([left, *around])
    at = rearrange(depth[..., 1:-1, 1:-1], "... h w -> ... (h w)").argmax(-1)
    return np.stack([at % masks.shape[-1], at // masks.shape[-1]], -1)


@partial(jax.jit, static_argnames=("model", "size"))
def _answers(model: Any, variables: dict, images: jax.Array, points: jax.Array, boxes: jax.Array, size: int):
    """images [B H H 3], points [B n 2], boxes [B n 4] -> (masks [B n 3 size size] bool, scores [B n 3]) of each."""
    embeds = model.apply(variables, images, method="encode_image")
    found = []
    for asked in ({"points": points[:, :, None]}, {"boxes": boxes}):
        sparse = model.apply(variables, **asked, method="encode_prompts")
        out = model.apply(variables, embeds, sparse, method="decode")
        found.append((segmentation.resize(out.pred_masks, size, size) > 0, out.iou_scores))
    return found


@dataclasses.dataclass(frozen=True)
class PromptedMasks:
    split: str
    count: int = 128  # scenes

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        scene = data.scenes(self.split, self.count)
        size, side = scene.images.shape[1], model.config.vision.image_size
        if size != side:
            raise ValueError(f"scenes must be as large as the model's pictures, {side} pixels, got {size}")
        at = innermost(scene.masks)
        parts = []
        for rows in np.array_split(np.arange(self.count), max(1, self.count // AT_ONCE)):
            asked = (scene.images[rows], at[rows].astype(np.float32), scene.boxes[rows] * side)
            parts.append(jax.tree.map(np.asarray, _answers(model, variables, *asked, size)))
        by_point, by_box = (
            tuple(np.concatenate(x) for x in zip(*part, strict=True)) for part in zip(*parts, strict=True)
        )
        boxes = np.stack([filled(box, size, size) for box in rearrange(scene.boxes, "b n x -> (b n) x")])
        scores = {
            "point_iou": iou(_trusted(*by_point), scene.masks),
            f"point_iou{CHANCE}": iou(np.ones_like(scene.masks), scene.masks),
            "point_best_iou": iou(by_point[0], scene.masks[:, :, None]).max(-1),
            "box_iou": iou(_trusted(*by_box), scene.masks),
            f"box_iou{CHANCE}": iou(boxes.reshape(scene.masks.shape), scene.masks),
        }
        metrics = {f"{self.split}/{name}": float(x[scene.present].mean()) for name, x in scores.items()}
        sheet = _sheet(scene, at, _trusted(*by_point), _trusted(*by_box))
        caption = "A point (red), the object, the mask by the point, the mask by the box."
        return Result(metrics, {f"{self.split} masks": pictures.captioned(sheet, caption)})


def _trusted(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[B n K h h], [B n K] -> [B n h h], of each the mask of the highest score."""
    return np.take_along_axis(masks, scores.argmax(-1)[..., None, None, None], 2)[:, :, 0]


def _sheet(scene: Any, at: np.ndarray, by_point: np.ndarray, by_box: np.ndarray) -> np.ndarray:
    rows, objects = np.argwhere(scene.present), []
    for b, n in rows[features.spread(len(rows), SHOWN)]:
        image = scene.images[b].copy()
        x, y = at[b, n]
        image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = (230, 30, 30)
        masks = (scene.masks[b, n], by_point[b, n], by_box[b, n])
        objects.append([image, *(np.repeat(np.uint8(255 * mask)[..., None], 3, -1) for mask in masks)])
    return pictures.contact_sheet(objects, ["point", "object", "by point", "by box"])
