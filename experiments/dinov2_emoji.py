"""DINOv2 on the emoji pack: as dino_emoji, and the student also has to say what hides behind its masks.

tiny    seconds: does everything once, learns nothing
small   about 8 minutes on one of 2 CPU cores, then the numbers of dino_emoji (README)
paper   ViT-g/14 at 224 pixels, 625,000 steps of global batches of 3,072 (facebookresearch/dinov2, train/vitg14.yaml;
        83.5 % k-NN on ImageNet-1k there): for `mmjax plan` and pods
"""

import dataclasses
import math

import jax.numpy as jnp

from mmjax.data import multicrop
from mmjax.data.emoji_views import EmojiViews
from mmjax.data.masking import BlockMasks
from mmjax.evals.embedding_map import EmbeddingMap
from mmjax.evals.knn import KNN, Nearest
from mmjax.evals.patch_map import PatchMap
from mmjax.evals.probe import LinearProbe
from mmjax.evals.segmentation import Attention, Look, PatchProbe
from mmjax.models import dinov2, vit
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
EPOCH = 1_250  # what the original calls an epoch, in steps


def task(config: dinov2.DINOv2Config, momentum: float, steps: int) -> Task:
    """The teacher follows the student by a momentum that rises to 1."""
    follow = optim.ema("params", "teacher", optim.cosine(momentum, 1.0, steps))
    init = optim.with_copy("teacher")
    return Task(dinov2.DINOv2(config), dinov2.loss, init=init, after_update=follow, serve="teacher")


def masks(config: dinov2.DINOv2Config) -> BlockMasks:
    side = config.vision.image_size // config.vision.patch_size
    return BlockMasks(grid=side, group=config.group)


def optimizer(peak: float, warmup: int, frozen: int, depth: int) -> optim.CosineAdamW:
    return optim.CosineAdamW(
        peak, warmup, weight_decay_end=0.2, clipping=optim.clip_parts, frozen_steps=frozen, moments_wait=False,
        scale=optim.LayerDecay(1.0, depth, patches=0.2),
    )  # fmt: skip


def tiny() -> Experiment:
    config = dinov2.DINOv2Config.tiny()
    crops = multicrop.dinov2(global_size=32, local_size=16, local_count=2)
    adamw = optimizer(1e-3, warmup=2, frozen=2, depth=config.vision.depth)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1}
    return Experiment(task(config, 0.99, 8), EmojiViews(crops, masks(config)), adamw, steps=8, batch_size=16, **every)


def small() -> Experiment:
    steps, epoch = 1_500, 118
    # Milder and fewer views than published, as a twentieth of a drawing of 32 pixels shows nothing; sharper targets and
    # a stronger push apart: without it, features of a network this young all lie along three directions.
    small = dataclasses.replace(dinov2.small(), teacher_temperature=(0.03, 0.03), koleo_weight=0.3)
    config = dataclasses.replace(small, compute=Compute(unroll=True))
    # Scenes twice as large as the views, so that attention has 8 x 8 places and objects are as large as in training.
    data = EmojiViews(multicrop.small(), masks(config), scene_size=64)
    adamw = optim.CosineAdamW(
        1e-3, epoch, clipping=optim.clip_parts, frozen_steps=epoch, moments_wait=False, weight_decay_end=0.2
    )
    every = {"save_every": 250, "eval_every": 500, "log_every": 20}
    return Experiment(task(config, 0.98, steps), data, adamw, steps, batch_size=64, **every)


def paper() -> Experiment:
    steps, batch = 500 * EPOCH, 3_072
    vision = dataclasses.replace(dinov2.vit_g14(image_size=224), drop_path=0.4, drop=vit.drop_subset)
    compute = Compute(jnp.bfloat16, remat="full")
    config = dinov2.DINOv2Config(vision, ramp=30 * EPOCH, compute=compute)
    adamw = optimizer(2e-4 * math.sqrt(batch / 1_024), warmup=80 * EPOCH, frozen=EPOCH, depth=vision.depth)
    data, mesh = EmojiViews(multicrop.dinov2(), masks(config)), MeshShape(fsdp=16)
    return Experiment(task(config, 0.994, steps), data, adamw, steps, batch, mesh=mesh)


def experiment(size: str) -> Experiment:
    made = {"tiny": tiny, "small": small, "paper": paper}[size]()
    return dataclasses.replace(made, evals=CHOICE, final_evals=HELD_OUT, sample=Look("twemoji"))
