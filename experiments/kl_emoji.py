"""KL autoencoder on emoji: 32 x 32 pixels become 8 x 8 latents of 8 numbers, which generators read and write.

tiny    seconds: does everything once, learns nothing
small   about 9 minutes on one CPU core, not recorded yet
paper   MAR's KL-16 at 256 pixels: for `mmjax plan` and pods

small differs from the paper: pixels differ by squares, and no discriminator judges them, so PSNR is what is learned.
The numbers are of an artist that was never trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data.emoji_pictures import EmojiPictures
from mmjax.evals.rebuild import Rebuild
from mmjax.evals.reconstruction import Rebuilt
from mmjax.models import kl, vqgan
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task


def rebuild(model: kl.AutoencoderKL, variables: dict, images: jax.Array) -> tuple[jax.Array, None]:
    return image_ops.to_uint8(model.apply(variables, images).images, 0.5, 0.5), None


def small_config(tiny: bool) -> kl.KLConfig:
    codec = dataclasses.replace(vqgan.small_codec(8), **({"width": 8} if tiny else {}))
    return kl.KLConfig(codec, scale=1.0, kl_weight=1e-3, adversary=None, square=True)


def small(size: str) -> Experiment:
    tiny = size == "tiny"
    steps, batch, count = {"tiny": (8, 8, 16), "small": (2_500, 32, 1_500)}[size]
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 1_250}
    return Experiment(
        Task(kl.AutoencoderKL(small_config(tiny)), kl.loss), EmojiPictures(),
        optim.AdamW(2e-3, warmup=100, end=0.01, weight_decay=1e-4, clip=1.0), steps, batch,
        evals=(Rebuilt(rebuild, "validation", count=count),),
        final_evals=tuple(Rebuilt(rebuild, split, count=count) for split in ("twemoji", "concepts")),
        sample=Rebuild(rebuild), **every,
    )  # fmt: skip


def paper() -> Experiment:
    made = kl.kl_16()
    made = dataclasses.replace(made, codec=dataclasses.replace(made.codec, compute=Compute(jnp.bfloat16, "full")))
    adam = optim.AdamW(4.5e-6 * 96, b1=0.5, b2=0.9)  # latent-diffusion's base rate, times the batch
    return Experiment(
        Task(kl.AutoencoderKL(made), kl.loss), EmojiPictures(image_size=256), adam, 100_000, 96, sample=Rebuild(rebuild)
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
