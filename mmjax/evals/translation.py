"""How good translations are: the share that is right to the letter, and chrF, beside copying the source.

Metrics of a split "concepts": concepts/exact and concepts/chrf over all languages, concepts/chrf_de ... of each. Those
that end in "_chance" are what someone reaches who writes down the English name.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmjax.data import emoji_names
from mmjax.models import transformer
from mmjax.nn import beam
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.report.page import CHANCE

BATCH_SIZE = 64  # rows that are translated at once


def chrf(found: Sequence[str], right: Sequence[str], *, order: int = 6, beta: float = 2.0) -> float:
    """Popović 2015 (chrF: character n-gram F-score), of a whole corpus, in percent, as sacrebleu counts it.

    n-grams of 1 to `order` letters, without blanks; recall counts `beta` times as much as precision.
    """
    counts = np.zeros((order, 3))  # per n: in found, in right, in both
    for one, other in zip(found, right, strict=True):
        one, other = ("".join(text.split()) for text in (one, other))
        for n in range(1, order + 1):
            a, b = (collections.Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (one, other))
            counts[n - 1] += a.total(), b.total(), (a & b).total()
    counts = counts[(counts[:, :2] > 0).all(1)]  # an n that is longer than all texts does not count
    if not len(counts):
        return 0.0
    precision, recall = (counts[:, 2] / counts[:, 0]).mean(), (counts[:, 2] / counts[:, 1]).mean()
    if precision + recall == 0:
        return 0.0
    return float(100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def exact(found: Sequence[str], right: Sequence[str]) -> float:
    """The share that is right to the letter."""
    return float(np.mean([one == other for one, other in zip(found, right, strict=True)]))


def translated(
    model: Any, variables: dict, data: Any, texts: Sequence[str], languages: Sequence[str], search: beam.Search
) -> list[str]:
    """The best translation of each text."""
    if not texts:
        raise ValueError("there is nothing to translate: the split or the list of texts is empty")
    rows, count = data.tokenize(texts, languages), len(texts)
    order = np.arange(-(-count // BATCH_SIZE) * BATCH_SIZE) % count  # the last batch is filled up: one compile
    found = []
    for i in range(0, len(order), BATCH_SIZE):
        ids, mask = (rows[name][order[i : i + BATCH_SIZE]] for name in ("input_ids", "attention_mask"))
        found.append(np.asarray(transformer.translate(model, variables, ids, mask, search).tokens[:, 0]))
    return [emoji_names.tokenizer().decode(row) for row in np.concatenate(found)[:count]]


@dataclasses.dataclass(frozen=True)
class Translations:
    split: str
    search: beam.Search

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        pairs = emoji_names.pairs(self.split, data.languages)
        sources, languages, targets = zip(*pairs, strict=True)
        found = translated(model, variables, data, sources, languages, self.search)
        metrics = {}
        for name, measure in (("exact", exact), ("chrf", chrf)):
            metrics |= {name: measure(found, targets), f"{name}{CHANCE}": measure(sources, targets)}
        for language in data.languages:
            mine = [i for i, one in enumerate(languages) if one == language]
            metrics[f"chrf_{language}"] = chrf([found[i] for i in mine], [targets[i] for i in mine])
        return Result({f"{self.split}/{name}": value for name, value in metrics.items()})


@dataclasses.dataclass(frozen=True)
class Translator:
    """An Experiment's `sample`: each text in every language."""

    search: beam.Search

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        if not request.texts:
            raise ValueError('there is nothing to translate; give English texts, such as "green apple"')
        texts = [text for text in request.texts for _ in data.languages]
        languages = list(data.languages) * len(request.texts)
        found = translated(model, variables, data, texts, languages, self.search)
        said = {}
        for text, language, translation in zip(texts, languages, found, strict=True):
            said.setdefault(text, []).append(f"  {language}  {translation}")
        return Answer("\n".join(line for text, lines in said.items() for line in (text, *lines)))
