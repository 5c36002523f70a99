"""The emoji pack for learning without labels: several views of each drawing, and what the evals read.

    drawing on random backgrounds [V S S 3] -multicrop-> global_crops [2 s s 3], local_crops [n s s 3], masks [2 N]

Views of a drawing lie on backgrounds of their own. On a shared one, its colour is what they have in common most
clearly: the student then learns to tell backgrounds, and little else.

Splits, labels and the held-out artist are those of `emoji`. Each drawing of the training split comes once per epoch.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from einops import rearrange

from mmjax.data import augment, emoji, masking, multicrop, pipeline, scenes

# Colours are changed view by view, not before.
PLACED = augment.Augment(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


@dataclasses.dataclass(frozen=True)
class EmojiViews:
    crops: multicrop.MultiCrop
    masks: masking.BlockMasks | None = None  # of the global views, for DINOv2
    side: int = 64  # S, of the picture that views are cut from
    placing: augment.Augment = PLACED  # of the drawing on the picture
    shared_background: bool = False  # whether all views of a drawing are cut from one picture
    objects: tuple[int, int] = (1, 3)  # fewest and most of the scenes that evals read
    scene_size: int | None = None  # pixels along a side of those; None: as global views
    share: float = 1.0  # of the concepts that are learned from

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """`global_crops` uint8 [B 2 s s 3], `local_crops` uint8 [B n s s 3] and, where hidden, `masks` bool [B 2 N]."""
        artists, concepts = (rows[self._mine] for rows in emoji.pack().split("train"))

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            placed = augment.draw(self.placing, len(indices), rng)._replace(flip=np.zeros(len(indices), bool))
            paints, mix = self._backgrounds(len(indices), rng)
            views = multicrop.draw(self.crops, len(indices), self.side, rng)
            masks = {} if self.masks is None else {"masks": self.masks.draw(len(indices), rng)[rows]}
            cutouts = emoji.cutouts(artists[indices[rows]], concepts[indices[rows]])
            pictures = augment.render_on(cutouts, augment.take(placed, rows), paints[rows], mix[rows], self.side)
            pictures = pictures[:, 0] if self.shared_background else pictures
            return multicrop.render(pictures, multicrop.take(views, rows), self.crops) | masks

        return pipeline.Batches(len(concepts), batch_size, seed, rows, make)

    def _backgrounds(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Colours [count V 2 3] and blends [count V K K]; V is 1 where all views share."""
        views = 1 if self.shared_background else self.crops.views
        paints, mix = augment.backgrounds(self.placing, count * views, rng)
        return tuple(rearrange(x, "(b v) ... -> b v ...", v=views) for x in (paints, mix))

    def pairs(self, split: str) -> pipeline.Pairs:
        return self._captioned.pairs(split)

    def groups(self, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return self._captioned.groups(split)

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return self._captioned.tokenize(texts)

    def scenes(self, split: str, count: int) -> scenes.Scene:
        """`count` scenes of the split's drawings, the same at every call."""
        composer = scenes.Composer(self.scene_size or self.crops.global_size, self.objects)
        return scenes.EmojiScenes(composer).scenes(split, count)

    @property
    def _mine(self) -> np.ndarray:  # [M] bool, of the training split
        return emoji.among(emoji.pack().split("train")[1], self.share)

    @property
    def _captioned(self) -> emoji.EmojiData:
        return emoji.EmojiData(self.crops.global_size)
