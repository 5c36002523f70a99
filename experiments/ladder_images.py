"""DINO on drawings alone, in four sizes, from less data and with more tasks: one side of the Platonic ladder.

Does what a network makes of pictures come closer to what another makes of captions (ladder_captions), though neither
sees the other's, as Huh et al. 2024 (arXiv:2405.07987, section 3) say, with size, data and tasks? `_ladder` asks.
All have one network but for its size, the views of dino_emoji but fewer, and as many steps. Of each base size there are

    BASE_xs, BASE_s, BASE, BASE_l       width 32, 64, 128, 192
    BASE_16th, BASE_quarter             BASE from a share of the concepts
    BASE_2tasks, BASE_3tasks            BASE that also learns what is hidden (iBOT), and also how far a view was turned

Section 3.1 of the paper expects fewer networks to be good at more tasks, and so to be more alike. Tasks vary here, not
on captions: those without labels are well known for pictures (Zhou et al. 2022, arXiv:2111.07832; Gidaris et al. 2018,
arXiv:1803.07728), and leave the first one as it is. A task comes with its views: 3 tasks see one more of each picture.

tiny    seconds: does everything once, learns nothing
small   an estimated 1 to 3 minutes each on 2 CPU cores; k-NN of validation drawings by subgroup
paper   DINOv2's ViT-S, B, L and g, and the views and steps of dinov2_emoji's: for `mmjax plan` and pods
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.data import multicrop
from mmjax.data.emoji_views import EmojiViews
from mmjax.data.masking import BlockMasks
from mmjax.evals.knn import KNN
from mmjax.models import dino, dinov2, vit
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task

SIZES = {"xs": (32, 2, 2), "s": (64, 3, 4), "": (128, 4, 4), "l": (192, 6, 6)}  # width, depth, heads
SHARES = {"16th": 1 / 16, "quarter": 1 / 4}  # of the concepts
TASKS = {"2tasks": 2, "3tasks": 3}
HEAD = dino.HeadConfig(hidden=256, bottleneck=64, prototypes=1024)


class Turning(dinov2.DINOv2):
    """Also says by how many quarters a picture was turned."""

    def setup(self):
        super().setup()
        self.turn_kernel = self.param("turn_kernel", nn.initializers.normal(0.02), (self.config.vision.width, 4))

    def turns(self, images: jax.Array, *, train: bool = False) -> jax.Array:  # [B H W 3] -> logits [B 4]
        features = self.backbone(images, train=train).pooler_output.astype(jnp.float32)
        return jnp.einsum("bd,dk->bk", features, self.turn_kernel)


def turned(images: jax.Array, quarters: jax.Array) -> jax.Array:
    """images [B S S 3], quarters [B] from 0 to 3 -> [B S S 3]."""
    ways = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)], axis=1)
    return jnp.take_along_axis(ways, quarters[:, None, None, None, None], axis=1)[:, 0]


def three_tasks(model: Turning, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple:
    """dinov2.loss, and Gidaris et al. 2018, eq. 3, on the first view of each picture."""
    rng, turn_rng, drop_rng = jax.random.split(rng, 3)
    value, aux = dinov2.loss(model, variables, batch, rng, step)
    views = batch["global_crops"][:, 0]
    quarters = jax.random.randint(turn_rng, (len(views),), 0, 4)
    images, rngs = turned(views, quarters), {"drop_path": drop_rng}
    chances = jax.nn.log_softmax(model.apply(variables, images, train=True, rngs=rngs, method="turns"))
    turn = -jnp.take_along_axis(chances, quarters[:, None], axis=1).mean()
    total = value + turn
    right = jnp.mean(jnp.argmax(chances, -1) == quarters)
    metrics = {**aux.metrics, "loss": total, "turn_loss": turn, "turn_accuracy": right}
    return total, Aux(metrics, aux.collections)


def task(config: dinov2.DINOv2Config, tasks: int, momentum: float, steps: int) -> Task:
    """The teacher follows the student by a momentum that rises to 1."""
    follow, init = optim.ema("params", "teacher", optim.cosine(momentum, 1.0, steps)), optim.with_copy("teacher")
    model, loss = (Turning(config), three_tasks) if tasks == 3 else (dinov2.DINOv2(config), dinov2.loss)
    return Task(model, loss, init=init, after_update=follow, serve="teacher")


def masks(grid: int, group: int, tasks: int) -> BlockMasks:
    """One task hides nothing."""
    return BlockMasks(grid, group, probability=0.5 if tasks > 1 else 0.0)


def own(vision: vit.ViTConfig, hiding: BlockMasks, **changes) -> dinov2.DINOv2Config:
    """DINO's loss, and iBOT's where something is hidden; never KoLeo."""
    return dinov2.DINOv2Config(
        vision, HEAD, patch_head=None, assign=dinov2.center_and_sharpen, teacher_temperature=(0.04, 0.04),
        koleo_weight=0.0, group=hiding.group, hidden=hiding.most, **changes,
    )  # fmt: skip


def from_scratch(which: tuple[int, int, int], share: float, tasks: int, steps: int, **every) -> Experiment:
    """Networks like dino.small, 32 pixels, two large and two small views."""
    width, depth, heads = which
    published = dino.as_published(drop_path=0.05) | {"mask_token": True}
    stem = (width // 4, width // 2)
    vision = vit.ViTConfig(32, 8, width, depth, heads, hidden=2 * width, stem=stem, **published)
    hiding = masks(grid=4, group=16, tasks=tasks)
    config = own(vision, hiding, compute=Compute(unroll=steps > 100))
    data = EmojiViews(multicrop.MultiCrop(global_size=32, local_size=16, local_count=2), hiding, share=share)
    adamw = optim.CosineAdamW(1e-3, warmup=steps // 10, frozen_steps=steps // 10)
    return Experiment(task(config, tasks, 0.98, steps), data, adamw, steps, batch_size=32, eval_every=steps, **every)


def paper(size: str, share: float, tasks: int) -> Experiment:
    vision = {"xs": dinov2.vit_s14, "s": dinov2.vit_b14, "": dinov2.vit_l14, "l": dinov2.vit_g14}[size](image_size=224)
    hiding, steps = masks(grid=16, group=16, tasks=tasks), 625_000
    config = own(vision, hiding, compute=Compute(jnp.bfloat16, remat="full"))
    adamw = optim.CosineAdamW(2e-3, warmup=100_000, frozen_steps=1_250)
    data = EmojiViews(multicrop.dinov2(), hiding, share=share)
    return Experiment(task(config, tasks, 0.994, steps), data, adamw, steps, 1_024, mesh=MeshShape(fsdp=16))


def experiment(size: str) -> Experiment:
    base, _, variant = size.partition("_")
    if base not in ("tiny", "small", "paper") or variant not in {*SIZES, *SHARES, *TASKS} or size.endswith("_"):
        raise KeyError(size)
    which, share, tasks = variant * (variant in SIZES), SHARES.get(variant, 1.0), TASKS.get(variant, 1)
    if base == "paper":
        made = paper(which, share, tasks)
    elif base == "tiny":
        made = from_scratch(SIZES[which], share, tasks, steps=4, save_every=4, log_every=1)
    else:
        made = from_scratch(SIZES[which], share, tasks, steps=500, log_every=20)
    return dataclasses.replace(made, evals=(KNN("validation"),))
