"""The clip pack: 163 concepts of the emoji pack that move, as Microsoft animated them: eight frames of 32 x 32 pixels.

    pack().frames [N 8 32 32 3], pack().concept [N]
    ClipData() -> batches: clips uint8 [B 8 32 32 3], and a label of each kind

Held-out concepts are those of the emoji pack; of the others, a clip is for validation if hash("clip/" + code) < 0.1:

    train       neither held out nor for validation
    validation  for validation, concepts not held out: their drawings may be trained on, their motion is new
    concepts    held-out concepts

A clip repeats itself for ever, so it may begin anywhere; mirrored, most show the same. Fluent's drawings in the emoji
pack are by the same artist. Licences: `assets/NOTICE.md`. How it is made: `build_clip_pack.py`.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image

from mmjax.data import emoji, emoji_drawings, pipeline

ASSETS = Path(__file__).parent / "assets"
ATLAS, INDEX = ASSETS / "clips.webp", ASSETS / "clips.json"
FRAMES, SIZE = 8, 32
SPLITS = ("train", "validation", "concepts")


class Clips(NamedTuple):
    """N clips, in the order of the emoji pack; read-only."""

    frames: np.ndarray  # [N 8 32 32 3] uint8, on white
    concept: np.ndarray  # [N] int32, row of the emoji pack

    @property
    def names(self) -> list[str]:
        return [emoji.pack().names[n] for n in self.concept]

    def split(self, name: str) -> np.ndarray:
        """Rows [M] of a split."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r} of the clip pack; there are {', '.join(SPLITS)}")
        held_out = np.isin(self.concept, emoji.pack().split("concepts")[1])
        codes = [emoji.pack().concepts[n].code for n in self.concept]
        validation = np.array([emoji.fraction("clip", code) < emoji.SHARE for code in codes]) & ~held_out
        return np.flatnonzero({"train": ~held_out & ~validation, "validation": validation, "concepts": held_out}[name])


def to_atlas(frames: np.ndarray) -> np.ndarray:  # [N T s s 3] -> [N*s T*s 3]: a clip is a row
    return rearrange(frames, "n t h w c -> (n h) (t w) c")


@functools.cache
def pack() -> Clips:
    atlas = np.asarray(Image.open(ATLAS).convert("RGB"))
    frames = np.ascontiguousarray(rearrange(atlas, "(n h) (t w) c -> n t h w c", h=SIZE, t=FRAMES))
    number = {concept.code: n for n, concept in enumerate(emoji.pack().concepts)}
    found = Clips(frames, np.array([number[code] for code in json.loads(INDEX.read_text())], np.int32))
    for one in found:
        one.flags.writeable = False
    return found


@dataclasses.dataclass(frozen=True)
class ClipData:
    """Each clip of the training split once per epoch (see `pipeline.Data`)."""

    kinds: tuple[str, ...] = ("concept",)  # of labels: concept, subgroup or group, as in emoji_drawings.Labels
    frames: int = FRAMES  # T; fewer are taken at equal distances
    flip: bool = True  # mirror half of those that then mean the same

    def __post_init__(self):
        if self.frames < 1 or FRAMES % self.frames:
            raise ValueError(f"clips have {FRAMES} frames; frames must divide them, got {self.frames}")

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """`clips` uint8 [B T 32 32 3] and `label` int32 [B K]."""
        chosen = pack().split("train")
        frames, concept, label = pack().frames[chosen], pack().concept[chosen], self.label(pack().concept[chosen])
        may_flip = np.array([emoji.pack().concepts[n].may_flip for n in concept]) & self.flip

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            first, flip = rng.integers(FRAMES, size=len(indices))[rows], (rng.random(len(indices)) < 0.5)[rows]
            mine = indices[rows]
            found = frames[mine[:, None], (first[:, None] + self._times) % FRAMES]
            mirrored = flip & may_flip[mine]
            found[mirrored] = found[mirrored, :, :, ::-1]
            return {"clips": found, "label": label[mine]}

        return pipeline.Batches(len(chosen), batch_size, seed, rows, make)

    @property
    def _times(self) -> np.ndarray:  # [T]
        return np.arange(self.frames) * (FRAMES // self.frames)

    def clips(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All of a split, unchanged: uint8 [M T 32 32 3], and labels int32 [M K]."""
        chosen = pack().split(split)
        return pack().frames[chosen[:, None], self._times], self.label(pack().concept[chosen])

    def label(self, concept: np.ndarray) -> np.ndarray:  # [N] -> int32 [N K]
        # All are by one artist, so it tells nothing: none.
        labels = emoji_drawings.labels_of(np.full(len(concept), -1), concept)
        return np.stack([getattr(labels, kind) for kind in self.kinds], 1)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many labels each kind has: `counts` of nn.embeddings.Labels."""
        return tuple(emoji_drawings.counts()[kind] for kind in self.kinds)
