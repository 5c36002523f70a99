"""How good translations are: whole names that are right, and chrF, beside what copying the English name would score.

Metrics of a split "concepts", each in percent, over all languages and of one ("concepts/exact/de"):

    exact           translations that are the reference, letter by letter (the vocabulary has lower case only)
    chrf            character n-grams that translations and references share
    exact_copy      the same two for the English name itself: "ninja", "robot" and "radio" need no translation
    chrf_copy
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
from mmjax.ops import sharding

BATCH_SIZE = 64  # names that are translated at once
SEARCH = beam.Search(length=26, beams=4, alpha=0.6)  # beams and length penalty of Vaswani et al. 2017, section 6.1


def ngrams(text: str, order: int) -> collections.Counter:
    return collections.Counter(text[i : i + order] for i in range(len(text) - order + 1))


def chrf(found: Sequence[str], wanted: Sequence[str], orders: int = 6, beta: float = 2.0) -> float:
    """Popović 2015 (doi 10.18653/v1/W15-3049): F of character n-grams, recall counting `beta` times as much; 0 to 100.

    As sacrebleu's corpus score: spaces are left out, n-grams are counted over all texts, and precision and recall are
    means over the orders 1 to `orders`.
    """
    counts = np.zeros((3, orders))  # n-grams of the translations, of the references, of both
    for a, b in zip(("".join(text.split()) for text in found), ("".join(text.split()) for text in wanted), strict=True):
        for order in range(1, orders + 1):
            ours, theirs = ngrams(a, order), ngrams(b, order)
            # An order that the reference is too short for is no mistake of the translation.
            counts[:, order - 1] += ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()
    ours, theirs, both = counts[:, (counts[:2] > 0).all(0)]
    if not both.any():
        return 0.0
    precision, recall = np.mean(both / ours), np.mean(both / theirs)
    return float(100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def exact(found: Sequence[str], wanted: Sequence[str]) -> float:
    return 100 * float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))


def translate(
    model: transformer.Transformer, variables: dict, data: emoji_names.EmojiNames, languages: Sequence[str],
    names: Sequence[str], search: beam.Search,
) -> list[str]:  # fmt: skip
    """Each of `names`, English, in the language of the same place."""
    rows = data.sources(languages, names)
    shards = sharding.shards(*sharding.BATCH)
    size = -(-min(len(names), BATCH_SIZE) // shards) * shards
    order = np.arange(-(-len(names) // size) * size) % len(names)  # the last batch is filled up: one compile
    parts = [
        transformer.translate(
            model, variables, **{name: x[order[i : i + size]] for name, x in rows.items()}, search=search
        )
        for i in range(0, len(order), size)
    ]
    best = np.concatenate([found.tokens[:, 0] for found in parts])[: len(names)]
    return [data.tokenizer.decode(ids) for ids in best]


@dataclasses.dataclass(frozen=True)
class Translations:
    split: str
    search: beam.Search = SEARCH

    def __call__(self, model: Any, variables: dict, data: emoji_names.EmojiNames, rng: jax.Array) -> Result:
        """`rng` is unused."""
        languages, sources, targets = zip(*data.pairs(self.split), strict=True)
        found = translate(model, variables, data, languages, sources, self.search)
        metrics = {}
        for part in ("", *data.languages):
            rows = [n for n, language in enumerate(languages) if part in ("", language)]
            ours, wanted, copied = ([texts[n] for n in rows] for texts in (found, targets, sources))
            scores = {"exact": exact(ours, wanted), "chrf": chrf(ours, wanted)}
            scores |= {"exact_copy": exact(copied, wanted), "chrf_copy": chrf(copied, wanted)}
            metrics |= {f"{self.split}/{name}" + f"/{part}" * (part != ""): x for name, x in scores.items()}
        return Result(metrics)


def ask(model: Any, variables: dict, request: Request, data: emoji_names.EmojiNames, rng: jax.Array) -> Answer:
    """An Experiment's `sample`: each text in every language; `rng` is unused."""
    if not request.texts:
        raise ValueError('there is nothing to translate: give English names, such as "red apple"')
    asked = [(language, data.clean(text)) for text in request.texts for language in data.languages]
    found = iter(translate(model, variables, data, *zip(*asked, strict=True), SEARCH))
    lines = []
    for text in request.texts:
        lines += [text, *(f"  {language}  {next(found)}" for language in data.languages)]
    return Answer("\n".join(lines))
