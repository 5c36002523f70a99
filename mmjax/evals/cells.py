"""What the patches of a picture are called, and the boxes that they give their things.

For each thing, the patch that lies most about the middle of what is seen of it is asked. Metrics of a split "twemoji":
    twemoji/name         things whose patch names them rightly, beside twemoji/name_chance, a blind guess
    twemoji/box          things whose patch gives a box that overlaps the true one by more than half
    twemoji/things       how many there were
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from einops import rearrange

from mmjax.data import scene_questions, scene_turns
from mmjax.evals import features, grounding
from mmjax.evals.search import square
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.report import annotate

SHOWN = 12  # pictures in the report


def told(model: Any, variables: dict, images: np.ndarray, batch_size: int = 256) -> Any:
    """The Cells of images [B H W 3], as NumPy."""
    run = jax.jit(model.apply)
    parts = [run(variables, images[n : n + batch_size]) for n in range(0, len(images), batch_size)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def middle(mask: np.ndarray, side: int) -> int:
    """mask [s s] bool -> the patch, of side * side, nearest to the middle of its pixels among those it covers most."""
    shares = rearrange(mask, "(h p) (w q) -> h w (p q)", h=side, w=side).mean(-1)
    y, x = (np.nonzero(mask)[axis].mean() / mask.shape[0] * side - 0.5 for axis in (0, 1))
    rows, columns = np.nonzero(shares >= 0.5 * shares.max())
    best = np.argmin((rows - y) ** 2 + (columns - x) ** 2)
    return int(rows[best] * side + columns[best])


@dataclasses.dataclass(frozen=True)
class CellNames:
    split: str
    count: int = 500  # scenes

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        examples = data.examples(self.split, self.count)
        cells = told(model, variables, np.stack([example.image for example in examples]))
        side, known = round(cells.logits.shape[1] ** 0.5), scene_questions.names(data.vocabulary)
        named, found, wanted = [], [], []
        for b, example in enumerate(examples):
            for thing, mask in zip(example.things, example.masks, strict=True):
                if thing.visible >= scene_turns.CLEAR:
                    cell = middle(mask, side)
                    named.append(known[int(cells.logits[b, cell, :-1].argmax())] == thing.name)
                    found.append(cells.boxes[b, cell].tolist())
                    wanted.append(thing.box)
        boxes = grounding.referring(found, wanted)
        metrics = {
            "name": float(np.mean(named)), f"name{features.CHANCE}": 1 / data.vocabulary, "box": boxes["acc@0.5"],
            "box_iou": boxes["iou"], "things": float(len(named)),
        }  # fmt: skip
        sheet = shown([example.image for example in examples[:SHOWN]], cells, known)
        return Result(
            {f"{self.split}/{name}": value for name, value in metrics.items()}, {f"{self.split} cells": sheet}
        )


def shown(images: list[np.ndarray], cells: Any, known: tuple[str, ...]) -> np.ndarray:
    """Each picture with the box and the name of its surest patches, one for each thing."""
    items = []
    for b, image in enumerate(images):
        chances = np.asarray(jax.nn.softmax(cells.logits[b], axis=-1))
        sure, lines, boxes = 1 - chances[:, -1], [], []
        while sure.max() > 0.5 and len(boxes) < 6:
            cell = int(sure.argmax())
            box = cells.boxes[b, cell]
            boxes.append(box.tolist())
            name = int(chances[cell, :-1].argmax())
            lines.append(annotate.Line(f"{known[name]} {chances[cell, name]:.2f}"))
            shared = grounding.overlaps(list(cells.boxes[b].tolist()), np.tile(box, (len(sure), 1)))
            sure = np.where((shared > 0.4) | (np.arange(len(sure)) == cell), 0, sure)
        items.append(annotate.Card(annotate.annotated(image, boxes), lines))
    return annotate.cards(items, columns=3, words=180)


@dataclasses.dataclass(frozen=True)
class LookAtCells:
    """An Experiment's `sample`: the things that the patches see, in a person's pictures or in scenes of a split."""

    split: str

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if request.texts:
            raise ValueError("this model knows no words: ask with --image FILE, or with nothing for scenes of the data")
        images = [example.image for example in data.examples(self.split, SHOWN)]
        if request.images:
            images = [square(image, data.composer.size) for image in request.images]
        cells = told(model, variables, np.stack(images))
        return Answer(
            f"{len(images)} pictures", {"cells": shown(images, cells, scene_questions.names(data.vocabulary))}
        )
