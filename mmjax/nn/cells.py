"""What each patch of a picture shows, and the box of the thing it belongs to: supervision for every patch at once.

    features [B N D] -heads-> logits [B N C+1], boxes [B N 4]

B batch, N patches in rows from the top left, C concepts; the last class is the ground. A detector in the manner of FCOS
(Tian et al. 2019, arXiv:1904.01355, section 3.1): a patch says how far the edges of its thing are from itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.nn.linear import Linear
from mmjax.nn.outputs import Aux
from mmjax.ops import boxes as box_ops
from mmjax.ops.cross_entropy import softmax_cross_entropy

GROUND, UNNAMED = -1, -2  # labels of cells: nothing is there; what is there has no name here
HALF = 0.15  # side of half a box before anything is learned


@struct.dataclass
class Cells:
    logits: jax.Array  # [B N C+1]
    boxes: jax.Array  # [B N 4] x0, y0, x1, y1 in sides of the picture, not clipped


class CellHeads(nn.Module):
    num_classes: int  # C
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> Cells:  # [B N D], N a square number
        logits = Linear(self.num_classes + 1, True, self.dtype, name="names")(features).astype(jnp.float32)
        edges = Linear(4, True, self.dtype, name="boxes")(features).astype(jnp.float32)
        return Cells(logits, centres(features.shape[1]) + HALF * jnp.array([-1, -1, 1, 1]) + edges)


def centres(count: int) -> jax.Array:
    """[N 4]: the centre of each of N patches, twice, as (x, y, x, y) in [0, 1]."""
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f"cells lie in a square grid, got {count} patches")
    at = (jnp.arange(side) + 0.5) / side
    x, y = jnp.meshgrid(at, at)
    return rearrange(jnp.stack([x, y, x, y]), "c h w -> (h w) c")


def loss(cells: Cells, labels: jax.Array, boxes: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """labels [B h w] int, GROUND or UNNAMED or a concept; boxes [B h w 4], read where there is a thing.

    Cross entropy of the cells that show a thing with a name, and half as much of those that show the ground, which are
    many and soon known; L1 of cells of things, and 1 - GIoU where their box is not reversed. Each is a mean over the
    global batch.
    """
    labels, boxes = rearrange(labels, "b h w -> b (h w)"), rearrange(boxes, "b h w c -> b (h w) c")
    classes = jnp.where(labels == GROUND, cells.logits.shape[-1] - 1, labels)
    things = labels != GROUND
    named = things & (labels != UNNAMED)
    mean = lambda x, where: jnp.where(where, x, 0).sum() / jnp.maximum(where.sum(), 1)  # noqa: E731
    nll = softmax_cross_entropy(cells.logits, jnp.maximum(classes, 0))
    names = mean(nll, named) + 0.5 * mean(nll, ~things)
    l1 = mean(jnp.abs(cells.boxes - boxes).mean(-1), things)
    # A reversed box has no overlap; were its edges sorted first, nothing but L1 would turn it round, and boxes stay so.
    told = things & box_ops.valid(cells.boxes)
    unit = jnp.array([0.0, 0.0, 1.0, 1.0])
    found, wanted = (jnp.where(told[..., None], x, unit) for x in (cells.boxes, boxes))
    giou = mean(1 - box_ops.giou(found, wanted), told)
    right = jnp.argmax(cells.logits, -1) == classes
    accuracy = mean(right.astype(jnp.float32), named)
    return names + 2 * l1 + giou, {"names": names, "l1": l1, "giou": giou, "accuracy": accuracy}


@dataclasses.dataclass(frozen=True)
class Beside:
    """The heads as an auxiliary task of a model that knows nothing of them: their parameters are params["cells"].

    beside = Beside(num_classes, width)
    Task(model, loss, init=beside.started(init_model))     # and at the end of the loss:
    return beside.added(total, metrics, variables, features, batch)
    """

    num_classes: int  # C
    width: int  # D of the features
    weight: float = 1.0

    def added(
        self, total: jax.Array, metrics: Mapping, variables: dict, features: jax.Array, batch: dict
    ) -> tuple[jax.Array, Aux]:
        """A model's own loss and metrics with those of the heads. features [B N D]; batch: cells [B h w] and cell_boxes
        [B h w 4], as in `loss`."""
        told = CellHeads(self.num_classes).apply({"params": variables["params"]["cells"]}, features)
        shown, parts = loss(told, batch["cells"], batch["cell_boxes"])
        total = total + self.weight * shown
        return total, Aux({**metrics, "loss": total, "cell_names": parts["names"]})

    def started(self, init: Callable) -> Callable:
        """A Task.init: the variables that `init` makes, with heads, fresh or from `loaded`."""

        def run(model: nn.Module, rng: jax.Array, batch: dict, loaded: dict) -> dict:
            params = dict(loaded.get("params", {}))
            own = params.pop("cells", None)
            rest = {name: x for name, x in loaded.items() if name != "params"}
            variables = init(model, rng, batch, {**rest, "params": params} if params else rest)
            if own is None:
                features = jnp.zeros((1, 1, self.width))
                own = CellHeads(self.num_classes).init(jax.random.fold_in(rng, 1), features)["params"]
            return {**variables, "params": {**variables["params"], "cells": own}}

        return run
