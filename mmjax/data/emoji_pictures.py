"""The emoji pack for networks that make pictures: each drawing as it is, on white, and what it is of.

    drawing -> images [B s s 3], label [B K]

Each drawing of the training split comes once per epoch, moved by a pixel at most and mirrored where that means the
same. In validation are drawings of concepts that other artists drew for training, by artists who drew others: pairs
that were never seen of things that were. Splits are those of `emoji`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mmjax.data import emoji, emoji_drawings, pipeline

SUBJECT = ("subgroup", "group", "artist")
NAME = ("concept", "artist")


@functools.cache
def _drawings(split: str, size: int) -> tuple[np.ndarray, emoji_drawings.Labels]:
    """At `size` pixels, or at those of the pack where it has fewer."""
    images, labels = emoji_drawings.drawings(split, min(size, emoji.SIZE))
    images.flags.writeable = False
    return images, labels


def _enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """[B S S 3] -> [B size size 3], each pixel repeated; size is a multiple of S."""
    times, rest = divmod(size, images.shape[1])
    if rest:
        raise ValueError(
            f"pictures of {images.shape[1]} pixels grow only to a multiple of these, got image_size={size}"
        )
    return images if times == 1 else images.repeat(times, axis=1).repeat(times, axis=2)


@functools.cache
def names(length: int) -> dict[str, np.ndarray]:
    """All concepts' names as rows of the emoji vocabulary: input_ids int32 and attention_mask bool [C length]."""
    return emoji.tokenizer().rows(emoji.pack().names, length)


@dataclasses.dataclass(frozen=True)
class EmojiPictures:
    kinds: tuple[str, ...] = SUBJECT  # of labels, fields of emoji_drawings.Labels
    image_size: int = 32  # s
    shift: int = 1  # pixels, each way

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """`images` uint8 [B s s 3] and `label` int32 [B K]."""
        images, labels = _drawings("train", self.image_size)
        may_flip = np.array([emoji.pack().concepts[n].may_flip for n in labels.concept])

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            flip, shifts = rng.random(len(indices)) < 0.5, rng.integers(-self.shift, self.shift + 1, (len(indices), 2))
            mine, flip, shifts = indices[rows], flip[rows], shifts[rows]
            found = moved(_enlarged(images[mine], self.image_size), shifts)
            mirrored = flip & may_flip[mine]
            found[mirrored] = found[mirrored, :, ::-1]
            return {"images": found, "label": self.label(labels.take(mine))}

        return pipeline.Batches(len(images), batch_size, seed, rows, make)

    def label(self, labels: emoji_drawings.Labels) -> np.ndarray:
        """int32 [N K]; -1, none, for an artist that nobody learns from."""
        counts = self.counts
        columns = [getattr(labels, kind) for kind in self.kinds]
        return np.stack([np.where(x < n, x, -1) for x, n in zip(columns, counts, strict=True)], 1).astype(np.int32)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many labels each kind has: `counts` of nn.embeddings.Labels."""
        return tuple(emoji_drawings.counts()[kind] for kind in self.kinds)

    def drawings(self, split: str) -> tuple[np.ndarray, emoji_drawings.Labels]:
        """All of a split: uint8 [N s s 3], and what they are of."""
        images, labels = _drawings(split, self.image_size)
        return _enlarged(images, self.image_size), labels

    def pairs(self, split: str) -> pipeline.Pairs:
        return emoji.EmojiData(self.image_size).pairs(split)

    def groups(self, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return emoji.EmojiData(self.image_size).groups(split)

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return emoji.EmojiData(self.image_size).tokenize(texts)


def moved(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """uint8 [B s s 3] and shifts [B 2], pixels down and right -> the same pictures, moved; what comes in is white."""
    most, size = int(np.abs(shifts).max(initial=0)), images.shape[1]
    wide = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=255)
    rows, columns = (most - shifts[:, i, None] + np.arange(size) for i in (0, 1))  # [B s]
    return wide[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
