"""Image-text retrieval: which of all names belongs to a picture, and which of all pictures to a name.

Metrics of a split "twemoji" (chance beside each as "..._chance"):
    twemoji/R@10                  share of images whose name is among the 10 nearest of ALL names of the split
    twemoji/median_rank           median place of the right name, 1 = nearest
    twemoji/text_to_image_R@10    share of names with one of their images among the 10 nearest images
    twemoji/text_to_image_median_rank
Places are counted against the model: see features.ranks.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from mmjax.evals import features
from mmjax.nn.outputs import Result
from mmjax.report import pictures

QUERIES, SHOWN, SQUARE = 12, 6, 16  # names and images of the gallery; side of the similarity matrix


@dataclasses.dataclass(frozen=True)
class Retrieval:
    split: str
    templates: tuple[str, ...] = ("{}",)  # a name is the mean of the sentences it is put into
    within: tuple[int, ...] = (10, 1, 5)  # the k of R@k, the one to look at first in front

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        pairs = data.pairs(self.split)
        images = features.encode_images(model, variables, pairs.images)  # [N E]
        names = features.encode_names(model, variables, data.tokenize, pairs.names, self.templates)  # [C E]
        scores = images @ names.T  # [N C]
        right = features.one_hot(pairs.labels, len(pairs.names))
        asked = right.any(axis=0)  # names without a picture stay wrong answers, but nobody asks for them

        metrics = features.ranking_metrics(f"{self.split}/", scores, right, self.within)
        to_image = f"{self.split}/text_to_image_"
        metrics |= features.ranking_metrics(to_image, scores.T[asked], right.T[asked], self.within)
        metrics |= {f"{self.split}/images": float(len(scores)), f"{self.split}/names": float(len(pairs.names))}
        return Result(metrics, self._pictures(pairs, scores, right, np.flatnonzero(asked)))

    def _pictures(self, pairs: Any, scores: np.ndarray, right: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for name in asked[features.spread(len(asked), QUERIES)]:
            nearest = np.argsort(-scores[:, name], kind="stable")[:SHOWN]
            rows.append(pictures.Row(pairs.names[name], pairs.images[nearest], right[nearest, name]))
        gallery = pictures.captioned(pictures.gallery(rows), "Each name above its nearest images; right ones ticked.")

        chosen = asked[features.spread(len(asked), SQUARE)]
        first = right[:, chosen].argmax(axis=0)  # one image of each chosen name
        names = [pairs.names[name] for name in chosen]
        matrix = pictures.matrix(scores[np.ix_(first, chosen)], pairs.images[first], names)
        caption = "Cosine of each image with each name; right answers on the diagonal, each row's best ringed."
        return {f"{self.split} gallery": gallery, f"{self.split} similarity": pictures.captioned(matrix, caption)}
