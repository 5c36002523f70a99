"""k nearest neighbours on frozen image features: how far do neighbours in the embedding share their group?

Weighted vote of Wu et al. 2018, arXiv:1805.01978, section 3.4, as DINO reports it: a neighbour of cosine s votes
exp(s / temperature). Metrics of a split "twemoji", chance beside each:

    KNN       twemoji/knn_subgroup_accuracy
    Nearest   twemoji/concept_R@1, whether the nearest drawing of the training artists shows the same concept, and
              twemoji/concept_median_rank, the place of the first that does

N test images, M training images, E width, G groups.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from mmjax.evals import features
from mmjax.nn.outputs import Result


def votes(
    test: np.ndarray, train: np.ndarray, groups: np.ndarray, classes: int, k: int, temperature: float
) -> np.ndarray:
    """test [N E], train [M E] of length 1, groups [M] -> [N G] votes. Where k is more than M, all M vote. A test row of
    NaN gets NaN, which `features.ranks` counts as wrong."""
    if k < 1:
        raise ValueError(f"k must be at least 1 neighbour, got {k}")
    cosine = test @ train.T  # [N M]
    nearest = np.argpartition(-cosine, min(k, len(train)) - 1, axis=1)[:, :k]  # in no order
    near = np.take_along_axis(cosine, nearest, axis=1)  # [N k]
    weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)  # at most 1, so it never overflows
    return np.einsum("nk,nkg->ng", weight, features.one_hot(groups[nearest].ravel(), classes).reshape(*near.shape, -1))


@dataclasses.dataclass(frozen=True)
class KNN:
    split: str
    train: str = "train"  # the split whose features are searched
    k: int = 20
    temperature: float = 0.07

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        splits, labels = features.grouped_images(model, variables, data, (self.train, self.split))
        (train, train_groups), (test, groups) = splits
        scores = votes(test, train, train_groups, len(labels), self.k, self.temperature)
        return Result(features.accuracy_metrics(f"{self.split}/knn_subgroup_accuracy", scores, groups))


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Which drawing of the training split is nearest; concepts that it does not have are not asked for."""

    split: str
    train: str = "train"

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        train, test = data.pairs(self.train), data.pairs(self.split)
        asked = np.flatnonzero(np.isin(test.labels, train.labels))
        if not len(asked):
            raise ValueError(f"no concept of {self.split!r} is in {self.train!r}: there is nothing to find")
        x, y = (features.encode_images(model, variables, one.images) for one in (train, test))
        right = test.labels[asked, None] == train.labels
        return Result(features.ranking_metrics(f"{self.split}/concept_", y[asked] @ x.T, right, (1,)))
