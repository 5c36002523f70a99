"""The ids that a tokenizer of pictures writes for a person's picture."""

import dataclasses
from typing import Any

import jax
import numpy as np

from mmjax.nn.outputs import Answer, Request
from mmjax.report import pictures


@dataclasses.dataclass(frozen=True)
class TellIds:
    """An Experiment's `sample`, of a model with `encode`: images [B H W 3] -> ids [B Q]. Pictures are brought to
    data.image_size pixels on white."""

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if not request.images:
            raise ValueError("there is no picture to read: give --image FILE")
        images = np.stack([np.asarray(pictures.thumbnail(image, data.image_size)) for image in request.images])
        ids = jax.jit(lambda variables, images: model.apply(variables, images, method="encode"))(variables, images)
        return Answer("\n".join(f"picture {n + 1}: {' '.join(map(str, row))}" for n, row in enumerate(np.asarray(ids))))
