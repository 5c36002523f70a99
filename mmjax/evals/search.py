"""Asking an image-text model: the pictures nearest to a sentence, or how well sentences fit a picture.

An Experiment's `sample`. Pictures are searched in a split of the data; a person's own picture is compared with the
texts that come with it, or with all names of the split where there are none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mmjax.evals import features
from mmjax.nn.outputs import Answer, Request
from mmjax.report import pictures


def square(image: np.ndarray, size: int) -> np.ndarray:
    """[H W 3] uint8 -> [size size 3]: the whole picture, centred on white."""
    return np.asarray(pictures.thumbnail(image, size))


def probabilities(cosines: np.ndarray, scale: float) -> np.ndarray:  # [... C] -> [... C]
    """Softmax of scale * cosine: how CLIP says that a text belongs to an image, were the texts all there are."""
    logits = scale * (cosines - cosines.max(axis=-1, keepdims=True))
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def chances(cosines: np.ndarray, params: Mapping) -> np.ndarray:  # [... C] -> [... C]
    """That a text belongs to an image: of CLIP, if one of them does; of SigLIP, whatever the others say."""
    scale = float(np.exp(params["logit_scale"]))
    if "logit_bias" not in params:
        return probabilities(cosines, scale)
    return 1 / (1 + np.exp(-(scale * cosines + float(params["logit_bias"]))))


@dataclasses.dataclass(frozen=True)
class Search:
    split: str  # whose pictures are searched
    shown: int = 6

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if not request.texts and not request.images:
            raise ValueError("there is nothing to search for: give texts, or an image, or both")
        pairs = data.pairs(self.split)
        if request.images:
            return self._describe(model, variables, request, data, request.texts or pairs.names)
        texts = features.encode_texts(model, variables, data.tokenize, request.texts)  # [Q E]
        scores = texts @ features.encode_images(model, variables, pairs.images).T  # [Q N]
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.shown]
        lines, rows = [], []
        for text, nearest, score in zip(request.texts, best, scores, strict=True):
            lines += [text, *(f"  {score[n]:+.3f}  {pairs.captions[n]}" for n in nearest)]
            rows.append(pictures.Row(text, pairs.images[nearest], np.zeros(len(nearest), bool)))
        return Answer("\n".join(lines), {"nearest": pictures.gallery(rows, columns=1)})

    def _describe(self, model: Any, variables: dict, request: Request, data: Any, texts: tuple[str, ...]) -> Answer:
        size = data.image_size
        images = np.stack([square(image, size) for image in request.images])
        cosines = features.encode_images(model, variables, images) @ (
            features.encode_texts(model, variables, data.tokenize, texts).T
        )
        lines = []
        for row in chances(cosines, variables["params"]):
            best = np.argsort(-row, kind="stable")[: max(self.shown, len(request.texts))]
            lines += [f"  {row[n]:6.1%}  {texts[n]}" for n in best]
        return Answer("\n".join(lines))
