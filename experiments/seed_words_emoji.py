"""SEED's ids as words: one language model that writes pictures behind names, and names behind pictures.

tiny    seconds: does everything once, learns nothing
small   about 8 minutes on one CPU core, not recorded yet, after seed_emoji and seed_decoder_emoji, which draws the ids
paper   SEED-LLaMA's pretraining of a LLaMA-7B: for `mmjax plan` and pods; there, all its parameters, where the authors
        train LoRA, the table, the head and the norms

    name <img> id ... id </img>        <img> id ... id </img> name          half of each batch is of each kind

small begins at random, where the authors begin with Vicuna; its words are names of emoji.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data import emoji
from mmjax.data.emoji_pictures import NAME, EmojiPictures, names
from mmjax.evals.generated import Generated
from mmjax.evals.picture_words import PictureNames, WriteOrDraw
from mmjax.models import diffusion, dinov2, kl, llama, seed, vqgan
from mmjax.nn.frozen import Latents
from mmjax.nn.sampling import Sampling, generate_among
from mmjax.objectives import sft
from mmjax.text.image_tokens import ImageTokens, caption_to_picture, picture_to_caption
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model

TEXT = 16  # tokens of a name at most, with start and end


def tokens_of(tokenizer: seed.Seed) -> ImageTokens:
    config = tokenizer.config
    return ImageTokens(emoji.tokenizer().vocab_size, config.quantizer.num_codes, config.qformer.queries)


@partial(jax.jit, static_argnames="tokenizer")
def encoded(tokenizer: seed.Seed, variables: Variables, images: jax.Array) -> jax.Array:
    return tokenizer.apply(variables, images, method="encode")


@dataclasses.dataclass(frozen=True)
class Words:
    """Rows of names and pictures, and pictures of what the language model writes."""

    seed: seed.Seed
    decoder: diffusion.DiT
    latents: Latents
    steps: int = 25
    guidance: float = 2.0  # of the decoder
    sampling: Sampling = Sampling(temperature=1.0)

    @property
    def tokens(self) -> ImageTokens:
        return tokens_of(self.seed)

    def rows(self, model: llama.Llama, variables: Variables, batch: Batch, rng: jax.Array, step: int) -> Batch:
        """Task.prepare: the first half of the batch are pictures behind names, the other half names behind pictures."""
        ids, words = np.asarray(self.read(variables, batch["images"])), names(TEXT)
        concept = np.asarray(batch["label"])[:, 0]
        text, mask, half = words["input_ids"][concept], words["attention_mask"][concept], len(concept) // 2
        one = caption_to_picture(self.tokens, text[:half], mask[:half], ids[:half])
        other = picture_to_caption(self.tokens, ids[half:], text[half:], mask[half:])
        return {name: np.concatenate([one[name], other[name]]) for name in one}

    def read(self, variables: Variables, images: jax.Array) -> jax.Array:
        """uint8 [B H W 3] -> SEED's ids [B Q]."""
        return encoded(self.seed, variables["decoder"]["seed"], images)

    def started(self, model: llama.Llama, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
        return init_model(model, rng, {"input_ids": jnp.zeros((1, 8), jnp.int32)}, loaded)

    def ids(self, model: llama.Llama, variables: dict, rng: jax.Array, concept: jax.Array) -> jax.Array:
        """Concepts [B] -> SEED's ids [B Q], written behind their names."""
        words, begin = names(TEXT), jnp.full((len(concept), 1), self.tokens.begin)
        prompts = jnp.concatenate([jnp.asarray(words["input_ids"])[concept], begin], axis=1)
        mask = jnp.concatenate([jnp.asarray(words["attention_mask"])[concept], begin > 0], axis=1)
        how = {"among": self.tokens.among, "count": self.tokens.length, "sampling": self.sampling, "rng": rng}
        return generate_among(model, {"params": variables["params"]}, prompts, mask, **how) - self.tokens.words

    def draw(self, model: llama.Llama, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        """label [B 2], of which the concept counts -> uint8 [B H W 3]."""
        write_rng, draw_rng = jax.random.split(rng)
        return self.images(variables, self.ids(model, variables, write_rng, label[:, 0]), draw_rng)

    def images(self, variables: dict, ids: jax.Array, rng: jax.Array) -> jax.Array:
        known = variables["decoder"]
        z = seed.to_images(
            self.seed, known["seed"], ids, self.decoder, {"params": known["params"]}, rng, steps=self.steps,
            guidance=self.guidance,
        )  # fmt: skip
        return self.latents.images(known, z.reshape(len(z), -1, z.shape[-1]))


def small(size: str) -> Experiment:
    tiny, words = size == "tiny", emoji.tokenizer().vocab_size
    steps, batch = {"tiny": (8, 8), "small": (1_500, 64)}[size]
    codec = dataclasses.replace(vqgan.small_codec(8), **({"width": 8} if tiny else {}))
    eyes = (dinov2.DINOv2Config.tiny() if tiny else dinov2.small()).vision
    tokenizer = seed.Seed(seed.small_tokenizer(seed.small(eyes, words, 24), seed.small_judge(words, tiny)))
    latents = Latents(kl.AutoencoderKL(kl.KLConfig(codec, scale=1.0, adversary=None)), 8)
    how = Words(tokenizer, diffusion.DiT(diffusion.small((8, 8), 8, tiny)), latents, steps=4 if tiny else 25)
    model = llama.Llama(llama.of_size(size, how.tokens.size))
    few = {"count": 16, "batch": 8} if tiny else {}
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 500}
    final = (*(PictureNames(how, split, **few) for split in ("twemoji",)), Generated(how.draw, "validation", **few))
    return Experiment(
        Task(model, sft.loss, init=how.started, prepare=how.rows), EmojiPictures(NAME),
        optim.AdamW(1e-3, warmup=100, end=0.01, weight_decay=0.1, clip=1.0), steps, batch,
        evals=(PictureNames(how, "validation", **few),), final_evals=final, sample=WriteOrDraw(how),
        init_from=(Source("seed_decoder_emoji", to="decoder"),), **every,
    )  # fmt: skip


def paper() -> Experiment:
    tokenizer = seed.Seed(seed.seed_tokenizer())
    latents, decoder = Latents(kl.AutoencoderKL(kl.kl_f8()), 28), diffusion.DiT(diffusion.small((28, 28), 4))
    how = Words(tokenizer, decoder, latents)
    tokens = dataclasses.replace(ImageTokens(), words=32_000)
    config = dataclasses.replace(llama.of_size("paper", tokens.size), vocab_size=tokens.size)
    adamw = optim.AdamW(1.5e-4, warmup=900, end=0.05, b2=0.95, eps=1e-5, weight_decay=0.05, clip=1.0)
    task = Task(llama.Llama(config), sft.loss, init=how.started)
    return Experiment(task, Rows(tokens), adamw, 30_000, 8_192, sample=WriteOrDraw(how))


@dataclasses.dataclass(frozen=True)
class Rows:
    """For `mmjax plan`: rows of 77 words and a picture, as `Words.rows` makes them."""

    tokens: ImageTokens

    def batches(self, batch_size: int, seed: int, rows: slice = slice(None)) -> Any:
        length = 77 + self.tokens.length + 2
        count = len(range(*rows.indices(batch_size)))
        row = {"input_ids": np.zeros((count, length), np.int32), "attention_mask": np.ones((count, length), bool)}
        return [{**row, "spoken": np.ones((count, length), bool)}]


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
