"""MAR on emoji: sets of latents in random order, each latent by a small diffusion, with the published network of an
encoder that reads what is shown and a decoder that speaks of the rest.

tiny    seconds: does everything once, learns nothing
small   about 7 minutes on one CPU core, not recorded yet, after kl_emoji
paper   MAR-H at 256 pixels: for `mmjax plan` and pods

Numbers compare what is drawn with drawings of the same labels; Frechet distances of few pictures see whether colours
and outlines are those of a class, and little of whether a picture is good: look at the sheets.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.data.emoji_pictures import EmojiPictures
from mmjax.evals.drawn import Ask, HeldOut
from mmjax.evals.never_drawn import final_evals
from mmjax.models import kl, mar, vqgan
from mmjax.nn.frozen import Latents
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model


@dataclasses.dataclass(frozen=True)
class Through:
    """MAR's loss, of pictures, and its pictures."""

    tokenizer: Latents
    how: mar.Drawing = mar.Drawing()

    def __call__(self, model: mar.MAR, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> Any:
        return mar.loss(model, variables, {"images": self.grid(variables, batch), "label": batch["label"]}, rng, step)

    def grid(self, variables: Variables, batch: Batch) -> jax.Array:  # [B h w D]
        tokens = jax.lax.stop_gradient(self.tokenizer.tokens(variables, batch["images"]))
        return rearrange(tokens, "b (h w) d -> b h w d", h=self.tokenizer.side)

    def started(self, model: mar.MAR, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
        measured = self.tokenizer.measured(loaded, batch["images"])
        grid = self.grid({**loaded, **measured}, batch)
        return {**init_model(model, rng, {"images": grid, "label": batch["label"]}, loaded), **measured}

    def draw(self, model: mar.MAR, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        latents = mar.sample(model, variables, rng, label, self.how)
        return self.tokenizer.images(variables, rearrange(latents, "b h w d -> b (h w) d"))


def small(size: str) -> Experiment:
    tiny, data = size == "tiny", EmojiPictures()
    steps, batch, width = {"tiny": (8, 8, 16), "small": (880, 32, 128)}[size]
    codec = dataclasses.replace(vqgan.small_codec(8), **({"width": 8} if tiny else {}))
    config = mar.MARConfig(
        8, 8, 1, width, 1 if tiny else 3, width // 32 or 1, 7 * width // 2, 8, width, 3, data.counts, dropout=0.0,
    )  # fmt: skip
    how = mar.Drawing(4 if tiny else 16, guidance=3.0, noise_steps=4 if tiny else 25)
    through = Through(Latents(kl.AutoencoderKL(kl.KLConfig(codec, scale=1.0, adversary=None)), 8), how)
    few = {"count": 16, "batch": 8} if tiny else {}
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 400}
    task = Task(
        mar.MAR(config), through, init=optim.with_copy("ema", init=through.started),
        after_update=optim.ema("params", "ema", 0.9 if tiny else 0.995), serve="ema",
    )  # fmt: skip
    return Experiment(
        task, data, optim.AdamW(2e-3, warmup=100, end=0.01, weight_decay=0.02, clip=1.0), steps, batch,
        evals=(HeldOut(through, "validation", **few),),
        final_evals=final_evals(through.draw, False, **few),
        sample=Ask(through.draw), init_from=(Source("kl_emoji", to="tokenizer"),), **every,
    )  # fmt: skip


def paper() -> Experiment:
    config = mar.mar_h()
    through = Through(Latents(kl.AutoencoderKL(kl.kl_16()), 16), mar.Drawing(256, 3.2))
    task = Task(
        mar.MAR(config, Compute(jnp.bfloat16, "full")), through, init=optim.with_copy("ema", init=through.started),
        after_update=optim.ema("params", "ema", 0.9999), serve="ema",
    )  # fmt: skip
    adamw = optim.AdamW(8e-4, warmup=62_500, decay="constant", b2=0.95, weight_decay=0.02, clip=3.0)
    return Experiment(
        task, EmojiPictures(("subgroup",), image_size=256), adamw, 250_000, 2_048, sample=Ask(through.draw),
        init_from=(Source("kl_emoji", to="tokenizer"),),
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
