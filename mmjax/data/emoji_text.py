"""English texts of the emoji pack: sentences, alone and in order, names by subgroup, and words with tags.

    Sentences        a sentence "fox: animal face orange": a language model
    SentencePairs    two sentences "fox: animal face orange", the second following the first or not: pretraining
    Names            a name and which of 95 subgroups it belongs to: classification
    Mentions         a sentence that mentions concepts, each word tagged with its concept's group: tagging

Names, keywords, groups and Unicode's order are CLDR's; the sentences around the mentions are ours. Splits are made by
hashing, like those of `emoji`, and concept by concept:

    train         the rest
    validation    a tenth of the concepts that are not held out: choices are made here
    concepts      the held-out concepts, the same as in `emoji`: read once per number that is reported

A batch is made of `input_ids`, `attention_mask` and `token_type_ids` [B T] and what the loss needs besides.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mmjax.data import emoji, pipeline
from mmjax.ops.cross_entropy import IGNORED
from mmjax.text import wordpiece

SPLITS = ("train", "validation", "concepts")
MENTIONS = tuple(
    text.split()
    for text in (
        "{}", "I dreamt of {}", "where is the {} ?", "{} and {}", "a {} next to a {}", "the {} is behind the {}",
        "{} instead of {}", "no {} but {}", "please bring {} and {}", "she drew a {} with {} on it",
        "we saw {} , {} and {} today", "first {} , then {} and at last {}",
    )
)  # fmt: skip


@functools.cache
def members(split: str) -> np.ndarray:
    """Rows of the pack that belong to a split, in Unicode's order."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r} of the pack's texts; there are {', '.join(SPLITS)}")
    concepts = emoji.pack().concepts
    held_out = np.isin(np.arange(len(concepts)), np.concatenate([_drawn("concepts"), _drawn("twemoji_concepts")]))
    validation = np.array([emoji.fraction("name", concept.code) < emoji.SHARE for concept in concepts])
    chosen = {"train": ~held_out & ~validation, "validation": ~held_out & validation, "concepts": held_out}[split]
    return np.flatnonzero(chosen)


def _drawn(split: str) -> np.ndarray:
    return emoji.pack().split(split)[1]


@functools.cache
def vocabulary(path: str) -> wordpiece.Tokenizer:
    """The pack's own word pieces for "", else those of a folder or vocab.txt."""
    return wordpiece.load(path or emoji.ASSETS / "emoji_wordpiece.txt")


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the three have in common."""

    length: int = 16  # T, tokens in a row
    vocab: str = ""  # vocab.txt, or a folder that holds it; "" = the pack's own

    @property
    def tokenizer(self) -> wordpiece.Tokenizer:
        return vocabulary(self.vocab)

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return self.tokenizer.rows(texts, self.length)


# --- sentences


def sentence(concept: emoji.Concept, order: np.ndarray) -> str:
    """The name and its keywords, sorted by the random numbers `order`."""
    words = [concept.keywords[i] for i in np.argsort(order[: len(concept.keywords)])]
    return f"{concept.name}: {' '.join(words)}"  # no commas: a quarter of the hidden words would be one


@dataclasses.dataclass(frozen=True)
class Sentences(Texts):
    """Each training concept once per epoch, its keywords in a new order. The longest tenth of the rows is cut."""

    length: int = 28
    share: float = 1.0  # of the concepts that are learned from

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        mine = members("train")[emoji.among(members("train"), self.share)]

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            return self._rows(mine[indices[rows]], rng.random((len(indices), emoji.MOST_KEYWORDS))[rows])

        return pipeline.Batches(len(mine), batch_size, seed, rows, make)

    def texts(self, split: str) -> pipeline.Batch:
        """Every concept of the split once, for evals."""
        return self._rows(members(split), np.tile(np.arange(emoji.MOST_KEYWORDS), (len(members(split)), 1)))

    def _rows(self, which: np.ndarray, order: np.ndarray) -> pipeline.Batch:
        texts = [sentence(emoji.pack().concepts[n], one) for n, one in zip(which, order, strict=True)]
        return {name: x for name, x in self.tokenize(texts).items() if name != "token_type_ids"}


@functools.cache
def followers(split: str) -> np.ndarray:
    """[P 2] pairs of rows of the pack: each concept of a split and the next one of it, where both share a subgroup."""
    rows, concepts = members(split), emoji.pack().concepts
    pairs = [(a, b) for a, b in zip(rows, rows[1:], strict=False) if concepts[a].subgroup == concepts[b].subgroup]
    return np.array(pairs)


@dataclasses.dataclass(frozen=True)
class SentencePairs(Texts):
    """Section 3.1, task 2 of BERT: half of the second sentences follow, half are of another subgroup."""

    length: int = 64

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        return pipeline.Batches(len(followers("train")), batch_size, seed, rows, functools.partial(self._make, "train"))

    def examples(self, split: str) -> pipeline.Batch:
        """Every pair of the split once, in a fixed order."""
        return self._make(split, np.arange(len(followers(split))), np.random.default_rng(0), pipeline.ALL)

    def _make(self, split: str, indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
        concepts, size = emoji.pack().concepts, len(indices)
        order = rng.random((size, 2, emoji.MOST_KEYWORDS))[rows]
        random, which = rng.random(size)[rows] < 0.5, rng.random(size)[rows]
        first, second = followers(split)[indices[rows]].T
        for row in np.flatnonzero(random):
            others = [n for n in members(split) if concepts[n].subgroup != concepts[first[row]].subgroup]
            second[row] = others[int(which[row] * len(others))]
        texts = [
            [sentence(concepts[n], one) for n, one in zip(column, order[:, side], strict=True)]
            for side, column in enumerate((first, second))
        ]
        made = self.tokenizer.rows(texts[0], self.length, second=texts[1])
        return {**made, "next_sentence_label": random.astype(np.int32)}  # 1: it does not follow


# --- names by subgroup


@dataclasses.dataclass(frozen=True)
class Names(Texts):
    """Each name of the split once per epoch; `labels` [B] are its subgroup."""

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            return self._rows(members("train")[indices[rows]])

        return pipeline.Batches(len(members("train")), batch_size, seed, rows, make)

    def examples(self, split: str) -> pipeline.Batch:
        return self._rows(members(split))

    def _rows(self, which: np.ndarray) -> pipeline.Batch:
        concepts = [emoji.pack().concepts[n] for n in which]
        number = {name: i for i, name in enumerate(self.labels)}
        labels = np.array([number[concept.subgroup] for concept in concepts], np.int32)
        return {**self.tokenize([concept.name for concept in concepts]), "labels": labels}

    @property
    def labels(self) -> tuple[str, ...]:
        return emoji.pack().subgroups


# --- words with tags


def tags() -> tuple[str, ...]:
    """Nothing, or begin and inside of a mention of each group (Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040)."""
    return ("O", *(f"{place}-{group}" for group in emoji.pack().groups for place in "BI"))


@dataclasses.dataclass(frozen=True)
class Mentions(Texts):
    """Sentences that mention concepts; `labels` [B T] are tags, IGNORED but at a word's first piece."""

    length: int = 32
    evaluated: int = 400  # sentences that an eval reads of a split

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        # An "epoch" counts first mentions; the other mentions of a sentence are drawn.
        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            return self._make("train", indices, rng, rows)

        return pipeline.Batches(len(members("train")), batch_size, seed, rows, make)

    def examples(self, split: str) -> pipeline.Batch:
        """Every concept of the split comes first about equally often."""
        indices = np.arange(self.evaluated) % len(members(split))
        return self._make(split, indices, np.random.default_rng(0), pipeline.ALL)

    def _make(self, split: str, indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
        form = rng.integers(len(MENTIONS), size=len(indices))[rows]
        others = rng.integers(len(members(split)), size=(len(indices), 2))[rows]
        picked = members(split)[np.concatenate([indices[rows, None], others], axis=1)]  # [B 3]
        texts, tagged = zip(*(self._tagged(*one) for one in zip(form, picked, strict=True)), strict=True)
        made = self.tokenizer.word_rows(texts, self.length)
        words = made.pop("words")
        labels = np.full_like(words, IGNORED)
        for row, tag in enumerate(tagged):
            first = words[row] >= 0
            labels[row, first] = np.array(tag)[words[row, first]]
        return {**made, "labels": labels}

    def _tagged(self, form: int, picked: np.ndarray) -> tuple[list[str], list[int]]:
        """Words and tags of one sentence."""
        text, tag, mentions = [], [], iter(picked)
        for word in MENTIONS[form]:
            if word != "{}":
                text, tag = [*text, word], [*tag, 0]
                continue
            concept = emoji.pack().concepts[next(mentions)]
            name, begin = concept.name.split(), 1 + 2 * emoji.pack().groups.index(concept.group)
            text, tag = text + name, [*tag, begin, *[begin + 1] * (len(name) - 1)]
        return text, tag

    @property
    def labels(self) -> tuple[str, ...]:
        return tags()
