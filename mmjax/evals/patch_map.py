"""Patches in the colours of their principal components: what looks alike to the model looks alike in the picture.

Source: Oquab et al. 2023, arXiv:2304.07193, section 7.5 and figure 1: components of the patches of several pictures
together; the first one tells objects from the ground, the next three colour the patches of objects.

A model is used through `encode_patches` [B h w 3] -> [B N D], data through `scenes(split, count)` (data/scenes.py).
Metric: twemoji/patch_variance, the share of the variance that three components hold.

B scenes, N patches, D width.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from einops import rearrange

from mmjax.evals import features
from mmjax.evals.embedding_map import principal
from mmjax.evals.segmentation import square_side
from mmjax.nn.outputs import Result
from mmjax.report import pictures

SHOWN = 8  # scenes of the picture
EDGE = 2.0  # percent of the values on either side that are drawn as the darkest and the brightest


def colours(patches: np.ndarray) -> tuple[np.ndarray, float]:
    """patches [M D] -> RGB [M 3] uint8 of the first three components, and their share of the variance."""
    if len(patches) < 4:
        raise ValueError(f"three components need four patches or more, got {len(patches)}")
    points, share = principal(patches, 3)
    low, high = np.percentile(points, (EDGE, 100 - EDGE), axis=0)
    shade = np.clip((points - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (255 * shade + 0.5).astype(np.uint8), share


def objects(patches: np.ndarray) -> np.ndarray:
    """patches [M D] -> [M] bool: which side of the first component's mean holds fewer. Figure 1 of the paper sets the
    border by hand."""
    first = principal(patches, 1)[0][:, 0] > 0
    return first if first.mean() <= 0.5 else ~first


@dataclasses.dataclass(frozen=True)
class PatchMap:
    split: str
    count: int = 128  # scenes that the components are of

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        images = data.scenes(self.split, self.count).images
        patches = features.encode(model, variables, {"images": images}, "encode_patches")
        flat = rearrange(patches, "b n d -> (b n) d")
        everything, share = colours(flat)
        front = objects(flat)
        alone = np.full_like(everything, 255)
        if front.sum() > 3:  # a model that has collapsed tells no patch from another
            alone[front] = colours(flat[front])[0]
        shown = features.spread(len(images), SHOWN)
        side = square_side(patches.shape[1])
        rows = [rearrange(x, "(b h w) c -> b h w c", h=side, w=side)[shown] for x in (everything, alone)]
        sheet = pictures.contact_sheet([images[shown], *rows], [""] * len(shown))
        caption = f"Three components of all patches ({share:.0%} of the variance); below, of objects."
        return Result(
            {f"{self.split}/patch_variance": share},
            {f"{self.split} patch colours": pictures.captioned(sheet, caption)},
        )
