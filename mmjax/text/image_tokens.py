"""Codes of pictures as words of a language model, and rows in which pictures follow captions, or captions pictures.

Source: Ge et al. 2023, arXiv:2310.01218 (SEED-LLaMA), section 3.2; which id is what from AILab-CVC/SEED,
seed_llama_tokenizer.py.

    start words <img> code ... code </img>        start <img> code ... code </img> words

B rows, T tokens of a caption, Q codes of a picture, K codes in the book. Rows are NumPy, for a pipeline of data; they
are batches of objectives/sft.py, whose `spoken` says which tokens are learned, each from all that stand before it.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageTokens:
    """Where codes stand in a vocabulary; the defaults are SEED-LLaMA's, behind a LLaMA's 32,000 words."""

    words: int = 32_000  # the id of code 0
    codes: int = 8192  # K
    length: int = 32  # Q
    start: tuple[int, ...] = ()  # what every row begins with, such as a begin of text

    begin = property(lambda self: self.words + self.codes)  # <img>
    end = property(lambda self: self.words + self.codes + 1)  # </img>
    size = property(lambda self: self.words + self.codes + 2)  # rows of the language model's table
    among = property(lambda self: (self.words, self.words + self.codes))  # for nn.sampling.generate_among

    def to_words(self, ids: np.ndarray) -> np.ndarray:
        """Codes [B Q] in [0, K) -> ids of the language model [B Q]."""
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.shape[1] != self.length:
            raise ValueError(f"a picture has {self.length} codes, so ids must be [B {self.length}], got {ids.shape}")
        return self._inside(ids, 0) + self.words

    def to_codes(self, tokens: np.ndarray) -> np.ndarray:
        """The way back."""
        return self._inside(np.asarray(tokens), self.words) - self.words

    def _inside(self, ids: np.ndarray, first: int) -> np.ndarray:
        if ids.size and not first <= ids.min() <= ids.max() < first + self.codes:
            raise ValueError(f"codes must be ids {first} ... {first + self.codes - 1}, got {ids.min()} to {ids.max()}")
        return ids.astype(np.int32)


def prompt(tokens: ImageTokens, input_ids: np.ndarray, attention_mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """Captions [B T], attention_mask [B T] bool -> what `generate_among` writes pictures behind: input_ids and
    attention_mask [B T'], both end with <img>."""
    row = _joined(tokens, [(input_ids, attention_mask, False), (tokens.begin, None, False)])
    return {name: row[name] for name in ("input_ids", "attention_mask")}


def caption_to_picture(
    tokens: ImageTokens, input_ids: np.ndarray, attention_mask: np.ndarray | None, ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Captions [B T] and the codes [B Q] of their pictures -> input_ids, attention_mask, spoken [B T']. Codes and
    </img> are learned; <img> is not, as whoever wants a picture writes it."""
    picture = [(tokens.begin, None, False), (tokens.to_words(ids), None, True), (tokens.end, None, True)]
    return _joined(tokens, [(input_ids, attention_mask, False), *picture])


def picture_to_caption(
    tokens: ImageTokens, ids: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Codes [B Q] and captions [B T] -> the same. The captions are learned, so let them end with an end of text; what
    they begin with otherwise is tokens.start."""
    picture = [(tokens.begin, None, False), (tokens.to_words(ids), None, False), (tokens.end, None, False)]
    return _joined(tokens, [*picture, (input_ids, attention_mask, True)])


def _joined(tokens: ImageTokens, parts: list[tuple[Any, Any, bool]]) -> dict[str, np.ndarray]:
    """Side by side: ids [B n], or one for all rows, what of them counts, or None for all, whether they are learned."""
    batch_size = next(len(ids) for ids, _, _ in parts if np.ndim(ids))
    rows: dict[str, list] = {"input_ids": [], "attention_mask": [], "spoken": []}
    for ids, mask, learned in [*[(each, None, False) for each in tokens.start], *parts]:
        ids = np.asarray(ids, np.int32) if np.ndim(ids) else np.full((batch_size, 1), ids, np.int32)
        mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
        for name, x in zip(rows, (ids, mask, mask & learned), strict=True):
            rows[name].append(x)
    return {name: np.concatenate(x, axis=1) for name, x in rows.items()}
