"""What SEED's ids are drawn by: a diffusion transformer that makes pictures of what CLIP says of them.

tiny    seconds: does everything once, learns nothing
small   about 8 minutes on one CPU core, not recorded yet, after kl_emoji, clip_emoji and seed_emoji
paper   DiT-XL/2 on the vectors of LAION's CLIP ViT-H/14, in place of the authors' Stable Diffusion: for `mmjax plan`

It learns from CLIP's vectors alone and knows no ids. What is measured is the way through them: pictures become SEED's
ids, ids a vector, and the vector a picture, which shows the same thing, not the same pixels.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.data import emoji
from mmjax.data.emoji_pictures import NAME, EmojiPictures
from mmjax.evals.drawn import HeldOut
from mmjax.evals.rebuild import Rebuild
from mmjax.evals.reconstruction import Rebuilt
from mmjax.models import clip, diffusion, dinov2, kl, seed, vqgan
from mmjax.nn.frozen import Latents
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The loss of the decoder, of pictures; and pictures through SEED's ids."""

    latents: Latents
    target: clip.CLIP
    seed: seed.Seed
    steps: int = 25
    guidance: float = 2.0

    def drawn(self, variables: Variables, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B h w D]
        tokens = jax.lax.stop_gradient(self.latents.tokens(variables, images))
        return rearrange(tokens, "b (h w) d -> b h w d", h=self.latents.side)

    def loss(
        self, model: diffusion.DiT, variables: dict, batch: dict, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        shown = {"images": batch["images"], "drawn": self.drawn(variables, batch["images"])}
        own = {name: variables[name] for name in ("params", "target")}
        return seed.decoder_loss(model, own, shown, rng, step, target=partial(seed.clip_target, self.target))

    def started(self, model: diffusion.DiT, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
        measured = self.latents.measured(loaded, batch["images"])
        condition = seed.clip_target(self.target, loaded["target"], batch).image
        shown = {"images": self.drawn({**loaded, **measured}, batch["images"]), "condition": condition}
        return {**init_model(model, rng, shown, loaded), **measured}

    def images(self, model: diffusion.DiT, variables: dict, ids: jax.Array, rng: jax.Array) -> jax.Array:
        """SEED's ids [B Q] -> uint8 [B H W 3]."""
        decoder = {"params": variables["params"]}
        z = seed.to_images(
            self.seed, variables["seed"], ids, model, decoder, rng, steps=self.steps, guidance=self.guidance
        )  # fmt: skip
        return self.latents.images(variables, rearrange(z, "b h w d -> b (h w) d"))

    def rebuild(self, model: diffusion.DiT, variables: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids = self.seed.apply(variables["seed"], images, method="encode")
        return self.images(model, variables, ids, jax.random.key(0)), ids


def small(size: str) -> Experiment:
    tiny, words = size == "tiny", emoji.tokenizer().vocab_size
    steps, batch = {"tiny": (8, 8), "small": (1_500, 32)}[size]
    codec = dataclasses.replace(vqgan.small_codec(8), **({"width": 8} if tiny else {}))
    target = seed.small_judge(words, tiny)
    eyes = (dinov2.DINOv2Config.tiny() if tiny else dinov2.small()).vision
    tokenizer = seed.Seed(seed.small_tokenizer(seed.small(eyes, words, 24), target))
    latents = Latents(kl.AutoencoderKL(kl.KLConfig(codec, scale=1.0, adversary=None)), 8)
    how = Decoder(latents, target, tokenizer, steps=4 if tiny else 25)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 500}
    few, count, codes = {"count": 16, "batch": 8} if tiny else {}, 16 if tiny else 1_000, tokenizer.config.quantizer
    task = Task(
        diffusion.DiT(diffusion.small((8, 8), 8, tiny)), how.loss, init=optim.with_copy("ema", init=how.started),
        after_update=optim.ema("params", "ema", 0.9 if tiny else 0.995), serve="ema",
    )  # fmt: skip
    final = tuple(Rebuilt(how.rebuild, split, codes.num_codes, count) for split in ("twemoji", "concepts"))
    return Experiment(
        task, EmojiPictures(NAME), optim.AdamW(2e-3, warmup=100, end=0.01, weight_decay=0.03, clip=1.0), steps, batch,
        evals=(HeldOut(how.loss, "validation", **few),), final_evals=final, sample=Rebuild(how.rebuild),
        init_from=(
            Source("kl_emoji", to="tokenizer"), Source("clip_emoji", to="target"), Source("seed_emoji", to="seed"),
        ), **every,
    )  # fmt: skip


def paper() -> Experiment:
    compute = Compute(jnp.bfloat16, "full")
    target = clip.CLIP(dataclasses.replace(clip.vit_h14(), compute=compute))
    config = seed.seed_tokenizer()
    tokenizer = seed.Seed(dataclasses.replace(config, target=partial(seed.clip_target, target)))
    how = Decoder(Latents(kl.AutoencoderKL(kl.kl_f8()), 28), target, tokenizer)
    sizes = dataclasses.replace(
        diffusion.dit_xl(), size=(28, 28), condition=diffusion.Signal, learn_variance=False
    )  # fmt: skip
    task = Task(diffusion.DiT(sizes, compute), how.loss, init=partial(paper_started, how))
    adamw = optim.AdamW(1e-4, decay="constant")
    return Experiment(
        task, EmojiPictures(NAME, image_size=224), adamw, 400_000, 256, sample=Rebuild(how.rebuild)
    )  # fmt: skip


def paper_started(how: Decoder, model, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """With frozen networks as large as the published ones, for `mmjax plan`: their weights are the user's."""
    keys = jax.random.split(rng, 4)
    images = batch["images"][:1]
    frozen = {
        "tokenizer": how.latents.model.init(keys[0], images),
        "target": how.target.init(keys[1], images, jnp.zeros((1, 77), jnp.int32)),
        "seed": how.seed.init(keys[2], images),
    }
    return how.started(model, keys[3], batch, {**frozen, **loaded})


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
