"""Zero-shot classification: a classifier made of words, for classes the model was never trained to tell apart.

The classes are the groups of `data.groups(split)`. Metrics of a split "twemoji" (chance, 1 / classes, beside each):
    twemoji/subgroup_accuracy           a class is the mean of the text embeddings of the names that belong to it
    twemoji/subgroup_label_accuracy     a class is the text embedding of its own label ("animal mammal")
    twemoji/subgroup_accuracy_majority  what answering the most frequent class every time would score
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from mmjax.evals import features
from mmjax.nn.outputs import Result
from mmjax.report import pictures

SHOWN, ANSWERS = 12, 3


def mean_of_members(names: np.ndarray, members: np.ndarray) -> np.ndarray:
    """names [C E], members [G C] bool -> [G E] of length 1: each class is the direction its members share."""
    return features.unit(members.astype(names.dtype) @ names)


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    split: str
    templates: tuple[str, ...] = ("{}",)  # sentences that a name or a label is put into

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        pairs, (groups, labels) = data.pairs(self.split), data.groups(self.split)
        present = np.unique(groups)  # classes without a picture here are no classes of this split
        groups, labels = np.searchsorted(present, groups), [labels[group] for group in present]
        members = np.zeros((len(labels), len(pairs.names)), bool)  # [G C]
        members[groups, pairs.labels] = True

        images = features.encode_images(model, variables, pairs.images)  # [N E]
        names = features.encode_names(model, variables, data.tokenize, pairs.names, self.templates)  # [C E]
        words = [label.replace("-", " ") for label in labels]
        by_members = images @ mean_of_members(names, members).T  # [N G]
        by_label = images @ features.encode_names(model, variables, data.tokenize, words, self.templates).T

        accuracy = f"{self.split}/subgroup_accuracy"
        metrics = features.accuracy_metrics(accuracy, by_members, groups)
        metrics |= features.accuracy_metrics(f"{self.split}/subgroup_label_accuracy", by_label, groups)
        metrics[f"{accuracy}_majority"] = float(np.bincount(groups).max() / len(groups))
        return Result(metrics, {f"{self.split} zero-shot": answers(pairs.images, by_members, groups, words)})


def answers(images: np.ndarray, scores: np.ndarray, groups: np.ndarray, words: list[str]) -> np.ndarray:
    """A picture of some images [N H W 3], each above its best classes of scores [N G]; the right one is marked."""
    tiles = []
    for image in features.spread(len(images), SHOWN):
        best = np.argsort(-scores[image], kind="stable")[:ANSWERS]
        tiles.append(pictures.Tile(images[image], [words[c] for c in best], [bool(c == groups[image]) for c in best]))
    return pictures.captioned(pictures.tiles(tiles), "Each image above its nearest classes; the right one ticked.")
