"""How a picture comes about: what it looks like after each step of drawing it, as a strip and as an animation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmjax.evals import features
from mmjax.nn.outputs import Result
from mmjax.report import pictures


@dataclasses.dataclass(frozen=True)
class Progress:
    """An eval without numbers. Labels are those of drawings of a split, spread evenly over it; nobody picks pictures.

    progress: (model, variables, rng, label [B K]) -> uint8 [S B H W 3], the pictures after each of S steps, under jit.
    Reads data.drawings and data.label.
    """

    progress: Callable
    split: str = "validation"
    count: int = 8
    most: int = 12  # steps shown, spread evenly

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """The pictures depend on `rng`."""
        images, labels = data.drawings(self.split)
        rows = features.spread(len(images), self.count)
        label = data.label(labels)[rows]
        steps = jax.jit(lambda *args: self.progress(model, *args))(variables, rng, label)
        steps = np.asarray(steps)[features.spread(len(steps), self.most)]
        strip = pictures.contact_sheet(np.swapaxes(steps, 0, 1), [""] * len(steps), 64)
        half = -(-len(rows) // 2)
        moving = [
            pictures.contact_sheet([step[i : i + half] for i in range(0, len(rows), half)], [""] * half, 96)
            for step in steps
        ]
        return Result({}, {f"{self.split} step by step": strip, f"{self.split} drawn": np.stack(moving)})
