"""Generated pictures against real ones: an experiment's eval, and what it measures.

    labels of real drawings [N] -draw-> pictures [N 32 32 3] -judges A and B-> features [N F] -> numbers

The drawings of a split are parted in two by chance, none in both. A generator is asked for pictures with the labels of
the first part, and these are compared with the second. The first part itself goes the same way: what it scores stands
beside each number as `_real`, and is what a perfect generator would score. Metrics of a split "train", of judges A and
B ("_a", "_b"):

    train/frechet_a, kernel_a          distances of distributions
    train/coverage_a, recall_a, density_a, precision_a     by 5 neighbours
    train/frechet_sd_a, kernel_sd_a, coverage_sd_a         how much of these is chance, by random halves
    train/name_R@1_a, name_R@10_a      is the concept that was asked for the nearest of 1,555 to the picture?
    train/group_accuracy, subgroup_accuracy, artist_accuracy     does A see the labels that were asked for?
    train/copies                       the share that is nearer to a training drawing, mirrored or not, than all but one
                                       in twenty real drawings are to another
    train/nearest                      the median distance to a training drawing, in pixels' values of [0, 1]

What went through a tokenizer that loses more than `copies` allows for is never called a copy: there, `nearest` beside
`nearest_real` says more, and the picture of what was made beside what is nearest.

No number suffices: distances do not see wrong labels or copies, accuracy does not see that all pictures are one. A
ranking is claimed where both judges agree. The judges have seen the drawings of "train", so `_real` flatters there.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.data import emoji_drawings
from mmjax.evals import generation, judges
from mmjax.evals.judges import Both
from mmjax.evals.reconstruction import beside
from mmjax.nn.outputs import Result

KINDS = ("group", "subgroup", "artist")
REAL = "_real"  # ends the name of what real drawings score
COPIES = 0.05  # share of real drawings that are nearer to another one than what is called a copy


class Reference(NamedTuple):
    """What pictures are compared with; `asked` and `real` have N rows, `other` as many."""

    judges: tuple[judges.Judge, judges.Judge]
    asked: emoji_drawings.Labels  # of the first part
    real: np.ndarray  # [N 32 32 3] the drawings that have these labels
    other: tuple[np.ndarray, np.ndarray]  # [N F] of A and of B: features of the second part
    concepts: tuple[np.ndarray, np.ndarray]  # [C F] of A and of B: `judges.known_concepts`
    own: bool  # whether those are made of the first part too
    train: np.ndarray  # [M 32 32 3] what a generator may have learned by heart
    others: np.ndarray  # [1000] how far some of these are from the nearest other one

    @property
    def threshold(self) -> float:
        """Nearer than this to a training drawing is a copy."""
        return float(np.quantile(self.others, COPIES))


@functools.cache
def reference(split: str, count: int, judge: Both = judges.committed) -> Reference:
    """At most `count` drawings in each part; half of the split where that is fewer. Kept for the next eval."""
    both, data = judge(), emoji_drawings.Labeled(judges.SIZE)
    images, labels = data.drawings(split)
    order = np.random.default_rng(0).permutation(len(images))
    count = min(count, len(images) // 2)
    first, second = order[:count], order[count : 2 * count]
    train, _ = data.drawings("train")
    some = np.random.default_rng(1).choice(len(train), min(len(train), 1_000), replace=False)
    return Reference(
        judges=both,
        asked=labels.take(first),
        real=images[first],
        other=tuple(judges.look(one, images[second]) for one in both),
        concepts=tuple(judges.known_concepts(one, data) if one.concepts is None else one.concepts for one in both),
        own=split in ("train", "concepts"),
        train=train,
        others=generation.nearest(train[some], train, own=some).distance,
    )


def measure(made: np.ndarray, against: Reference) -> dict[str, float]:
    """uint8 [N 32 32 3], row n with the labels of row n of against.asked -> the metrics above without `_real`."""
    _check(made, against.asked)
    metrics: dict[str, float] = {}
    for n, name in enumerate("ab"):
        x = judges.look(against.judges[n], made)
        metrics |= {f"{key}_{name}": value for key, value in apart(x, against.other[n]).items()}
        metrics |= {f"{key}_{name}": value for key, value in named(x, against, n).items()}
    metrics |= seen(made, against)
    return metrics | copied(generation.nearest_or_mirrored(made, against.train).distance, against)


def measure_real(against: Reference) -> dict[str, float]:
    """The same of the drawings that have the labels. A drawing is not named by itself, nor its own copy."""
    metrics: dict[str, float] = {}
    for n, name in enumerate("ab"):
        x = judges.look(against.judges[n], against.real)
        metrics |= {f"{key}_{name}": value for key, value in apart(x, against.other[n]).items()}
        metrics |= {f"{key}_{name}": value for key, value in named(x, against, n, x if against.own else None).items()}
    return metrics | seen(against.real, against) | copied(against.others, against)


def apart(made: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Features [N F], [N F]."""
    unsure = {"frechet": generation.frechet_of, "kernel": generation.kernel_once, "coverage": generation.coverage}
    metrics = {name: one(made, real) for name, one in unsure.items()}
    for name, one in unsure.items():
        metrics[f"{name}_sd"] = generation.deviation(one, (made, real), np.random.default_rng(0))
    return metrics | generation.neighbours(real, made)._asdict()


def named(x: np.ndarray, against: Reference, which: int, own: np.ndarray | None = None) -> dict[str, float]:
    places = judges.named(x, against.asked.concept, against.concepts[which], own=own)
    return {f"name_R@{k}": float(np.mean(places <= k)) for k in (1, 10)}


def copied(distance: np.ndarray, against: Reference) -> dict[str, float]:
    return {"copies": float(np.mean(distance < against.threshold)), "nearest": float(np.median(distance))}


def seen(images: np.ndarray, against: Reference) -> dict[str, float]:
    """How often judge A sees the label that was asked for; of artists that it knows."""
    said, metrics = judges.opinions(against.judges[0], images), {}
    for kind in KINDS:
        answers, right = getattr(said, kind).argmax(1), getattr(against.asked, kind)
        if kind != "artist" or right.max() < said.artist.shape[1]:
            metrics[f"{kind}_accuracy"] = float(np.mean(answers == right))
    return metrics


@dataclasses.dataclass(frozen=True)
class Generated:
    """An eval for generators, with the fewest words for an experiment: Generated(draw, "train").

    draw: (model, variables, rng, label) -> uint8 [B 32 32 3], under jit, `batch` pictures at a time. What a label is
    the experiment's data say: `data.label(emoji_drawings.Labels)`, arrays whose first axis is the pictures'.
    """

    draw: Callable
    reference: str = "train"  # "train" | "validation" | "concepts" | "twemoji": the split
    count: int = 1_500  # pictures; distances of different counts do not compare
    name: str = ""  # of the way of drawing ("cfg 2"), where an experiment has several; stands before the split
    judges: Both = judges.committed
    batch: int = 100

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """The pictures depend on `rng`. Of `data` only `label` is read: what is compared with is the same for all."""
        against = reference(self.reference, self.count, self.judges)
        made = self._pictures(model, variables, data.label(against.asked), rng)
        prefix = f"{self.name} {self.reference}".strip()
        found, real = measure(made, against), real_numbers(self.reference, self.count, self.judges)
        metrics = {}
        for name, value in found.items():
            metrics[f"{prefix}/{name}"] = value
            if name in real:
                metrics[f"{prefix}/{name}{REAL}"] = real[name]
        return Result(metrics, {f"{prefix} generated": sheet(made, against)})

    def judge(self) -> str:
        """What is recorded beside the numbers."""
        return judges.sha256s(self.judges)

    def _pictures(self, model: Any, variables: dict, label: Any, rng: jax.Array) -> np.ndarray:
        draw = jax.jit(lambda variables, rng, label: self.draw(model, variables, rng, label))
        count = len(jax.tree.leaves(label)[0])
        order = np.arange(-(-count // self.batch) * self.batch) % count  # the last batch is filled up
        parts = [
            np.asarray(draw(variables, jax.random.fold_in(rng, n), jax.tree.map(lambda x, rows=rows: x[rows], label)))
            for n, rows in enumerate(order.reshape(-1, self.batch))
        ]
        return np.concatenate(parts)[:count]


@functools.cache
def real_numbers(split: str, count: int, judge: Both = judges.committed) -> dict[str, float]:
    return measure_real(reference(split, count, judge))


def sheet(made: np.ndarray, against: Reference) -> np.ndarray:
    """What was made, the drawing whose labels were asked for, and the training drawing that is nearest."""
    closest = against.train[generation.nearest(made, against.train).row]
    return beside({"made": made, "asked": against.real, "nearest": closest}, groups=4, rows=10)


def _check(made: np.ndarray, asked: emoji_drawings.Labels) -> None:
    wanted = (len(asked.concept), judges.SIZE, judges.SIZE, 3)
    if made.dtype != np.uint8 or made.shape != wanted:
        raise ValueError(
            f"generated pictures must be uint8 {list(wanted)}, one for each label that was asked for, got {made.dtype} "
            f"{list(made.shape)}"
        )
