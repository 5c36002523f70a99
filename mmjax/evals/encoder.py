"""What an encoder with a head gets right, and asking it: hidden words, classes of texts, tags of words.

Evals read `data.examples(split)`: rows of `input_ids`, `attention_mask`, `token_type_ids` and labels. Metrics of a
split "concepts" (beside each the share of the most frequent answer, "_chance", where there is one):

    HiddenWords    concepts/word_accuracy, word_perplexity, and next_sentence_accuracy where the model has that head
    Classes        concepts/accuracy, top5_accuracy
    Spans          concepts/f1, precision, recall of whole mentions; tag_accuracy of single words

N rows, T tokens, C classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import bert
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.ops import sharding
from mmjax.report.page import CHANCE
from mmjax.text import wordpiece

BATCH_SIZE = 64  # rows that are read at once
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "masked_positions")


@partial(jax.jit, static_argnames="model")
def _forward(model: Any, variables: dict, inputs: dict) -> tuple[jax.Array, jax.Array | None]:
    """On a mesh each device reads its rows, and every process gets all of them."""
    out = model.apply(variables, **{name: sharding.constrain(x, sharding.BATCH) for name, x in inputs.items()})
    return jax.tree.map(lambda x: sharding.constrain(x.astype(jnp.float32), None), (out.logits, out.nsp))


def forward(model: Any, variables: dict, rows: dict) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits [N ...], and [N 2] of the next sentence where the model has that head; all rows have one length."""
    inputs = {name: rows[name] for name in INPUTS if name in rows}
    count = len(inputs["input_ids"])
    if not count:
        raise ValueError("there is nothing to read: the split or the list of texts is empty")
    shards = sharding.shards(*sharding.BATCH)
    size = -(-min(count, BATCH_SIZE) // shards) * shards  # each device has as many rows
    order = np.arange(-(-count // size) * size) % count  # the last batch is filled up from the start: one compile
    parts = [
        _forward(model, variables, {name: x[order[i : i + size]] for name, x in inputs.items()})
        for i in range(0, len(order), size)
    ]
    logits, nsp = zip(*parts, strict=True)
    return np.concatenate(logits)[:count], None if nsp[0] is None else np.concatenate(nsp)[:count]


def most_frequent(labels: np.ndarray) -> float:
    """The share of the most frequent label."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


@dataclasses.dataclass(frozen=True)
class HiddenWords:
    """Words are hidden once, in the same way at every evaluation."""

    split: str
    masking: bert.Masking

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        rows = data.examples(self.split)
        hidden = bert.mask_tokens(jax.random.key(0), rows["input_ids"], rows["attention_mask"], self.masking)
        rows = {**rows, **{name: np.asarray(x) for name, x in hidden.items()}}
        logits, nsp = forward(model, variables, rows)
        counts = rows["labels"] != bert.IGNORED
        logits, labels = logits[counts], rows["labels"][counts]
        metrics = {
            f"{self.split}/word_accuracy": float(np.mean(logits.argmax(-1) == labels)),
            f"{self.split}/word_accuracy{CHANCE}": most_frequent(labels),
            f"{self.split}/word_perplexity": float(np.exp(bert.cross_entropy(logits, labels)[0])),
        }
        if nsp is not None:
            answers, right = nsp.argmax(-1), rows["next_sentence_label"]
            metrics[f"{self.split}/next_sentence_accuracy"] = float(np.mean(answers == right))
            metrics[f"{self.split}/next_sentence_accuracy{CHANCE}"] = most_frequent(right)
        return Result(metrics)


@dataclasses.dataclass(frozen=True)
class Classes:
    split: str

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        rows = data.examples(self.split)
        labels, logits = rows["labels"], forward(model, variables, rows)[0]
        best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
        return Result(
            {
                f"{self.split}/accuracy": float(np.mean(best[:, 0] == labels)),
                f"{self.split}/accuracy{CHANCE}": most_frequent(labels),
                f"{self.split}/top5_accuracy": float(np.mean((best == labels[:, None]).any(1))),
            }
        )


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, last word, kind) of each mention; an "I-" that continues nothing begins one (as conlleval reads)."""
    found, start = set(), None
    for place, tag in enumerate([*tags, "O"]):
        continues = start is not None and tag == f"I-{tags[start][2:]}"
        if start is not None and not continues:
            found.add((start, place - 1, tags[start][2:]))
            start = None
        if tag != "O" and not continues:
            start = place
    return found


def f1(found: int, wanted: int, right: int) -> dict[str, float]:
    """`found` mentions were answered, `wanted` stand there, `right` are both, in place and kind."""
    return {
        "f1": 2 * right / max(found + wanted, 1),
        "precision": right / max(found, 1),
        "recall": right / max(wanted, 1),
    }


@dataclasses.dataclass(frozen=True)
class Spans:
    split: str

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        rows = data.examples(self.split)
        answers, labels, names = forward(model, variables, rows)[0].argmax(-1), rows["labels"], data.labels
        counts = labels != bert.IGNORED
        found, wanted = (
            [spans([names[tag] for tag in row[mask]]) for row, mask in zip(one, counts, strict=True)]
            for one in (answers, labels)
        )
        right = sum(len(a & b) for a, b in zip(found, wanted, strict=True))
        metrics = f1(sum(map(len, found)), sum(map(len, wanted)), right)
        metrics["tag_accuracy"] = float(np.mean((answers == labels)[counts]))
        metrics[f"tag_accuracy{CHANCE}"] = most_frequent(labels[counts])
        return Result({f"{self.split}/{name}": value for name, value in metrics.items()})


# --- asking a model


def fill_masks(model: Any, variables: dict, tokenizer: wordpiece.Tokenizer, texts: Sequence[str]) -> list[str]:
    """The five likeliest pieces at each [MASK] of each text."""
    rows = _rows(model, tokenizer, texts)
    masks = rows["input_ids"] == tokenizer.mask
    if not masks.any(1).all():
        raise ValueError(
            f'{texts[int(np.argmin(masks.any(1)))]!r} has no [MASK] to fill: "the opposite of hot is [MASK]"'
        )
    logits, lines = forward(model, variables, rows)[0], []
    for text, row, mask in zip(texts, logits, masks, strict=True):
        lines.append(text)
        for place in np.flatnonzero(mask):
            probability = np.asarray(jax.nn.softmax(row[place]))
            best = np.argsort(-probability, kind="stable")[:5]
            words = zip(tokenizer.tokens(best), probability[best], strict=True)
            lines.append("  " + "   ".join(f"{word} {share:.1%}" for word, share in words))
    return lines


def classify(model: Any, variables: dict, tokenizer: wordpiece.Tokenizer, texts: Sequence[str]) -> list[str]:
    """The three likeliest classes of each text."""
    lines = []
    for text, row in zip(texts, forward(model, variables, _rows(model, tokenizer, texts))[0], strict=True):
        probability = np.asarray(jax.nn.softmax(row))
        best = np.argsort(-probability, kind="stable")[:3]
        lines += [text, *(f"  {probability[n]:6.1%}  {model.labels[n]}" for n in best)]
    return lines


def tag(model: Any, variables: dict, tokenizer: wordpiece.Tokenizer, texts: Sequence[str]) -> list[str]:
    """Each text's mentions, with their kinds; words are what spaces part."""
    split = [text.split() for text in texts]
    rows = tokenizer.word_rows(split, _length(model, tokenizer, texts))
    answers, lines = forward(model, variables, rows)[0].argmax(-1), []
    for text, words, row, place in zip(texts, split, answers, rows["words"], strict=True):
        tags = [model.labels[one] for one in row[place >= 0]]
        found = sorted(spans(tags))
        lines += [text, *(f"  {' '.join(words[first : last + 1])}  {kind}" for first, last, kind in found)]
    return lines


def _length(model: Any, tokenizer: wordpiece.Tokenizer, texts: Sequence[str]) -> int:
    """The longest row in steps of 8: a few more texts cost no compilation."""
    longest = tokenizer.rows(texts)["input_ids"].shape[1]
    if longest > model.config.length:
        raise ValueError(f"a text has {longest} tokens with [CLS] and [SEP]; this model reads {model.config.length}")
    return min(-(-longest // 8) * 8, model.config.length)


def _rows(model: Any, tokenizer: wordpiece.Tokenizer, texts: Sequence[str]) -> dict:
    return tokenizer.rows(texts, _length(model, tokenizer, texts))


ASKED: dict[type, Callable] = {
    bert.BERTForPreTraining: fill_masks,
    bert.BERTForMaskedLM: fill_masks,
    bert.BERTForClassification: classify,
    bert.BERTForTagging: tag,
}


def ask(model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
    """An Experiment's `sample` for any BERT with a head; `rng` is unused."""
    if not request.texts:
        raise ValueError("there is nothing to answer: give texts")
    return Answer("\n".join(ASKED[type(model)](model, variables, data.tokenizer, request.texts)))
