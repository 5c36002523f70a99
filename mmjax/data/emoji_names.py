"""Names of the emoji pack to translate: CLDR's English ones, and the same things named in German, Spanish and French.

    input_ids          <de> red apple <end>      the language that is asked for, and the English name
    decoder_input_ids  <start> roter apfel       what is written so far
    labels             roter apfel <end>         what comes next; IGNORED after the end

One model serves all languages (Johnson et al. 2017, arXiv:1611.04558), with one vocabulary of byte pairs, which are
learned from the training names alone (`build_emoji_names_bpe.py`) and have lower case only. Splits are those of
`emoji_text`: concept by concept, so no held-out name was seen in any language.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data import emoji, emoji_text, pipeline
from mmjax.ops.cross_entropy import IGNORED
from mmjax.text import bpe

LANGUAGES = ("de", "es", "fr")


def tag(language: str) -> str:
    """The token that asks for a language."""
    return f"<{language}>"


@functools.cache
def tokenizer() -> bpe.Tokenizer:
    return bpe.load(emoji.ASSETS / "emoji_names_bpe.json")


class Pair(NamedTuple):
    language: str
    source: str  # the English name
    target: str


@dataclasses.dataclass(frozen=True)
class EmojiNames:
    """Each training name once per epoch in each language."""

    languages: tuple[str, ...] = LANGUAGES
    source_length: int = 16  # S, tokens in a row
    length: int = 26  # T

    def __post_init__(self):
        unknown = set(self.languages) - set(LANGUAGES)
        if unknown or not self.languages:
            raise ValueError(f"languages must be some of {', '.join(LANGUAGES)}, got {list(self.languages)}")

    @property
    def tokenizer(self) -> bpe.Tokenizer:
        return tokenizer()

    def clean(self, text: str) -> str:
        """The text as the vocabulary spells it: in lower case, with single spaces."""
        return self.tokenizer.decode(self.tokenizer.encode([text])[0])

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        pairs = self.pairs("train")

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            return self.rows([pairs[n] for n in indices[rows]])

        return pipeline.Batches(len(pairs), batch_size, seed, rows, make)

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """Every name of the split in every language, as the vocabulary spells them."""
        return _pairs(split, tuple(self.languages))

    def rows(self, pairs: Sequence[Pair]) -> pipeline.Batch:
        languages, sources, targets = zip(*pairs, strict=True)
        written = self.tokenizer.rows(targets, self.length + 1)
        ids, counts = written["input_ids"], written["attention_mask"][:, 1:]
        labels = np.where(counts, ids[:, 1:], IGNORED).astype(np.int32)
        return {**self.sources(languages, sources), "decoder_input_ids": ids[:, :-1], "labels": labels}

    def sources(self, languages: Sequence[str], names: Sequence[str]) -> pipeline.Batch:
        """What the encoder reads: `input_ids` int32 [B S], `attention_mask` bool [B S]."""
        made = self.tokenizer.rows(names, self.source_length)
        made["input_ids"][:, 0] = [self.tokenizer.core.token_to_id(tag(language)) for language in languages]
        return made


@functools.cache
def _pairs(split: str, languages: tuple[str, ...]) -> tuple[Pair, ...]:
    rows, clean = emoji_text.members(split), EmojiNames().clean
    names = {language: [one["name"] for one in emoji.pack().languages[language]] for language in languages}
    english = emoji.pack().names
    return tuple(
        Pair(language, clean(english[n]), clean(names[language][n])) for n in rows for language in languages
    )  # fmt: skip
