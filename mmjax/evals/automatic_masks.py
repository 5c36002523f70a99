"""Everything in a picture: a grid of points asks for three masks each, and those stay that the model is sure of.

Source: Kirillov et al. 2023, arXiv:2304.02643, appendix B; facebookresearch/segment-anything,
automatic_mask_generator.py, whose numbers these are, without its crops and its clean-up of small regions.

A model is used through `encode_image`, `encode_prompts` and `decode` of models/sam.py, and its config.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from mmjax.evals import features
from mmjax.nn.outputs import Answer, Request
from mmjax.ops import boxes as box_ops
from mmjax.ops import images as image_ops
from mmjax.ops import segmentation
from mmjax.report import pictures

SHOWN = 6  # pictures of a split


class Found(NamedTuple):
    """M masks of a picture of H x W pixels, the surest first."""

    masks: np.ndarray  # [M H W] bool
    boxes: np.ndarray  # [M 4] int (x0, y0, x1, y1), the first and the last pixel
    scores: np.ndarray  # [M] predicted IoU
    stability: np.ndarray  # [M] IoU of the mask cut a little higher and a little lower
    points: np.ndarray  # [M 2] (x, y) in pixels of the picture, who asked


def point_grid(side: int) -> np.ndarray:
    """[side * side, 2] (x, y) in [0, 1], row by row."""
    middles = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)


@partial(jax.jit, static_argnames=("model", "size"))
def _answers(model: Any, variables: dict, image: jax.Array, points: jax.Array, size: tuple[int, int], offset: float):
    """image [1 S S C], points [N 2] of the square -> masks [3N H W] bool, boxes [3N 4], scores and stability [3N]."""
    sparse = model.apply(variables, points[None, :, None], method="encode_prompts")
    out = model.apply(variables, image, sparse, method="decode")
    logits = rearrange(out.pred_masks, "1 n k h w -> (n k) h w")
    logits = segmentation.to_picture(logits, *size, model.config.vision.image_size)
    sure, maybe = ((logits > cut).sum((-1, -2), dtype=jnp.float32) for cut in (offset, -offset))
    masks = logits > 0
    edges = segmentation.box_around(masks) - jnp.array([0, 0, 1, 1]) * masks.any((-1, -2))[:, None]
    return masks, edges, rearrange(out.iou_scores, "1 n k -> (n k)"), sure / maybe


@dataclasses.dataclass(frozen=True)
class AutomaticMasks:
    side: int = 32  # points along a side of the picture
    at_once: int = 64  # points
    iou: float = 0.88  # what the model must predict, or more
    stability: float = 0.95
    offset: float = 1.0  # how far the cut is moved, in logits
    overlap: float = 0.7  # of boxes, above which the surer one of two masks stays

    def __call__(self, model: Any, variables: dict, image: Any) -> Found:
        """image: PIL, or uint8 [H W 3]."""
        c = model.config
        height, width = np.asarray(image).shape[:2]
        fitted = image_ops.fit_longest_side(image, c.vision.image_size, c.image_mean, c.image_std)
        embeds = features.encode(model, variables, {"images": fitted[None]}, "encode_image")
        rows, columns = image_ops.longest_side(height, width, c.vision.image_size)
        asked = point_grid(self.side)
        kept: list[tuple[np.ndarray, ...]] = []
        for first in range(0, len(asked), self.at_once):
            points = asked[first : first + self.at_once]
            filled = np.resize(points, (min(self.at_once, len(asked)), 2))  # the last ones too: one compile
            found = _answers(model, variables, embeds, filled * [columns, rows], (height, width), self.offset)
            found = tuple(np.asarray(x)[: 3 * len(points)] for x in found)
            sure = (found[2] > self.iou) & (found[3] >= self.stability)
            kept.append((*(x[sure] for x in found), repeat(points * [width, height], "n x -> (n 3) x")[sure]))
        masks, edges, scores, stability, points = (np.concatenate(x) for x in zip(*kept, strict=True))
        order = np.argsort(-scores, kind="stable")
        order = order[np.asarray(box_ops.nms(jnp.asarray(edges[order]), jnp.asarray(scores[order]), self.overlap))]
        return Found(masks[order], edges[order].astype(int), scores[order], stability[order], points[order])


def coloured(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """[H W 3] uint8, [M H W] bool -> [H W 3], small masks on top of large ones."""
    canvas = image.astype(np.float32)
    for n, m in enumerate(sorted(range(len(masks)), key=lambda m: -masks[m].sum())):
        colour = np.float32(pictures.CATEGORIES[n % len(pictures.CATEGORIES)])
        canvas[masks[m]] = 0.35 * canvas[masks[m]] + 0.65 * colour
    return canvas.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Everything:
    """An Experiment's `sample`: all masks of a person's pictures, or of scenes of a split."""

    split: str
    finder: AutomaticMasks = AutomaticMasks(side=8, iou=0.7, stability=0.8)

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if request.texts:
            raise ValueError("this model knows no words: ask with --image FILE, or with nothing for scenes of the data")
        images = request.images or tuple(data.scenes(self.split, SHOWN).images)
        lines, sheets = [], {}
        for n, image in enumerate(images):
            found = self.finder(model, variables, image)
            scores = ", ".join(f"{x:.2f}" for x in found.scores[:8])
            lines.append(f"picture {n + 1}: {len(found.scores)} masks, of predicted IoU {scores or '-'}")
            sheets[f"masks_{n + 1}"] = np.concatenate([image, coloured(image, found.masks)], 1)
        return Answer("\n".join(lines), sheets)
