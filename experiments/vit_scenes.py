"""ViT on scenes: what does each patch show, and how far are the edges of its thing? What LLaVA and its heirs see with.

tiny    seconds: does everything once, learns nothing
small   about 9 minutes on one CPU core; small_200 with 200 concepts
paper   ViT-L/14 at 224 pixels: for `mmjax plan` and pods

Trained on scenes of seven artists; the numbers are of scenes by an artist it never saw. Layouts are composed, pixels
are the artists' own.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.data.scene_questions import COMPOSER, SceneQuestions
from mmjax.evals.cells import CellNames, LookAtCells
from mmjax.models import llava, vit
from mmjax.nn import cells
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task


class SceneEncoder(nn.Module):
    """A ViT, and what its patches are asked."""

    config: vit.ViTConfig
    concepts: int
    compute: Compute = Compute()

    def setup(self):
        self.vision = vit.ViT(self.config, self.compute)
        self.cells = cells.CellHeads(self.concepts, self.compute.dtype)

    def __call__(self, images: jax.Array) -> cells.Cells:  # [B H W 3]
        return self.cells(self.vision(images).last_hidden_state)


def loss(model: SceneEncoder, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    value, metrics = cells.loss(model.apply(variables, batch["images"]), batch["cells"], batch["cell_boxes"])
    return value, Aux({"loss": value, **metrics})


def experiment(size: str) -> Experiment:
    steps, batch, concepts = {
        "tiny": (8, 8, 16), "small": (3_000, 32, 64), "small_200": (3_000, 32, 200), "paper": (100_000, 1024, 600),
    }[size]  # fmt: skip
    sees = llava.of_size("tiny" if size == "tiny" else "small", 600, 0)
    config, composer, compute = sees.vision, COMPOSER, sees.compute
    if size == "paper":
        config = dataclasses.replace(vit.vit_l(14), class_token=False, pool=vit.patch_mean)
        composer = dataclasses.replace(COMPOSER, size=224, objects=(1, 6))
        compute = Compute(jnp.bfloat16, remat="full")
    data = SceneQuestions(
        vocabulary=concepts, composer=composer, image_tokens=0, length=16, kinds=(), places=1,
        cells=config.image_size // config.patch_size,
    )  # fmt: skip
    model = SceneEncoder(config, concepts, compute)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 1_000}
    return Experiment(
        Task(model, loss), data, optim.Muon(3e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch,
        evals=(CellNames("validation"),), final_evals=(CellNames("twemoji"),), sample=LookAtCells("twemoji"), **every,
    )  # fmt: skip
