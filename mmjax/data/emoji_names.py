"""What emoji are called in English and in five other languages: pairs to translate, from CLDR.

    "red apple", "de" -> input_ids  [<de> red apple <end>]     S, the first id says the language that is wanted
                         labels     [roter apfel <end>]        T, and decoder_input_ids the same behind <start>

Names are read and compared in lower case, as the vocabulary has them. Splits are concept by concept, those of
`emoji_text`: "train", "validation" and "concepts", whose names are held out in all languages.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data import emoji, emoji_text, pipeline
from mmjax.text import bpe

LANGUAGES = ("de", "es", "fr", "ja", "zh")
NOT_COUNTED = -100  # a label without a loss


class Pair(NamedTuple):
    source: str  # English
    language: str  # of LANGUAGES
    target: str


@functools.cache
def tokenizer() -> bpe.Tokenizer:
    """One vocabulary for all languages; made by `build_emoji_names_bpe`."""
    return bpe.load(emoji.ASSETS / "emoji_names_bpe.json")


def vocab_size() -> int:
    """The tokenizer's ids, and behind them one for each language."""
    return tokenizer().vocab_size + len(LANGUAGES)


@functools.cache
def pairs(split: str, languages: tuple[str, ...] = LANGUAGES) -> tuple[Pair, ...]:
    """Every name of a split into every language, concept by concept."""
    if unknown := [language for language in languages if language not in LANGUAGES]:
        raise ValueError(f"no names in {', '.join(unknown)}; the pack has {', '.join(LANGUAGES)}")
    pack, plain = emoji.pack(), tokenizer().core.normalizer.normalize_str
    return tuple(
        Pair(plain(pack.names[row]), language, plain(pack.languages[language][row]["name"]))
        for row in emoji_text.members(split)
        for language in languages
    )


@dataclasses.dataclass(frozen=True)
class Names:
    """Every pair of the split once per epoch."""

    languages: tuple[str, ...] = LANGUAGES
    length: int = 24  # S and T, tokens in a row; longer names are cut

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        train = pairs("train", self.languages)

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            return self.examples([train[i] for i in indices[rows]])

        return pipeline.Batches(len(train), batch_size, seed, rows, make)

    def examples(self, pairs: Sequence[Pair]) -> pipeline.Batch:
        """`input_ids`, `attention_mask` [B S], `decoder_input_ids`, `labels` [B T]."""
        made = tokenizer().rows([pair.target for pair in pairs], self.length + 1)
        ids, mask = made["input_ids"], made["attention_mask"]
        return {
            **self.tokenize([pair.source for pair in pairs], [pair.language for pair in pairs]),
            "decoder_input_ids": ids[:, :-1],
            "labels": np.where(mask, ids, NOT_COUNTED)[:, 1:],
        }

    def tokenize(self, texts: Sequence[str], languages: Sequence[str]) -> pipeline.Batch:
        """English texts, and the language that each is to be put in."""
        made = tokenizer().rows(texts, self.length)
        made["input_ids"][:, 0] = [tokenizer().vocab_size + LANGUAGES.index(language) for language in languages]
        return made
