"""Was the right picture drawn, where the true one was never seen? Of pairs of a concept and an artist that are known
from other pairs only: data/emoji_pictures.py's split "validation".

    label (concept, artist) -draw-> picture, beside
        the true drawing        by this artist, never seen
        another artist's        of the same concept, in training: what a copy would show
        the nearest             of all training drawings, by pixels

Metrics, by the features of judges A and B ("_a", "_b"; cosine distance) and by pixels (root mean square, of [0, 1]):
    validation/to_true_a            mean distance of what was drawn to the true drawing
    validation/other_to_true_a      of another artist's drawing to it: to be beaten by more than a copy
    validation/nearest_to_true_a    of the training drawing that is nearest to what was drawn
    validation/closer_than_copy_a   the share that is closer to the true drawing than another artist's is
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmjax.data import emoji_drawings
from mmjax.evals import features, generation
from mmjax.evals.generated import Generated
from mmjax.evals.judges import Judge, committed, look
from mmjax.evals.reconstruction import beside
from mmjax.nn.outputs import Result


def others(labels: emoji_drawings.Labels, trained: emoji_drawings.Labels, seed: int = 0) -> np.ndarray:
    """[N] for each row of labels a row of `trained` with its concept, by chance; -1 where nobody else drew it."""
    rng, found = np.random.default_rng(seed), np.full(len(labels.concept), -1)
    for n, concept in enumerate(labels.concept):
        rows = np.flatnonzero(trained.concept == concept)
        if len(rows):
            found[n] = rng.choice(rows)
    return found


def root_mean_square(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint8 [N H W 3] twice -> [N] of [0, 1]."""
    return np.sqrt(np.mean((a.astype(np.float32) / 255 - b.astype(np.float32) / 255) ** 2, axis=(1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class NeverDrawn:
    """draw: (model, variables, rng, label) -> uint8 [B 32 32 3], under jit, `batch` at a time."""

    draw: Callable
    count: int = 500  # pairs at most, spread evenly over the split
    judges: Callable[[], tuple[Judge, Judge]] = committed
    batch: int = 100
    split: str = "validation"

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """The pictures depend on `rng`. Reads data.drawings and data.label."""
        (true, labels), (train, trained) = data.drawings(self.split), data.drawings("train")
        other = others(labels, trained)
        rows = np.flatnonzero(other >= 0)
        rows = rows[features.spread(len(rows), self.count)]
        true, other = true[rows], train[other[rows]]
        made = self._pictures(model, variables, data.label(labels.take(rows)), rng)
        nearest = train[generation.nearest(made, train).row]
        metrics = {}
        for name, apart in zip("ab", map(_by, self.judges()), strict=True):
            metrics |= compared(name, apart, made, true, other, nearest)
        metrics |= compared("pixels", root_mean_square, made, true, other, nearest)
        sheet = beside({"drawn": made, "true": true, "another's": other, "nearest": nearest}, groups=3, rows=12)
        prefixed = {f"{self.split}/{name}": value for name, value in metrics.items()}
        return Result(prefixed, {f"{self.split} never drawn": sheet})

    def _pictures(self, model: Any, variables: dict, label: np.ndarray, rng: jax.Array) -> np.ndarray:
        draw = jax.jit(lambda *args: self.draw(model, *args))
        count = len(label)
        order = np.arange(-(-count // self.batch) * self.batch) % count  # the last batch is filled up
        parts = [
            np.asarray(draw(variables, jax.random.fold_in(rng, n), label[some]))
            for n, some in enumerate(order.reshape(-1, self.batch))
        ]
        return np.concatenate(parts)[:count]


def final_evals(draw: Callable, names: bool, **few: int) -> tuple[Callable, ...]:
    """What an experiment asks of a generator at its end. One that knows names is asked for drawings that it has not
    seen, of known names by known artists; others for drawings by labels of what was learned and of what was held out.
    few: count and batch of each."""
    if names:
        return Generated(draw, "validation", **few), NeverDrawn(draw, **few)
    return tuple(Generated(draw, split, **few) for split in ("train", "concepts", "twemoji"))


def _by(judge: Judge) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The distance of two lots of pictures [N] in a judge's features: 1 - cosine."""

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = (features.unit(look(judge, one)) for one in (a, b))
        return 1 - np.sum(x * y, axis=1)

    return apart


def compared(name: str, apart: Callable, made, true, other, nearest) -> dict[str, float]:
    drawn, copied = apart(made, true), apart(other, true)
    return {
        f"to_true_{name}": float(drawn.mean()),
        f"other_to_true_{name}": float(copied.mean()),
        f"nearest_to_true_{name}": float(apart(nearest, true).mean()),
        f"closer_than_copy_{name}": float(np.mean(drawn < copied)),
    }
