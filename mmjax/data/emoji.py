"""The emoji pack: 1,555 concepts, each drawn by up to eight artists, with Unicode's names and keywords.

    pack().drawings("noto") [N 64 64 4], pack().concepts[n].name        N concepts, in Unicode's order
    EmojiData() -> batches: one drawing and one caption per concept and epoch, on a random background

Splits are made by hashing, so they never move. With hash(text) = first 32 bits of SHA-256, as a fraction of 2**32: a
concept is held out if hash("concept/" + code) < 0.1, a drawing is for validation if hash(artist + "/" + code) < 0.1.
With T = the seven training artists:

    train             drawings of T, concepts not held out, not for validation
    validation        drawings of T, concepts not held out, for validation: choices are made here
    concepts          all drawings of T of the held-out concepts
    twemoji           all drawings of the held-out artist, held-out concepts too: read once per number that is reported
    twemoji_concepts  those of them that show held-out concepts: neither artist nor concept was seen

train, validation, concepts and twemoji share no drawing, and are all there is. `label` is the concept's row in the pack
in every split, and `names` are always all names: retrieval has to find the right one of 1,555.
Who drew what under which licence: `assets/NOTICE.md`. How the pack is made: `build_emoji_pack.py`.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmjax.data import augment, pipeline
from mmjax.text import bpe, prompts

ASSETS = pathlib.Path(__file__).parent / "assets"
TRAINING_ARTISTS = ("noto", "noto_v1", "fluent_3d", "fluent_color", "fluent_flat", "emojione", "fxemoji")
HELD_OUT = "twemoji"
ARTISTS = (*TRAINING_ARTISTS, HELD_OUT)
SPLITS = ("train", "validation", "concepts", "twemoji", "twemoji_concepts")
SIZE = 64  # side of a drawing
SHARE = 0.1  # of the concepts that are held out, and of the drawings that are for validation

# Mirrored, these would show something else, or writing that nobody can read.
ONE_WAY_GROUPS = {"Symbols"}
ONE_WAY_SUBGROUPS = {
    *("time", "place-map", "award-medal", "music", "phone", "computer", "book-paper", "money"),
    *("office", "game", "place-building", "science"),
}
ONE_WAY_NAMES = re.compile(
    r"\b(left|right|leftwards|rightwards|moon|speaker)\b"
    r"|^(hundred points|ZZZ|bus stop|stop sign|police car|ambulance|station|clapper board|e-mail)$"
)


class Concept(NamedTuple):
    code: str  # code points in hexadecimal, "1f98a" or "1f469-200d-1f692"
    name: str  # CLDR's short name, "fox"
    keywords: tuple[str, ...]
    group: str  # of 8, "Animals & Nature"
    subgroup: str  # of 95, "animal-mammal"
    artists: tuple[str, ...]  # who draws it

    @property
    def may_flip(self) -> bool:
        """Whether the mirror image means the same."""
        one_way = self.group in ONE_WAY_GROUPS or self.subgroup in ONE_WAY_SUBGROUPS
        return not (one_way or ONE_WAY_NAMES.search(self.name))


class Pack:
    """The embedded pack; each artist's atlas is decoded when it is first asked for. Use `pack()`, which keeps one."""

    @functools.cached_property
    def concepts(self) -> tuple[Concept, ...]:
        records = json.loads((ASSETS / "emoji.json").read_text(encoding="utf-8"))
        return tuple(
            Concept(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}) for record in records
        )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(concept.name for concept in self.concepts)

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """The distinct groups, in the order in which they come."""
        return tuple(dict.fromkeys(concept.group for concept in self.concepts))

    @functools.cached_property
    def subgroups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(concept.subgroup for concept in self.concepts))

    @functools.cached_property
    def has(self) -> np.ndarray:  # [A N] bool: artist a of ARTISTS draws concept n
        return np.array([[artist in concept.artists for concept in self.concepts] for artist in ARTISTS])

    @functools.cached_property
    def languages(self) -> dict[str, list[dict]]:
        """Language -> per concept {"name": ..., "keywords": [...]}, from CLDR: de, es, fr, ja, zh."""
        return json.loads(gzip.decompress((ASSETS / "emoji_languages.json.gz").read_bytes()))

    def drawings(self, artist: str) -> np.ndarray:
        """uint8 [N 64 64 4], not premultiplied; all zero where `has` is false. Read-only."""
        if artist not in ARTISTS:
            raise ValueError(f"no artist {artist!r} in the emoji pack; it holds {', '.join(ARTISTS)}")
        return self._drawings(artist)

    @functools.cache  # noqa: B019  one Pack lives as long as the process
    def _drawings(self, artist: str) -> np.ndarray:
        atlas = np.asarray(Image.open(ASSETS / f"emoji_{artist}.webp").convert("RGBA"))
        rows, columns = atlas.shape[0] // SIZE, atlas.shape[1] // SIZE
        cells = atlas.reshape(rows, SIZE, columns, SIZE, 4).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 4)
        cells = cells[: len(self.concepts)].copy()
        cells.flags.writeable = False
        return cells

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The drawings of a split: artists [M] as rows of ARTISTS, concepts [M]; ordered by concept, then artist."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r} of the emoji pack; there are {', '.join(SPLITS)}")
        held_out, validation = self._held_out_concepts, self._validation
        training = np.array([artist != HELD_OUT for artist in ARTISTS])[:, None]
        chosen = {
            "train": training & ~held_out & ~validation,
            "validation": training & ~held_out & validation,
            "concepts": training & held_out,
            "twemoji": ~training & np.ones_like(held_out),
            "twemoji_concepts": ~training & held_out,
        }[name]
        concepts, artists = np.nonzero((chosen & self.has).T)
        return artists, concepts

    @functools.cached_property
    def _held_out_concepts(self) -> np.ndarray:  # [N] bool
        return np.array([fraction("concept", concept.code) < SHARE for concept in self.concepts])

    @functools.cached_property
    def _validation(self) -> np.ndarray:  # [A N] bool
        return np.array([[fraction(artist, concept.code) < SHARE for concept in self.concepts] for artist in ARTISTS])


def fraction(*words: str) -> float:
    """A number in [0, 1) that depends on nothing but the words."""
    return int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:4], "big") / 2**32


def among(concepts: np.ndarray, share: float) -> np.ndarray:
    """Rows of the pack [M] -> [M] bool: `share` of the concepts, by hashing. A smaller share lies in a larger one."""
    return np.array([fraction("share", pack().concepts[n].code) < share for n in concepts], bool)


@functools.cache
def pack() -> Pack:
    return Pack()


def resize(cutouts: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N S S 4] -> [N size size 4], S a multiple of size: means of blocks, colours weighted by alpha."""
    side = cutouts.shape[1]
    if side % size:
        raise ValueError(f"drawings of side {side} shrink only to a divisor of {side}, got size={size}")
    parts = np.array_split(cutouts, len(cutouts) // 128 + 1)  # float copies of 7,600 drawings would take gigabytes
    return np.concatenate([_block_means(part, side // size) for part in parts])


def _block_means(cutouts: np.ndarray, block: int) -> np.ndarray:
    size = cutouts.shape[1] // block
    blocks = cutouts.reshape(-1, size, block, size, block, 4).astype(np.float32)
    alpha = blocks[..., 3:]
    total = alpha.sum((2, 4))  # [N size size 1]
    colour = (blocks[..., :3] * alpha).sum((2, 4)) / np.maximum(total, 1)
    return np.concatenate([colour, total / block**2], -1).round().astype(np.uint8)


@functools.cache
def tokenizer() -> bpe.Tokenizer:
    """The small vocabulary trained on the pack's names, keywords and templates."""
    return bpe.load(ASSETS / "emoji_bpe.json")


@dataclasses.dataclass(frozen=True)
class EmojiData:
    """Each concept of the training split once per epoch, drawn by a new random artist (see `pipeline.Data`).

    Within an epoch the concepts of a batch differ, so in-batch negatives are true negatives.
    """

    image_size: int = 32  # pixels
    text_length: int = 24  # T, ids in a row with start and end
    # Shares of the caption forms: name | keywords, shuffled | name and two keywords | name in a template
    captions: tuple[float, float, float, float] = (0.4, 0.1, 0.3, 0.2)
    augmentation: augment.Augment = augment.Augment()

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        artists, concepts = pack().split("train")
        trained, first, count = np.unique(concepts, return_index=True, return_counts=True)

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            which = (first + (rng.random(first.shape[0]) * count).astype(int))[indices]  # drawings of the split
            draws = augment.draw(self.augmentation, len(indices), rng)
            words = CaptionDraw.of(rng, len(indices))
            return self._batch(
                artists[which[rows]], trained[indices[rows]], augment.take(draws, rows), words.take(rows)
            )

        return pipeline.Batches(len(trained), batch_size, seed, rows, make)

    def _batch(self, artists, concepts, draws: augment.Draw, words: "CaptionDraw") -> pipeline.Batch:
        may_flip = np.array([pack().concepts[n].may_flip for n in concepts])
        images = augment.render(cutouts(artists, concepts), draws, self.image_size, may_flip)
        forms = words.forms(self.captions)
        texts = [
            caption(pack().concepts[n], form, order, template)
            for n, form, order, template in zip(concepts, forms, words.order, words.template, strict=True)
        ]
        return {"images": images, **self.tokenize(texts), "label": concepts.astype(np.int32)}

    def pairs(self, split: str) -> pipeline.Pairs:
        """White background; the caption is the name."""
        artists, concepts = pack().split(split)
        images = augment.plain(resize(cutouts(artists, concepts), self.image_size), self.image_size)
        names = pack().names
        return pipeline.Pairs(images, [names[n] for n in concepts], concepts.astype(np.int32), names)

    def groups(self, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Labels int32 [M] of the same rows by subgroup, and the subgroups' names."""
        _, concepts = pack().split(split)
        number = {name: i for i, name in enumerate(pack().subgroups)}
        return np.array([number[pack().concepts[n].subgroup] for n in concepts], np.int32), pack().subgroups

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return tokenizer().rows(texts, self.text_length)


def cutouts(artists: np.ndarray, concepts: np.ndarray) -> np.ndarray:
    """Drawings of (artist, concept) pairs, artists as rows of ARTISTS: uint8 [M 64 64 4]."""
    result = np.empty((len(concepts), SIZE, SIZE, 4), np.uint8)
    for artist in np.unique(artists):
        mine = artists == artist
        result[mine] = pack().drawings(ARTISTS[artist])[concepts[mine]]
    return result


MOST_KEYWORDS = 32  # no concept has more; the number of random numbers per row must not depend on the concept


class CaptionDraw(NamedTuple):
    """The random numbers for the captions of a batch."""

    form: np.ndarray  # [B] in [0, 1)
    order: np.ndarray  # [B MOST_KEYWORDS]: keywords are sorted by these
    template: np.ndarray  # [B] index into prompts.PICTURES

    @classmethod
    def of(cls, rng: np.random.Generator, batch_size: int) -> "CaptionDraw":
        order = rng.random((batch_size, MOST_KEYWORDS))
        return cls(rng.random(batch_size), order, rng.integers(len(prompts.PICTURES), size=batch_size))

    def take(self, rows: slice) -> "CaptionDraw":
        return CaptionDraw(*(field[rows] for field in self))

    def forms(self, shares: Sequence[float]) -> np.ndarray:  # [B]: 0 name, 1 keywords, 2 name and keywords, 3 template
        return np.searchsorted(np.cumsum(shares)[:-1] / np.sum(shares), self.form, side="right")


def caption(concept: Concept, form: int, order: np.ndarray, template: int) -> str:
    """One of the four forms of caption (see EmojiData.captions), all of CLDR's words."""
    words = [concept.keywords[i] for i in np.argsort(order[: len(concept.keywords)])]
    if form == 1:
        return ", ".join(words)
    if form == 2:
        return ", ".join([concept.name, *[word for word in words if word != concept.name][:2]])
    return prompts.PICTURES[template].replace("{}", concept.name) if form == 3 else concept.name
