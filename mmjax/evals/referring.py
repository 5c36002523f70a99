"""Ferret's two scores: is the thing at this region named right, and is the thing of this name found.

Sources: apple/ml-ferret, model_lvis.py and eval_lvis.py (names), eval_refexp.py (boxes).

    names   "Is it a cat or a dog?" of a region: right where the answer holds the name or one of its synonyms, once all
            that the answer denies is taken out. The classes change places from question to question (`in_turn`), or a
            model that always takes the first would be right.
    boxes   the boxes of an answer against the one that was asked for, in pixels: a hit where they overlap by at least
            a half; of the first box, of the mean of all boxes, and of the best. An answer without a box, or that cannot
            be read, counts as an empty box in the corner.

evals/grounding.py scores boxes as Shikra does, which wants more than a half and one box only.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.ops import boxes
from mmjax.text import regions

LEAST = 0.5  # overlap of a hit


class Hits(NamedTuple):
    first: bool
    mean: bool
    best: bool


# Names


def in_turn(name: str, other: str, index: int) -> tuple[str, str]:
    """The two classes of question number `index` in the order in which it says them: the right one first if even."""
    return (name, other) if index % 2 == 0 else (other, name)


def affirmed(answer: str) -> str:
    """The answer without what it denies: from a word that begins with "not", then with "no", to the next , or . and
    that mark too. A denial that nothing ends stays."""
    for word in ("not", "no"):
        answer = re.sub(rf"\s+{word}[^,.]*[,.]", "", answer)
    return answer


def names(name: str, synonyms: Sequence[str]) -> list[str]:
    """As LVIS writes them -> as an answer does: blanks for underscores, "dog_(hot)" as two, "dog" and "hot"."""
    out = [name.replace("_", " ").strip()]
    for synonym in synonyms:
        parts = synonym.split("(")
        if len(parts) > 2 or (len(parts) == 2 and ")" not in synonym):
            raise ValueError(f"a synonym has at most one part in brackets, got {synonym!r}")
        out += [part.replace("_", " ").replace(")", "").strip() if i else part.replace("_", " ").strip()
                for i, part in enumerate(parts)]  # fmt: skip
    return out


def named(answer: str, name: str, synonyms: Sequence[str] = ()) -> bool:
    """Whether the answer says the name, as a part of another word too: the original's rule."""
    said = affirmed(answer)
    return any(one in said for one in names(name, synonyms))


def naming(answers: Sequence[str], targets: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """N answers, N (name, synonyms) -> accuracy."""
    _same_length(answers, targets)
    return {"accuracy": float(np.mean([named(a, *target) for a, target in zip(answers, targets, strict=True)]))}


# Boxes


def said_boxes(answer: str, size: tuple[int, int]) -> np.ndarray:
    """[n 4] in pixels of a picture of this size (width, height); one empty box where there is none to be read."""
    try:
        found = [regions.pixels(one.box, size) for one in regions.parse(answer)]
    except ValueError:
        found = []
    return np.array(found or [(0, 0, 0, 0)], np.float64)


def hits(answer: str, target: Sequence[float], size: tuple[int, int]) -> Hits:
    """target: (x0, y0, x1, y1) in pixels of a picture of this size (width, height)."""
    found, target = said_boxes(answer, size), np.asarray(target, np.float64)
    each, mean = boxes.iou(found, target[None]), boxes.iou(found.mean(0), target)
    return Hits(bool(each[0] >= LEAST), bool(mean >= LEAST), bool(each.max() >= LEAST))


def finding(
    answers: Sequence[str], targets: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """N answers, boxes in pixels, (width, height) of the pictures -> the share of hits of each kind."""
    _same_length(answers, targets)
    rows = [hits(*one) for one in zip(answers, targets, sizes, strict=True)]
    return {name: float(np.mean([getattr(row, name) for row in rows])) for name in Hits._fields}


def _same_length(answers: Sequence, targets: Sequence) -> None:
    if len(answers) != len(targets) or not len(answers):
        raise ValueError(f"each answer needs a target, got {len(answers)} answers and {len(targets)} targets")
