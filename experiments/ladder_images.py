"""DINOv2 on drawings alone, in four sizes, from less data, by fewer or more tasks: one side of the Platonic ladder.

Does what a network makes of pictures come closer to what another makes of captions (ladder_captions), though neither
sees the other's, as Huh et al. 2024 (arXiv:2405.07987, section 3) say, with size, data and tasks? `_ladder` asks.
In a base size all have one network but for its size, the same views and as many steps:

    BASE_xs, BASE_s, BASE, BASE_l       width 32, 64, 128, 192
    BASE_16th, BASE_quarter             BASE from a share of the concepts
    BASE_1task, BASE_3tasks             BASE has two: what is hidden (iBOT), and whole images (DINO). One is what is
                                        hidden alone; the third, by how many quarters a view was turned

Section 3.1 of the paper expects fewer networks to be good at more tasks, and so to be more alike. Tasks vary here, not
on captions: those without labels are well known for pictures (Zhou et al. 2022, arXiv:2111.07832; Caron et al. 2021,
arXiv:2104.14294; Gidaris et al. 2018, arXiv:1803.07728), and leave each other as they are. KoLeo, which spreads
features, is in all and counts as none. The third task brings its views along: one more of each picture.

tiny    seconds: does everything once, learns nothing
small   1 (xs) to 4.5 CPU minutes (l), 18 for all eight; k-NN of validation drawings by subgroup
paper   DINOv2's ViT-S, B, L and g: views and number of steps are dinov2_emoji's, batches a third of its, in groups of
        16 images, no branches are dropped, and the optimizer is DINO's: for `mmjax plan` and pods
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.data import multicrop
from mmjax.data.emoji_views import EmojiViews
from mmjax.data.masking import BlockMasks
from mmjax.evals.knn import KNN
from mmjax.evals.segmentation import Look
from mmjax.models import dino, dinov2, vit
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task

SIZES = {"xs": (32, 2, 2), "s": (64, 3, 4), "": (128, 4, 4), "l": (192, 6, 6)}  # width, depth, heads
SHARES = {"16th": 1 / 16, "quarter": 1 / 4}  # of the concepts
TASKS = {"1task": 1, "3tasks": 3}
HEAD = dino.HeadConfig(hidden=256, bottleneck=64, prototypes=512)


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


def from_scratch(which: tuple[int, int, int], share: float, tasks: int, steps: int, **every) -> Experiment:
    """Convolutions make a token of each 8 x 8 pixels, as in dinov2.small, but two of them, not three; there are more
    blocks than its two from width 64 on; initial values are the published ones, LayerScale 0.1, not 1. Two large and
    two small views."""
    width, depth, heads = which
    published = dinov2.as_published(registers=4) | {"layer_scale": 0.1}
    vision = vit.ViTConfig(
        32, 8, width, depth, heads, hidden=2 * width, stem=(width // 4, width // 2), **published
    )  # fmt: skip
    masks = BlockMasks(grid=4, group=16)
    config = dinov2.DINOv2Config(
        vision, HEAD, HEAD, teacher_temperature=(0.02, 0.02), image_weight=float(tasks > 1), group=masks.group,
        hidden=masks.most, compute=Compute(unroll=steps > 100),
    )  # fmt: skip
    # Drawings of 32 pixels bear less than photographs do.
    data = EmojiViews(multicrop.small(), masks, share=share)
    adamw = optim.CosineAdamW(
        1e-3, warmup=steps // 10, clipping=optim.clip_parts, frozen_steps=steps // 10, moments_wait=False,
        weight_decay_end=0.2,
    )  # fmt: skip
    return Experiment(task(config, tasks, 0.98, steps), data, adamw, steps, batch_size=32, eval_every=steps, **every)


def paper(size: str, share: float, tasks: int) -> Experiment:
    vision = {"xs": dinov2.vit_s14, "s": dinov2.vit_b14, "": dinov2.vit_l14, "l": dinov2.vit_g14}[size](image_size=224)
    masks, steps = BlockMasks(grid=16, group=16), 625_000
    config = dinov2.DINOv2Config(
        vision, image_weight=float(tasks > 1), ramp=37_500, group=masks.group, hidden=masks.most,
        compute=Compute(jnp.bfloat16, remat="full"),
    )  # fmt: skip
    adamw = optim.CosineAdamW(2e-3, warmup=100_000, frozen_steps=1_250)
    data = EmojiViews(multicrop.dinov2(), masks, share=share)
    return Experiment(task(config, tasks, 0.994, steps), data, adamw, steps, 1_024, mesh=MeshShape(fsdp=16))


def experiment(size: str) -> Experiment:
    base, _, variant = size.partition("_")
    if base not in ("tiny", "small", "paper") or variant not in {*SIZES, *SHARES, *TASKS} or size.endswith("_"):
        raise KeyError(size)
    which, share, tasks = variant * (variant in SIZES), SHARES.get(variant, 1.0), TASKS.get(variant, 2)
    if base == "paper":
        made = paper(which, share, tasks)
    elif base == "tiny":
        made = from_scratch((SIZES[which][0] // 4, 2, 2), share, tasks, steps=4, save_every=4, log_every=1)
    else:
        made = from_scratch(SIZES[which], share, tasks, steps=400, log_every=20)
    return dataclasses.replace(made, evals=(KNN("validation"),), sample=Look("twemoji"))
