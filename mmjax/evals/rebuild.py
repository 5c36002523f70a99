"""A person's picture, through a tokenizer and back."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmjax.evals.reconstruction import psnr
from mmjax.nn.outputs import Answer, Request
from mmjax.report import pictures


@dataclasses.dataclass(frozen=True)
class Rebuild:
    """An Experiment's `sample`: each picture beside what its tokens make of it, and their distance.

    rebuild: as in evals.reconstruction.Rebuilt. Reads data.image_size, to which pictures are brought on white.
    """

    rebuild: Callable

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if not request.images:
            raise ValueError("there is nothing to rebuild: give --image FILE")
        images = np.stack([np.asarray(pictures.thumbnail(image, data.image_size)) for image in request.images])
        made, ids = jax.jit(lambda variables, images: self.rebuild(model, variables, images))(variables, images)
        made, lines = np.asarray(made), []
        for n, decibels in enumerate(psnr(images, made)):
            codes = "" if ids is None else f", {len(np.unique(ids[n]))} codes in {np.size(ids[n])} places"
            lines.append(f"picture {n + 1}: {decibels:.1f} dB{codes}")
        rows = list(zip(images, made, strict=True))
        return Answer("\n".join(lines), {"rebuilt": pictures.contact_sheet(rows, ("picture", "rebuilt"), 128)})
