"""A map of the image embeddings: the plane of most variance, each image drawn where it lies, coloured by its group.

Metric: twemoji/map_variance, the share of the variance that the plane holds (what the picture can't show is the rest).
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from mmjax.evals import features
from mmjax.nn.outputs import Result
from mmjax.report import pictures

COLOURED = 8  # the largest groups get a colour, the rest is grey


def principal(x: np.ndarray, count: int = 2) -> tuple[np.ndarray, float]:
    """x [N E] -> coordinates [N count] on the first principal components, and their share of the variance (0 where
    there is none)."""
    centred = x - x.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    # An axis and its opposite are equally principal; the heavier tail to the right makes the map reproducible.
    axes = axes[:count] * np.where(((centred @ axes[:count].T) ** 3).sum(axis=0) < 0, -1, 1)[:, None]
    return centred @ axes.T, float((scale[:count] ** 2).sum() / max((scale**2).sum(), 1e-30))


@dataclasses.dataclass(frozen=True)
class EmbeddingMap:
    split: str

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        [(embeds, groups)], labels = features.grouped_images(model, variables, data, (self.split,))
        points, share = principal(embeds)
        families = [label.split("-")[0] for label in labels]  # "animal-mammal" and "animal-bird" share a colour
        picture = pictures.scatter(points, data.pairs(self.split).images, [families[g] for g in groups], COLOURED)
        caption = f"The two directions of most variance ({share:.0%}); frames tell the group, dots are images hidden."
        return Result(
            {f"{self.split}/map_variance": share}, {f"{self.split} map": pictures.captioned(picture, caption)}
        )
