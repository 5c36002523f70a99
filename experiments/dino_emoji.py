"""DINO on the emoji pack: learns from seven artists without any names, is asked about an eighth that it never saw.

tiny    seconds: does everything once, learns nothing
small   about 8 minutes on one of 2 CPU cores, then k-NN and linear probes of Twemoji's subgroups, where its class token
        looks, and which patches a probe takes for an object (numbers, and those of the untrained network: README). Not
        as published: features are pushed apart (`apart`)
paper   ViT-S/16 at 224 pixels, 300 epochs of ImageNet-1k in global batches of 1,024 (facebookresearch/dino, README,
        "boosting DINO performance": 73.3 % k-NN there): for `mmjax plan` and pods
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import multicrop
from mmjax.data.emoji_views import EmojiViews
from mmjax.evals.embedding_map import EmbeddingMap
from mmjax.evals.knn import KNN, Nearest
from mmjax.evals.patch_map import PatchMap
from mmjax.evals.probe import LinearProbe
from mmjax.evals.segmentation import Attention, Look, PatchProbe
from mmjax.models import dino, dinov2
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task

# Choices are made on validation drawings; the held-out artist is read once, at the end.
CHOICE = (KNN("validation"), Attention("validation"))
HELD_OUT = (
    KNN("twemoji"), LinearProbe("twemoji"), Attention("twemoji"), PatchProbe("twemoji"), EmbeddingMap("twemoji"),
    Nearest("twemoji"), PatchMap("twemoji"),
)  # fmt: skip
EPOCH = 1_251  # batches of 1,024 in ImageNet-1k


def task(model: dino.DINO, momentum: float, steps: int) -> Task:
    """The teacher follows the student by a momentum that rises to 1."""
    follow = optim.ema("params", "teacher", optim.cosine(momentum, 1.0, steps))
    return Task(model, dino.loss, init=optim.with_copy("teacher"), after_update=follow, serve="teacher")


def tiny() -> Experiment:
    crops = multicrop.MultiCrop(global_size=32, local_size=16, local_count=2)
    adamw = optim.CosineAdamW(1e-3, warmup=2, frozen_steps=2)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1}
    model = dino.DINO(dino.DINOConfig.tiny())
    return Experiment(task(model, 0.99, 8), EmojiViews(crops), adamw, steps=8, batch_size=16, **every)


def apart(features: jax.Array) -> jax.Array:
    """DINOv2's push away from the nearest image. The published loss alone needs far more steps to leave the three
    directions in which features of so young a network lie: `--set task.model.config.spread=none` shows it."""
    return 0.3 * dinov2.koleo(features, group=16)


def small() -> Experiment:
    steps, epoch = 1_500, 118
    sharp = dataclasses.replace(dino.small(), teacher_temperature=(0.03, 0.03), spread=apart)
    config = dataclasses.replace(sharp, epoch=epoch, compute=Compute(unroll=True))
    # Scenes twice as large as the views, so that attention has 8 x 8 places and objects are as large as in training.
    data = EmojiViews(multicrop.small(), scene_size=64)
    adamw = optim.CosineAdamW(1e-3, warmup=epoch, frozen_steps=epoch, weight_decay_end=0.2)
    every = {"save_every": 500, "eval_every": 500, "log_every": 20}
    return Experiment(task(dino.DINO(config), 0.98, steps), data, adamw, steps, batch_size=64, **every)


def paper() -> Experiment:
    steps = 300 * EPOCH
    compute = Compute(jnp.bfloat16, remat="full")
    config = dino.DINOConfig(dino.vit_s16(), teacher_temperature=(0.04, 0.07), ramp=30, epoch=EPOCH, compute=compute)
    adamw = optim.CosineAdamW(5e-4 * 1_024 / 256, warmup=10 * EPOCH, frozen_steps=EPOCH)
    data = EmojiViews(multicrop.MultiCrop())
    return Experiment(task(dino.DINO(config), 0.996, steps), data, adamw, steps, batch_size=1_024, mesh=MeshShape())


def experiment(size: str) -> Experiment:
    made = {"tiny": tiny, "small": small, "paper": paper}[size]()
    return dataclasses.replace(made, evals=CHOICE, final_evals=HELD_OUT, sample=Look("twemoji"))
