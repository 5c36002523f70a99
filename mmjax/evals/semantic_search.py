"""Semantic search: the names of the emoji pack that mean most nearly what a text says, by a sentence encoder.

    texts, names --BERT, mean over tokens, length 1--> [Q D], [N D] --cosines--> the nearest names of each text

Q texts asked, N names, D width. The encoder is a BertModel such as all-MiniLM-L6-v2, read from a folder of the user's.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data import emoji
from mmjax.evals import encoder, features
from mmjax.models import bert
from mmjax.nn.outputs import Answer
from mmjax.text import wordpiece

BUCKET = 8  # tokens; rows are padded to a multiple of it


def embed(model: bert.BERT, variables: dict, tokenizer: wordpiece.Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Q texts -> float32 [Q D] of length 1; what a row can't hold is cut.

    Texts of like length are read together, so that padding costs little.
    """
    lengths = np.array([len(ids) + 2 for ids in tokenizer.encode(texts)])
    sizes = np.minimum(-(-lengths // BUCKET) * BUCKET, model.config.length)
    vectors = np.empty((len(texts), model.config.width), np.float32)
    for size in np.unique(sizes):
        which = np.flatnonzero(sizes == size)
        rows = partial(tokenizer.rows, length=int(size))
        vectors[which] = features.encode_texts(model, variables, rows, [texts[n] for n in which])
    return vectors


def nearest(texts: np.ndarray, names: np.ndarray, shown: int) -> tuple[np.ndarray, np.ndarray]:
    """[Q D], [N D] of length 1 -> rows of names [Q shown], best first, and their cosines [Q shown]."""
    cosines = texts @ names.T
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :shown]
    return best, np.take_along_axis(cosines, best, axis=1)


def search(
    model: bert.BERT, variables: dict, tokenizer: wordpiece.Tokenizer, texts: Sequence[str], *,
    names: Sequence[str] | None = None, shown: int = 5,
) -> Answer:  # fmt: skip
    """The `shown` nearest of `names`, those of the emoji pack if None, for each text."""
    names = emoji.pack().names if names is None else names
    best, cosines = nearest(embed(model, variables, tokenizer, texts), embed(model, variables, tokenizer, names), shown)
    lines = []
    for text, which, cosine in zip(texts, best, cosines, strict=True):
        lines += [text, *(f"  {score:+.3f}  {names[n]}" for n, score in zip(which, cosine, strict=True))]
    return Answer("\n".join(lines))


def answer(folder: Path, model: Any, variables: dict, texts: Sequence[str]) -> Answer:
    """What a BERT of another library says to texts: a bare encoder searches names, a model with a head answers."""
    tokenizer = wordpiece.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the vocabulary has {tokenizer.vocab_size} pieces, but the model {model.config.vocab_size}; "
            "copy the vocab.txt that belongs to it"
        )
    if isinstance(model, bert.BERT):
        return search(model, variables, tokenizer, texts)
    return Answer("\n".join(encoder.ASKED[type(model)](model, variables, tokenizer, texts)))
