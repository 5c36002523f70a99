"""The spoken pack: 334 one-word names of the emoji pack in three voices, 8 kHz, synthesised by eSpeak NG.

    pack().waves [N S], pack().concept [N], pack().voice [N]       N = 1,002 recordings, ordered by voice, then concept
    SpokenData() -> batches: waves [B S], lengths, and a label of each kind

The voices are a man's and a woman's from the United States, and a Scottish woman's, which is held out everywhere.
Held-out concepts are those of the emoji pack, so that what was never seen was never heard:

    train           the two training voices, concepts not held out
    concepts        the two training voices, held-out concepts: words that were never heard
    voice           the held-out voice, concepts not held out: words that were heard, by someone who was not
    voice_concepts  the held-out voice, held-out concepts

`SpokenData(small=True)` keeps to a small vocabulary: 100 animals, plants and dishes, and seven held-out ones.

File: xz of the length of a header (4 bytes, little), the header (JSON: codes, small, lengths), and int8 rows. Each
recording is a lapped cosine transform (MDCT, Princen and Bradley 1987) under a sine window, whose numbers are rounded
after a power that spares small ones. So nothing but NumPy reads it: 1.6 MB with an error of -29 dB, where Opus takes 3
for about the same, mu-law 3.4 and FLAC 6.6. Licences: `assets/NOTICE.md`. How it is made: `build_spoken_pack.py`.
"""

import dataclasses
import functools
import json
import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.data import emoji, emoji_drawings, pipeline

ASSET = Path(__file__).parent / "assets" / "spoken.xz"
RATE = 8_000  # Hz
VOICES = ("man", "woman", "scot")
ESPEAK = ("en-us", "en-us+f3", "en-gb-scotland+f4")  # their names in eSpeak NG
TRAINING_VOICES, HELD_OUT = VOICES[:2], VOICES[2]
SPLITS = ("train", "concepts", "voice", "voice_concepts")

HOP, STEP, POWER = 128, 0.01, 0.75  # samples a row; a coefficient x is round((|x| / STEP) ** POWER), with its sign


class Recordings(NamedTuple):
    """N recordings; read-only."""

    waves: np.ndarray  # [N S] float32 in [-1, 1], zeros after each end
    lengths: np.ndarray  # [N] int32, samples
    concept: np.ndarray  # [N] int32, row of the emoji pack
    voice: np.ndarray  # [N] int32, row of VOICES
    small: np.ndarray  # [N] bool: of the small vocabulary

    @property
    def words(self) -> list[str]:
        return [emoji.pack().names[n] for n in self.concept]

    def take(self, rows: np.ndarray | slice) -> "Recordings":
        return Recordings(*(one[rows] for one in self))

    def split(self, name: str) -> np.ndarray:
        """Rows [M] of a split."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r} of the spoken pack; there are {', '.join(SPLITS)}")
        new_voice = self.voice == VOICES.index(HELD_OUT)
        new_concept = np.isin(self.concept, emoji.pack().split("concepts")[1])
        return np.flatnonzero((new_voice == name.startswith("voice")) & (new_concept == name.endswith("concepts")))


@functools.cache
def pack() -> Recordings:
    return read(ASSET)


def basis() -> np.ndarray:  # [2 HOP, HOP]; its overlapping rows and columns are orthonormal
    n, k = np.arange(2 * HOP)[:, None] + 0.5, np.arange(HOP) + 0.5
    return np.sin(np.pi * n / (2 * HOP)) * np.cos(np.pi / HOP * (n + HOP / 2) * k) * np.sqrt(2 / HOP)


def hops(length: int) -> int:
    """Rows of a recording: one more than its samples fill, since each sample lies under two."""
    return -(-length // HOP) + 1


def read(path: Path) -> Recordings:
    data = lzma.decompress(path.read_bytes())
    start = 4 + int.from_bytes(data[:4], "little")
    head = json.loads(data[4:start])
    lengths = np.array(head["lengths"], np.int32)
    rows = np.array([hops(n) for n in lengths])
    found = np.frombuffer(data, np.int8, offset=start).reshape(-1, HOP).astype(np.float32)
    values = np.sign(found) * np.abs(found) ** np.float32(1 / POWER) * np.float32(STEP)
    halves = (values @ basis().T.astype(np.float32)).reshape(-1, 2, HOP)
    waves = np.zeros((len(lengths), (rows.max() - 1) * HOP), np.float32)
    for wave, first, count, length in zip(waves, np.cumsum(rows) - rows, rows, lengths, strict=True):
        mine = halves[first : first + count]
        # What overlaps: the second half of each row with the first of the next. The ends' other halves are padding.
        wave[:length] = (mine[:-1, 1] + mine[1:, 0]).ravel()[:length]
    number = {concept.code: n for n, concept in enumerate(emoji.pack().concepts)}
    concept = np.array([number[code] for code in head["codes"]], np.int32)
    voices, words = len(lengths) // len(concept), len(concept)
    found = Recordings(
        waves, lengths, np.tile(concept, voices), np.repeat(np.arange(voices, dtype=np.int32), words),
        np.tile(np.array(head["small"], bool), voices),
    )  # fmt: skip
    for one in found:
        one.flags.writeable = False
    return found


class Augment(NamedTuple):
    """How far a recording may wander."""

    gain: float = 6.0  # decibels, each way
    noise: float = 0.005  # the largest deviation of added white noise
    early: float = 0.0  # seconds of silence before it at least; the rest of the row's silence is shared at random


@dataclasses.dataclass(frozen=True)
class SpokenData:
    """Each recording of the training split once per epoch (see `pipeline.Data`)."""

    seconds: float = 1.0  # of a row; what is longer is cut at its end
    small: bool = False  # only the small vocabulary
    kinds: tuple[str, ...] = ("concept",)  # of labels, fields of emoji_drawings.Labels, or "voice"
    augmentation: Augment = Augment()

    @property
    def samples(self) -> int:  # S
        return round(self.seconds * RATE)

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """`waves` float32 [B S], `lengths` int32 [B] to the end of the word, `label` int32 [B K]."""
        found = self.recordings("train")
        label, samples = self.label(found), self.samples

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            draws = [one[rows] for one in rng.random((3, len(indices)))]
            seeds = rng.integers(2**32, size=len(indices))[rows]
            mine = indices[rows]
            waves, lengths = moved(found.take(mine), samples, draws[0], self.augmentation.early)
            waves *= 10 ** (self.augmentation.gain * (2 * draws[1] - 1) / 20)[:, None].astype(np.float32)
            noise = [np.random.default_rng(one).standard_normal(samples, np.float32) for one in seeds]
            waves += self.augmentation.noise * draws[2][:, None].astype(np.float32) * np.stack(noise)
            return {"waves": waves.clip(-1, 1), "lengths": lengths, "label": label[mine]}

        return pipeline.Batches(len(found.lengths), batch_size, seed, rows, make)

    def recordings(self, split: str) -> Recordings:
        """All of a split, rows of `samples`, unchanged otherwise."""
        found = pack().take(pack().split(split))
        found = found.take(found.small) if self.small else found
        waves, lengths = moved(found, self.samples, np.zeros(len(found.lengths)), 0.0)
        return found._replace(waves=waves, lengths=lengths)

    def label(self, found: Recordings) -> np.ndarray:
        """int32 [N K]; -1, none, for a voice that nobody learns from."""
        # Of whoever drew it, nothing is known here: artist is none.
        labels = emoji_drawings.labels_of(np.full(len(found.concept), -1), found.concept)._asdict()
        labels["voice"] = np.where(found.voice < len(TRAINING_VOICES), found.voice, -1)
        return np.stack([labels[kind] for kind in self.kinds], 1).astype(np.int32)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many labels each kind has: `counts` of nn.embeddings.Labels."""
        counts = emoji_drawings.counts() | {"voice": len(TRAINING_VOICES)}
        return tuple(counts[kind] for kind in self.kinds)


def moved(found: Recordings, samples: int, place: np.ndarray, early: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N samples], and where each word ends [N]: it begins `early` seconds after the start, and `place` [N] in
    [0, 1) of what silence is left later."""
    lengths = np.minimum(found.lengths, samples)
    first = np.minimum(round(early * RATE), samples - lengths)
    first = first + ((samples - lengths - first) * place).astype(np.int64)
    waves = np.zeros((len(lengths), samples), np.float32)
    for row, wave, start, length in zip(waves, found.waves, first, lengths, strict=True):
        row[start : start + length] = wave[:length]
    return waves, (first + lengths).astype(np.int32)
