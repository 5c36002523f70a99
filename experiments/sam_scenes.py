"""SAM on scenes of emoji: cuts out whatever is pointed at, drawn by an artist that it never saw.

tiny    seconds: does everything once, learns nothing
small   1,500 steps at 64 pixels from random weights, about 8 minutes on one CPU core; then masks by one point
        and by a box in scenes of Twemoji's drawings, beside all of the picture and the filled box
paper   ViT-H at 1,024 pixels as in appendix A: 90,000 steps of 256 pictures, for `mmjax plan` and pods. The authors
        start from MAE's weights, which are not here, and lower the rate in two steps, where this falls along a cosine

small differs from the paper: patches of 8 pixels, one point that corrects instead of eight, and all three predicted
scores learn (`rank_all`), not that of the best mask alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import augment
from mmjax.data.scene_questions import COMPOSER
from mmjax.data.scenes import Composer, EmojiScenes
from mmjax.evals.automatic_masks import Everything
from mmjax.evals.segmentation_prompted import PromptedMasks
from mmjax.models import sam, vitdet
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task

COLOURS = augment.Augment()  # of each thing in training
CHOICE = (PromptedMasks("validation"),)  # choices are made on validation drawings
HELD_OUT = (PromptedMasks("twemoji"),)  # the held-out artist is read once, at the end


@dataclasses.dataclass(frozen=True)
class EncoderDecay:
    """Layers of the image encoder learn more slowly the further they are from its last; all else at the full rate."""

    factor: float  # of each layer, relative to the next
    config: vitdet.ViTDetConfig

    def __call__(self, path: str, layer: jax.Array | None) -> jax.Array | float:
        if layer is not None:
            run = self.config.runs[int(path.split("run")[1].split("/")[0])]
            return self.factor ** (self.config.depth - run.first - layer)
        return self.factor ** (self.config.depth + 1) if path.startswith("vision/") and "_embed" in path else 1.0


def task(config: sam.SamConfig) -> Task:
    return Task(sam.SAM(config), sam.loss, trainable=sam.TRAINABLE)


def tiny() -> Experiment:
    data = EmojiScenes(COMPOSER, COLOURS)
    every = {"save_every": 2, "eval_every": 4, "log_every": 1}
    return Experiment(task(sam.SamConfig.tiny(64)), data, optim.AdamW(1e-3), steps=4, batch_size=4, **every)


def small() -> Experiment:
    adamw = optim.AdamW(1e-3, warmup=100, weight_decay=0.05, clip=1.0)
    every = {"save_every": 600, "eval_every": 600, "log_every": 20}
    return Experiment(task(sam.small()), EmojiScenes(COMPOSER, COLOURS), adamw, steps=1_500, batch_size=16, **every)


def paper() -> Experiment:
    config = sam.vit_h()
    vision = dataclasses.replace(config.vision, drop_path=0.4)
    config = dataclasses.replace(config, vision=vision, compute=Compute(jnp.bfloat16, remat="full"))
    adamw = optim.CosineAdamW(
        8e-4, warmup=250, end=0.0, weight_decay=0.1, weight_decay_end=0.1, clip=None, scale=EncoderDecay(0.8, vision)
    )  # fmt: skip
    data = EmojiScenes(Composer(size=1024, objects=(1, 16)), COLOURS)
    return Experiment(task(config), data, adamw, steps=90_000, batch_size=256, mesh=MeshShape())


def experiment(size: str) -> Experiment:
    made = {"tiny": tiny, "small": small, "paper": paper}[size]()
    return dataclasses.replace(made, evals=CHOICE, final_evals=HELD_OUT, sample=Everything("twemoji"))
