"""What a frozen vision model knows of where things are, on scenes whose masks are exact.

A model is used through `attend` [B h w 3] -> [B heads N] and `encode_patches` [B h w 3] -> [B N D], data through
`scenes(split, count)` (data/scenes.py). Metrics of a split "twemoji", means over scenes of intersection over union with
all objects together, in pixels:

    twemoji/attention_iou    the patches that the class token looks at most: Caron et al. 2021, section 4.2.2
    twemoji/patch_iou        a linear probe of single patches, fitted on scenes of the training split

Beside each, "_chance" is what calling all of the picture an object scores; twemoji/patch_iou_limit is what a model
would score that knew each patch, and cannot cut it.

B scenes, h pixels along a side, n objects, N patches, D width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from einops import rearrange

from mmjax.evals import features, probe
from mmjax.evals.search import square
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.report import pictures
from mmjax.report.page import CHANCE

SHOWN = 8  # scenes, or heads, of a picture


def most_attended(attention: np.ndarray, mass: float) -> np.ndarray:
    """[... N] -> [... N] bool: the least attended patches are left out as long as they hold at most 1 - mass in all."""
    order = np.argsort(attention, axis=-1, kind="stable")
    ascending = np.take_along_axis(attention, order, -1)
    left_out = np.cumsum(ascending / ascending.sum(-1, keepdims=True), -1)
    kept = np.empty(attention.shape, bool)
    np.put_along_axis(kept, order, left_out > 1 - mass, -1)
    return kept


def square_side(count: int) -> int:
    """Patches along a side of N."""
    side = round(count**0.5)
    if side**2 != count:
        raise ValueError(f"{count} patches are no square; segmentation reads square scenes, so give it those")
    return side


def filled(box: Sequence[float], height: int, width: int) -> np.ndarray:
    """x0, y0, x1, y1 in [0, 1] -> [height width] bool, the pixels whose middle lies inside."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    return ((box[1] < y) & (y < box[3]))[:, None] & (box[0] < x) & (x < box[2])


def as_pixels(patches: np.ndarray, size: int) -> np.ndarray:
    """[... N] -> [... size size]: each patch a block."""
    side = square_side(patches.shape[-1])
    cells = np.arange(size) * side // size
    grid = rearrange(patches, "... (h w) -> ... h w", h=side)
    return grid[..., cells, :][..., cells]


def iou(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[... h w] bool each -> [...]; nothing found where nothing is wanted counts as right."""
    both, either = ((found & wanted).sum((-1, -2)), (found | wanted).sum((-1, -2)))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def shares(masks: np.ndarray, count: int) -> np.ndarray:
    """masks [B h h] bool -> [B count]: how much of each patch is covered."""
    side = square_side(count)
    return rearrange(masks, "b (h p) (w q) -> b (h w) p q", h=side, w=side).mean((-1, -2))


def scored(name: str, found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """found and wanted [B h w] bool."""
    return {
        name: float(iou(found, wanted).mean()),
        f"{name}{CHANCE}": float(iou(np.ones_like(wanted), wanted).mean()),
    }


@dataclasses.dataclass(frozen=True)
class Attention:
    """Of all heads, the one that fits the scenes of the training split best; all of them are in the picture."""

    split: str
    train: str = "train"
    mass: float = 0.6  # of a head's attention, that its mask holds
    count: int = 128  # scenes

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        scores = []
        for split in (self.train, self.split):
            scene = data.scenes(split, self.count)
            attention = features.encode(model, variables, {"images": scene.images}, "attend")  # [B heads N]
            found, wanted = self.masks(attention, scene.images.shape[1]), scene.masks.any(1)
            scores.append(iou(found, wanted[:, None]).mean(0))
        best = int(np.argmax(scores[0]))
        sheet = maps(scene.images, attention, wanted, "objects")
        caption = f"Where the class token looks; head {best + 1} is measured."
        return Result(
            scored(f"{self.split}/attention_iou", found[:, best], wanted),
            {f"{self.split} attention": pictures.captioned(sheet, caption)},
        )

    def masks(self, attention: np.ndarray, size: int) -> np.ndarray:
        """[B heads N] -> [B heads size size] bool."""
        return as_pixels(most_attended(attention, self.mass), size)


def maps(images: np.ndarray, attention: np.ndarray, masks: np.ndarray | None = None, title: str = "") -> np.ndarray:
    """Some images [B h h 3], beside each its mask [B h h], where given, and where each head looks [B heads N]."""
    side, heads = round(attention.shape[-1] ** 0.5), min(attention.shape[1], SHOWN)
    rows = []
    for b in features.spread(len(images), SHOWN):
        grids = rearrange(attention[b, :heads], "k (h w) -> k h w", h=side)
        mask = [] if masks is None else [pictures.heat(masks[b].astype(float))]
        rows.append([images[b], *mask, *(pictures.heat(grid) for grid in grids)])
    titles = ["picture", *([] if masks is None else [title]), *(f"head {k + 1}" for k in range(heads))]
    return pictures.contact_sheet(rows, titles)


@dataclasses.dataclass(frozen=True)
class PatchProbe:
    """Logistic regression that tells patches of objects from patches of the ground; a patch is whose most of it is."""

    split: str
    train: str = "train"
    count: int = 256  # scenes of each split
    l2: float = 1e-3  # on features that are scaled to mean 0 and deviation 1
    steps: int = 50  # of L-BFGS

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        train, test = (data.scenes(split, self.count) for split in (self.train, self.split))
        x, y = (
            features.encode(model, variables, {"images": scene.images}, "encode_patches") for scene in (train, test)
        )  # [B N D] each
        inside, wanted = shares(train.masks.any(1), x.shape[1]) > 0.5, test.masks.any(1)
        rows, asked = (rearrange(one, "b n d -> (b n) d") for one in (x, y))
        scores = probe.scores(rows, inside.ravel().astype(np.int32), asked, 2, self.l2, self.steps)
        scores = rearrange(scores, "(b n) c -> b n c", n=y.shape[1])
        size, name = test.images.shape[1], f"{self.split}/patch_iou"
        found = as_pixels(scores[..., 1] > scores[..., 0], size)
        limit = as_pixels(shares(wanted, y.shape[1]) > 0.5, size)
        metrics = scored(name, found, wanted) | {f"{name}_limit": float(iou(limit, wanted).mean())}
        shown = features.spread(len(found), SHOWN)
        rows = [test.images[shown], *([pictures.heat(x[b].astype(float)) for b in shown] for x in (wanted, found))]
        sheet = pictures.contact_sheet(rows, [""] * len(shown))
        caption = "Scenes, their objects, and the patches that a linear probe takes for a part of one."
        return Result(metrics, {f"{self.split} patches": pictures.captioned(sheet, caption)})


@dataclasses.dataclass(frozen=True)
class Look:
    """An Experiment's `sample`: where the class token looks in a person's pictures, or in scenes of a split."""

    split: str

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if request.texts:
            raise ValueError("this model knows no words: ask with --image FILE, or with nothing for scenes of the data")
        images = data.scenes(self.split, SHOWN).images
        if request.images:
            images = np.stack([square(image, images.shape[1]) for image in request.images])
        attention = features.encode(model, variables, {"images": images}, "attend")
        entropy = -(attention * np.log(np.maximum(attention, 1e-30))).sum(-1).mean(0)
        lines = [f"head {k + 1}: looks at about {np.exp(x):.1f} patches" for k, x in enumerate(entropy)]
        return Answer("\n".join(lines), {"attention": maps(images, attention)})
