"""Tokens of emoji in every way of MAR's figure 3: raster or random order, causal or bidirectional attention, one token
or a set at a time, codes or continuous tokens.

tiny       seconds: does everything once, learns nothing
tiny_mar   the same of small_mar

Each about 6 minutes on one CPU core, not recorded yet, after vqgan_emoji or kl_emoji:
small                 codes, raster order, causal: VQGAN's own prior
small_random_causal   codes, random order, causal
small_raster_sets     codes, raster order, bidirectional
small_sets            codes, random order, bidirectional: MaskGIT's way
small_mar             latents by a diffusion head, random order, bidirectional: MAR's way
small_mar_raster      latents, raster order, bidirectional
small_mar_causal      latents, random order, causal
small_mar_raster_causal  latents, raster order, causal
small_pixels          where it all begins: colours of single pixels in raster order, 16 x 16 of them

Drawn from never seen pairs of name and artist, about 60 minutes:
names      codes, raster order, causal, told the name and the artist
names_mar  small_mar's way, told the same

paper      the figure's network at 256 pixels, codes: for `mmjax plan` and pods

All are told subject and artist in each block (`modulated`), have about as many parameters and cost about as many
operations to train, also beside var_emoji, mar_emoji and frequency_emoji. Numbers compare what is
drawn with drawings of the same labels; Frechet distances of few pictures see whether colours and outlines are those of
a class, and little of whether a picture is good: look at the sheets.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from mmjax.data.emoji_pictures import NAME, SUBJECT, EmojiPictures
from mmjax.evals.drawn import Ask, HeldOut
from mmjax.evals.never_drawn import final_evals
from mmjax.evals.progress import Progress
from mmjax.models import autoregressive as ar
from mmjax.models import kl, vqgan
from mmjax.nn.embeddings import Labels
from mmjax.nn.frozen import Codes, Colours, Latents
from mmjax.nn.quantizers import Codebook, MovingCodebook
from mmjax.nn.sampling import Sampling
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model

GREY = np.uint8(200)
SIDE, CODES, DIM = 8, 1_024, 8  # of the grids of vqgan_emoji and kl_emoji
WAYS = {  # size -> latents or codes, how the picture is read, in which order, how many steps draw it
    "tiny": (False, ar.Causal, ar.raster, 64), "tiny_mar": (True, ar.Bidirectional, ar.shuffled, 4),
    "small": (False, ar.Causal, ar.raster, 64), "small_random_causal": (False, ar.Causal, ar.shuffled, 64),
    "small_raster_sets": (False, ar.Bidirectional, ar.raster, 16),
    "small_sets": (False, ar.Bidirectional, ar.shuffled, 16),
    "small_mar": (True, ar.Bidirectional, ar.shuffled, 16), "small_mar_raster": (True, ar.Bidirectional, ar.raster, 16),
    "small_mar_causal": (True, ar.Causal, ar.shuffled, 64), "small_mar_raster_causal": (True, ar.Causal, ar.raster, 64),
    "names": (False, ar.Causal, ar.raster, 64), "names_mar": (True, ar.Bidirectional, ar.shuffled, 32),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The loss of tokens, of pictures."""

    tokenizer: Codes | Latents | Colours

    def __call__(self, model: ar.Picture, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> Any:
        tokens = jax.lax.stop_gradient(self.tokenizer.tokens(variables, batch["images"]))
        return ar.loss(model, variables, {"tokens": tokens, "label": batch["label"]}, rng, step)

    def started(self, model: ar.Picture, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
        measured = self.tokenizer.measured(loaded, batch["images"])
        tokens = self.tokenizer.tokens({**loaded, **measured}, batch["images"])
        return {**init_model(model, rng, {"tokens": tokens, "label": batch["label"]}, loaded), **measured}


@dataclasses.dataclass(frozen=True)
class Draw:
    tokenizer: Codes | Latents | Colours
    steps: int
    guidance: float = 2.0
    sampling: Sampling = Sampling(temperature=1.0)

    def __call__(self, model: ar.Picture, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        how = {"steps": self.steps, "guidance": self.guidance, "sampling": self.sampling}
        return self.tokenizer.images(variables, ar.sample(model, variables, rng, label, **how))

    def progress(self, model: ar.Picture, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        """[S B H W 3]: what is not drawn yet is grey."""
        images = self(model, variables, rng, label)
        at = ar.drawn_at(model.config, rng, len(label), self.steps)
        square = images.shape[1] // self.tokenizer.side
        at = repeat(at, "b (h w) -> b (h p) (w q) 1", h=self.tokenizer.side, p=square, q=square)
        return jnp.stack([jnp.where(at <= step, images, GREY) for step in range(self.steps)])


def tokenizer(latent: bool, tiny: bool) -> Codes | Latents:
    codec = dataclasses.replace(vqgan.small_codec(DIM if latent else 2 * DIM), **({"width": 8} if tiny else {}))
    if latent:
        return Latents(kl.AutoencoderKL(kl.KLConfig(codec, scale=1.0, adversary=None)), SIDE)
    codes = MovingCodebook(64 if tiny else CODES, DIM)
    return Codes(vqgan.VQGAN(vqgan.VQGANConfig(codec, codes, None)), SIDE)


def made(size: str) -> Experiment:
    tiny, kinds = size.startswith("tiny"), NAME if size.startswith("names") else SUBJECT
    latent, read, order, draw_steps = WAYS[size]
    data, tokens = EmojiPictures(kinds), tokenizer(latent, tiny)
    width, depth = (16, 2) if tiny else (160, 5) if size.startswith("names") else (128, 4)
    head = partial(ar.Latents, DIM, head_width=width * 7 // 8, head_depth=3, noise_steps=4 if tiny else 25)
    head = head if latent else partial(ar.Codes, 64 if tiny else CODES)
    config = ar.PictureConfig(
        head, read, order, SIDE**2, width, depth, width // 32 or 1, 4 * width, partial(Labels, data.counts),
        modulated=True,
    )  # fmt: skip
    steps = 1_025 if latent else 1_800 if read is ar.Causal else 1_780  # all cost as many operations
    steps = 8 if tiny else 5 * steps if size.startswith("names") else steps
    name = ("kl_emoji" if latent else "vqgan_emoji") + ("-tiny" if tiny else "-small")
    return assembled(config, tokens, data, steps, draw_steps, (Source(name, to="tokenizer"),), tiny)


def assembled(config, tokens, data, steps: int, draw_steps: int, sources: tuple, tiny: bool) -> Experiment:
    loss, draw = Tokens(tokens), Draw(tokens, draw_steps)
    few = {"count": 16, "batch": 8} if tiny else {}
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 500}
    task = Task(
        ar.Picture(config), loss, init=optim.with_copy("ema", init=loss.started),
        after_update=optim.ema("params", "ema", 0.9 if tiny else 0.995), serve="ema",
    )  # fmt: skip
    return Experiment(
        task, data,
        optim.AdamW(2e-3, warmup=100, end=0.01, weight_decay=0.03, clip=1.0), steps, 8 if tiny else 32,
        evals=(HeldOut(loss, "validation", **few),),
        final_evals=(*final_evals(draw, data.kinds == NAME, **few), Progress(draw.progress)), sample=Ask(draw),
        init_from=sources, **every,
    )  # fmt: skip


def pixels() -> Experiment:
    colours, data = Colours(16), EmojiPictures()
    config = ar.PictureConfig(
        partial(ar.Codes, colours.num_codes), ar.Causal, ar.raster, 256, 128, 4, 4, 512, partial(Labels, data.counts),
        modulated=True,
    )  # fmt: skip
    return assembled(config, colours, data, 470, 256, (), False)


def paper() -> Experiment:
    codes = Codes(vqgan.VQGAN(vqgan.VQGANConfig(vqgan.vqgan_f16().codec, Codebook(1_024, 256), None)), 16)
    config = ar.PictureConfig(partial(ar.Codes, 1_024), condition=partial(Labels, (1_000,)))
    loss, draw = Tokens(codes), Draw(codes, 64)
    adamw = optim.AdamW(8e-4, warmup=62_500, b2=0.95, weight_decay=0.02, clip=3.0)  # as MAR's, appendix B
    return Experiment(
        Task(ar.Picture(config, Compute(jnp.bfloat16, "full")), loss, init=loss.started),
        EmojiPictures(("subgroup",), image_size=256), adamw, 250_000, 2_048, sample=Ask(draw),
        init_from=(Source("vqgan_emoji", to="tokenizer"),),
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    if size not in ("paper", "small_pixels", *WAYS):
        raise KeyError(size)
    return {"paper": paper, "small_pixels": pixels}[size]() if size in ("paper", "small_pixels") else made(size)
