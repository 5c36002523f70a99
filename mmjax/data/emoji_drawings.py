"""The emoji pack as pictures with labels: what each drawing is of, and who drew it. On white, for what makes pictures
and for what judges them.

    Labeled    drawing -> images [B s s 3], and a label of each kind [B]
    Twins      two artists' drawings of one concept -> images [B 2 s s 3], concept [B]

Splits are those of `emoji`; each drawing, or each concept, of the training split comes once per epoch.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from mmjax.data import augment, emoji, pipeline

# On white, and hardly changed: what is learned from it shall tell a clean drawing from one that is not.
NEAT = augment.Augment(
    scale=(0.85, 1.05), shift=0.06, rotation=5.0, brightness=0.04, contrast=0.1, saturation=0.15, hue=0.02,
    backgrounds=(1.0, 0.0, 0.0, 0.0),
)  # fmt: skip
# On white, moved and recoloured: two views have only the thing in common.
LOOSE = augment.Augment(
    scale=(0.7, 1.1), shift=0.12, rotation=15.0, brightness=0.12, contrast=0.25, saturation=0.4, hue=0.06,
    backgrounds=(1.0, 0.0, 0.0, 0.0),
)  # fmt: skip


class Labels(NamedTuple):
    """What a drawing is of: int32 [N] each.."""

    group: np.ndarray  # 8
    subgroup: np.ndarray  # 95
    artist: np.ndarray  # row of emoji.ARTISTS; the held-out one is the last
    concept: np.ndarray  # row of the pack

    def take(self, rows: np.ndarray | slice) -> "Labels":
        return Labels(*(one[rows] for one in self))


def counts() -> dict[str, int]:
    """How many labels of each kind there are; of artists, those that are learned from."""
    pack = emoji.pack()
    sizes = (len(pack.groups), len(pack.subgroups), len(emoji.TRAINING_ARTISTS), len(pack.concepts))
    return dict(zip(Labels._fields, sizes, strict=True))


def labels_of(artists: np.ndarray, concepts: np.ndarray) -> Labels:
    """Rows of emoji.ARTISTS and of the pack [N]."""
    pack = emoji.pack()
    groups, subgroups = ({name: i for i, name in enumerate(names)} for names in (pack.groups, pack.subgroups))
    found = [(groups[pack.concepts[n].group], subgroups[pack.concepts[n].subgroup]) for n in concepts]
    group, subgroup = np.array(found, np.int32).reshape(-1, 2).T
    return Labels(group, subgroup, artists.astype(np.int32), concepts.astype(np.int32))


@functools.cache
def drawings(split: str, size: int) -> tuple[np.ndarray, Labels]:
    """All of a split on white: uint8 [N size size 3], read-only."""
    artists, concepts = emoji.pack().split(split)
    images = augment.plain(emoji.resize(emoji.cutouts(artists, concepts), size), size)
    images.flags.writeable = False
    return images, labels_of(artists, concepts)


@dataclasses.dataclass(frozen=True)
class Labeled:
    image_size: int = 32  # pixels
    augmentation: augment.Augment = NEAT

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """`images` uint8 [B s s 3], and int32 [B] of each kind of Labels."""
        artists, concepts = emoji.pack().split("train")
        labels = labels_of(artists, concepts)

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            draws = augment.take(augment.draw(self.augmentation, len(indices), rng), rows)
            mine = indices[rows]
            images = rendered(artists[mine], concepts[mine], draws, self.image_size)
            return {"images": images, **labels.take(mine)._asdict()}

        return pipeline.Batches(len(concepts), batch_size, seed, rows, make)

    def drawings(self, split: str) -> tuple[np.ndarray, Labels]:
        return drawings(split, self.image_size)

    def pairs(self, split: str) -> pipeline.Pairs:
        images, labels = self.drawings(split)
        names = emoji.pack().names
        return pipeline.Pairs(images, [names[n] for n in labels.concept], labels.concept, names)

    def groups(self, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return self.drawings(split)[1].subgroup, emoji.pack().subgroups

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return emoji.EmojiData(self.image_size).tokenize(texts)


@dataclasses.dataclass(frozen=True)
class Twins(Labeled):
    """No label but that two drawings show the same."""

    augmentation: augment.Augment = LOOSE

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """`images` uint8 [B 2 s s 3], never twice by one artist, and `concept` int32 [B]."""
        artists, concepts = emoji.pack().split("train")  # ordered by concept
        trained, first, count = np.unique(concepts, return_index=True, return_counts=True)
        drawn = count > 1  # by one artist alone: no pair
        trained, first, count = trained[drawn], first[drawn], count[drawn]

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            one = (rng.random(len(indices)) * count[indices]).astype(int)
            other = (rng.random(len(indices)) * (count[indices] - 1)).astype(int)
            other += other >= one  # of those that are left
            draws = augment.draw(self.augmentation, 2 * len(indices), rng)
            both = np.stack([one, other], 1) + first[indices, None]  # [B 2] rows of the split
            both, mine = both[rows].ravel(), np.arange(2 * len(indices)).reshape(-1, 2)[rows].ravel()
            images = rendered(artists[both], concepts[both], augment.take(draws, mine), self.image_size)
            images = rearrange(images, "(b v) h w c -> b v h w c", v=2)
            return {"images": images, "concept": trained[indices[rows]].astype(np.int32)}

        return pipeline.Batches(len(trained), batch_size, seed, rows, make)


def rendered(artists: np.ndarray, concepts: np.ndarray, draws: augment.Draw, size: int) -> np.ndarray:
    """uint8 [M size size 3]; mirrored only where that means the same."""
    may_flip = np.array([emoji.pack().concepts[n].may_flip for n in concepts])
    return augment.render(emoji.cutouts(artists, concepts), draws, size, may_flip)
