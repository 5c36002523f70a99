"""Do encoders of one kind of data each come to agree? The Platonic ladder: python -m experiments._ladder [--record]

    ladder_images-*    networks that saw drawings, and no word of them
    ladder_captions-*  networks that read names and keywords, and saw no drawing

Huh et al. 2024, arXiv:2405.07987, section 3, expect that such networks come to say alike of what is near to what, the
more so with size, data and tasks. Here every pair of a ladder is compared on the pack's concepts, drawn by an artist
whom no network saw, and on the held-out concepts alone, whose captions no network read either:

    drawings, captions -layers-> [N L D], [N M E] -best pair of layers-> mutual k-NN (k = 10), unbiased CKA
    rows of the captions permuted -the same search-> what chance gives: null mean, p
    the same networks before their first step -the same search-> what architecture and words shared by captions give

    rise   Spearman's correlation of the alignment with the place on the ladder of one side, mean over the other side's
    p      of the rise: the share of all orders of the runs that rise as much; at least 1/24 for 4 runs, 1/6 for 3

One seed each: a rise that is not one of all pairs may be one of seeds. Rows of the records: a rung of both sides
(xs, s, m, l; 16th, quarter), m with fewer or more tasks of images; then size, data, tasks, with all pairs and rises.
The runs: python -m experiments._chapters ladder. At small, the study takes about 7 CPU minutes.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments import _study
from mmjax.data import emoji, emoji_text
from mmjax.evals import layers, platonic, platonic_null
from mmjax.evals.platonic_null import Calibrated
from mmjax.nn.outputs import Result
from mmjax.report import page, pictures, plots, results

SEEN, HELD_OUT = "twemoji", "twemoji_concepts"
METRICS = {one.name.split("@")[0]: one for one in platonic.metrics(10) if one.name in ("mutual_knn@10", "unbiased_cka")}
FIRST = "mutual_knn"
PERMUTATIONS = {"mutual_knn": 200, "unbiased_cka": 50}  # all pairs of rows take ten times as long as their neighbours


class Axis(NamedTuple):
    """What varies: how the sizes of the runs end, from the least to the most; "" is m."""

    images: tuple[str, ...]
    captions: tuple[str, ...]
    places: tuple[float, ...]  # of the images' runs, on the curves
    unit: str

    @property
    def both(self) -> bool:
        """Whether the two sides vary alike."""
        return self.images == self.captions

    @property
    def rungs(self) -> list[tuple[str, str]]:
        """Both sides at the same place, or m where the captions' side does not vary."""
        return list(zip(self.images, self.captions if self.both else ("",) * len(self.images), strict=True))


SIZES = ("_xs", "_s", "", "_l")
AXES = {
    "size": Axis(SIZES, SIZES, (32, 64, 128, 192), "width of both networks"),
    "data": Axis(("_16th", "_quarter", ""), ("_16th", "_quarter", ""), (1 / 16, 1 / 4, 1), "share of the concepts"),
    "tasks": Axis(("_1task", "", "_3tasks"), SIZES, (1, 2, 3), "tasks on the images' side"),
}


def short(end: str) -> str:
    return end.removeprefix("_") or "m"


def at_first(ends: Sequence[str]) -> tuple[str, ...]:
    """The runs of the same networks before training: other data and tasks begin with the network that m begins with."""
    return tuple(end * (end in SIZES) for end in ends)


# Features and scores


class Encoders:
    """The runs of a ladder: each is read, and each pair compared, when it is first asked for."""

    def __init__(self, runs: Path, size: str):
        self.runs, self.size = runs, size

    @functools.cache  # noqa: B019  as long as the study
    def features(self, stem: str, end: str, trained: bool, split: str) -> list[jax.Array]:
        """L x [N D] of length 1."""
        run = self.runs / f"{stem}-{self.size}{end}"
        model, variables, data = (_study.load if trained else _study.untrained)(run)
        concepts = emoji.pack().split(split)[1]
        if stem == "ladder_images":
            return platonic.prepare(layers.of_images(model, variables, data.pairs(split).images))
        order = np.arange(emoji.MOST_KEYWORDS)
        texts = [emoji_text.sentence(emoji.pack().concepts[n], order) for n in concepts]
        return platonic.prepare(layers.of_texts(model, variables, data.tokenize(texts)))

    def sides(self, images: str, captions: str, trained: bool, split: str) -> list[list[jax.Array]]:
        pair = (("ladder_images", images), ("ladder_captions", captions))
        return [self.features(*one, trained, split) for one in pair]

    @functools.cache  # noqa: B019
    def compared(self, images: str, captions: str, trained: bool = True, split: str = SEEN) -> dict[str, Calibrated]:
        x, y = self.sides(images, captions, trained, split)
        orders = platonic_null.orders(jax.random.key(0), len(x[0]), max(PERMUTATIONS.values()))
        return {
            name: platonic_null.measure([metric], x, y, orders[: PERMUTATIONS[name]])[0]
            for name, metric in METRICS.items()
        }

    def interval(self, images: str, captions: str) -> tuple[float, float]:
        """Of the first metric, between the pair of layers that is best on all rows."""
        i, j = self.compared(images, captions)[FIRST].pair
        x, y = self.sides(images, captions, True, SEEN)
        return platonic_null.interval(METRICS[FIRST], x[i], y[j], jax.random.key(1))

    def grid(self, axis: Axis, metric: str, trained: bool = True) -> np.ndarray:  # [images captions]
        return np.array([[self.compared(a, b, trained)[metric].score for b in axis.captions] for a in axis.images])


def rise(grid: np.ndarray) -> tuple[float, float]:
    """[R C] -> Spearman's correlation of columns with the order of the rows, and the share of orders that reach it."""
    ranks = np.asarray(jax.scipy.stats.rankdata(grid, axis=0), np.float64)
    ranks -= ranks.mean(0)
    ranks /= np.maximum(np.linalg.norm(ranks, axis=0), 1e-9)  # a column of equal scores correlates with nothing
    order = np.arange(len(grid)) - (len(grid) - 1) / 2
    orders = np.array(list(itertools.permutations(order / np.linalg.norm(order))))  # the first is the order itself
    means = (orders @ ranks).mean(1)
    return float(means[0]), float(np.mean(means >= means[0] - 1e-9))


# What is said of them


def of_rung(encoders: Encoders, images: str, captions: str) -> dict[str, float]:
    """A pair of runs: scores beside what chance gives, before training, and on concepts that no network was taught."""
    said = {}
    ways = {"": (True, SEEN), "untrained/": (False, SEEN), "held_out_concepts/": (True, HELD_OUT)}
    for prefix, way in ways.items():
        ends = (images, captions) if way[0] else at_first((images, captions))
        for metric, one in encoders.compared(*ends, *way).items():
            numbers = {"": one.score, page.CHANCE: float(one.null.mean()), "_p": one.p, "_last": one.last}
            said |= {f"{prefix}{metric}{name}": value for name, value in numbers.items()}
    low, high = encoders.interval(images, captions)
    return said | {f"{FIRST}_low": low, f"{FIRST}_high": high}


def of_axis(encoders: Encoders, axis: Axis) -> dict[str, float]:
    said = {}
    for metric in METRICS:
        grids = {"": encoders.grid(axis, metric)}
        if set(axis.images) <= set(SIZES):
            grids["untrained/"] = encoders.grid(axis, metric, trained=False)
            grids["gained/"] = grids[""] - grids["untrained/"]
        for prefix, grid in grids.items():
            sides = {"images": grid, "captions": grid.T}
            if not axis.both:
                del sides["captions"]
            for side, scores in sides.items():
                name = f"{prefix}{metric}_rise_with_{side}"
                said[name], said[f"{name}_p"] = rise(scores)
                said[f"{name}{page.CHANCE}"] = 0.0
        for (a, b), score in zip(itertools.product(axis.images, axis.captions), grids[""].ravel(), strict=True):
            said[f"images_{short(a)}-captions_{short(b)}/{metric}"] = float(score)
    return said


def label(text: str) -> np.ndarray:
    """A picture of a word."""
    sheet, draw = pictures.canvas(46, 46)
    draw.text((23, 23), text, pictures.INK, pictures.font(12), anchor="mm")
    return np.asarray(sheet)


def matrix(grid: np.ndarray, axis: Axis, what: str) -> np.ndarray:
    rows = np.stack([label(short(end)) for end in axis.images])
    picture = pictures.matrix(100 * grid, rows, [f"captions {short(end)}" for end in axis.captions])
    return pictures.captioned(picture, f"Rows: networks of images. 100 x {what}")


def curves(encoders: Encoders, axis: Axis) -> np.ndarray:
    """One panel for each metric: a line for each run of the other side, or one for both sides together."""
    lines = {f"captions {short(b)}": [(a, b) for a in axis.images] for b in axis.captions}
    lines = {"trained": axis.rungs} if axis.both else lines
    panels = {}
    for metric in METRICS:
        found = {name: [encoders.compared(*one)[metric] for one in ends] for name, ends in lines.items()}
        before = [encoders.compared(*at_first(ends), trained=False)[metric] for ends in axis.rungs]
        panels[f"{metric}, best pair of layers"] = [
            plots.Series(name, axis.places, [x.score for x in line], np.mean([x.null.mean() for x in line]).item())
            for name, line in {**found, "untrained": before}.items()
        ]
    return plots.curves(panels, x=axis.unit)


def printed(encoders: Encoders, axis: Axis) -> str:
    lines = [["images", *(f"captions {short(end)}" for end in axis.captions)]]
    for a in axis.images:
        found = [encoders.compared(a, b)[FIRST] for b in axis.captions]
        lines.append([short(a), *(f"{x.score:.3f} (chance {x.null.mean():.3f}, p {x.p:.3f})" for x in found)])
    return results.markdown(lines)


def measure(runs: Path, size: str, axes: Mapping[str, Axis] = AXES) -> dict[str, Result]:
    encoders, found = Encoders(runs, size), {}
    for axis in axes.values():
        for ends in axis.rungs:
            found.setdefault(short(ends[0]), Result(of_rung(encoders, *ends)))  # m is on each axis
    for name, axis in axes.items():
        print(f"{FIRST} by {name}\n{printed(encoders, axis)}", flush=True)
        drawn = {f"{metric} of all pairs": matrix(encoders.grid(axis, metric), axis, metric) for metric in METRICS}
        found[name] = Result(of_axis(encoders, axis), {"alignment": curves(encoders, axis), **drawn})
    return found


if __name__ == "__main__":
    _study.main("ladder", __doc__, measure)
