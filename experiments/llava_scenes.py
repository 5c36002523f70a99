"""LLaVA on scenes: which adapter, and which eyes? Questions, no boxes in answers (shikra_scenes has those).

tiny                seconds: does everything once, learns nothing
paper               LLaVA-1.5-7B, stage 2: for `mmjax plan` and pods
paper_align         its stage 1: the projector alone, on captions
paper_lora          its stage 2 by LoRA, without dropout of the products' inputs

Each about 4 minutes on one CPU core, small_long, the only one that is recorded, 25; after vit_scenes and llama_scenes.
The two stages as they are published, with the tower of vit_scenes as it is:
small_align         the projector alone, on captions, into a language model that stays as it is
small_instruct      from there, projector and language model on all kinds of questions

The adapter differs, at 64 tokens a picture, and the tower of vit_scenes is trained on, in one stage:
small               a projector of two layers
small_linear        of one layer
small_qformer       64 queries that read the patches through a Q-Former of two blocks
small_long          of one layer, trained six times as long: what shikra_scenes, ferret_scenes and nextchat_scenes start
                    from; small_200 with 200 concepts

The eyes differ and stay as they are, from the runs of clip_emoji and dinov2_emoji, which saw one drawing at a time:
small_clip          CLIP
small_dino          DINOv2
small_additive      Mixture of Features: the mean of both, after an adapter for each
small_interleaved   Mixture of Features: both, 128 tokens
small_tuned         CLIP, trained on

What the patches show is an auxiliary task where the tower is that of vit_scenes. Layouts are composed, pixels are the
artists' own; the numbers are of an artist that was never trained on.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.data import scene_text
from mmjax.data.scene_questions import COMPOSER, SceneQuestions
from mmjax.evals.scene_answers import AskScenes, measured
from mmjax.models import clip, dinov2, features, llava, qformer, vit
from mmjax.nn import lora
from mmjax.nn.cells import Beside
from mmjax.nn.linear import Linear
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task, init_model

ANSWERS = 40  # tokens that the assistant says in a row, at most
KINDS = ("what", "point", "is", "count", "left", "right", "above", "below", "bigger", "behind", "caption")
# They train the tower of vit_scenes on.
ADAPTERS = ("tiny", "small", "small_long", "small_200", "small_linear", "small_qformer")


class Queries(nn.Module):
    """A Q-Former as a projector: as many tokens as queries."""

    config: llava.LlavaConfig
    queries: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [I N D] -> [I Q W]
        sizes = qformer.QFormerConfig(
            self.queries, x.shape[-1], width=96, depth=2, num_heads=3, hidden=192, text=False, dropout=0.0,
            compute=self.config.compute,
        )  # fmt: skip
        tokens = self.param("query_tokens", nn.initializers.normal(0.02), (self.queries, sizes.width))
        asked = jnp.broadcast_to(tokens, (len(x), *tokens.shape))
        found = qformer.QFormer(sizes, name="qformer")(asked, x).queries
        return Linear(self.config.language.width, True, self.config.language.compute.dtype, name="out")(found)


class Towers(nn.Module):
    """Patches of CLIP's block before the last, of DINOv2's last, or of both."""

    config: llava.LlavaConfig
    clip: vit.ViTConfig | None
    dino: vit.ViTConfig | None

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:  # [I H W 3] -> of each [I N D]
        images, compute = image_ops.to_float(images, 0.5, 0.5), self.config.compute
        found = []
        if self.clip is not None:
            found.append(
                clip.VisionTower(self.clip, compute, name="clip")(images, collect=True).hidden_states[-2][:, 1:]
            )
        if self.dino is not None:
            seen = vit.ViT(self.dino, compute, name="dino")(images, collect=True).hidden_states[-1]
            found.append(seen[:, self.dino.prefix :])
        return tuple(found)


class Mixed(nn.Module):
    """A projector of the features of one or two towers, each normed first: they were made at different scales."""

    config: llava.LlavaConfig
    mix: Callable[[], nn.Module] | None = None  # of features.py; None: one tower

    @nn.compact
    def __call__(self, found: tuple[jax.Array, ...]) -> jax.Array:
        adapter = partial(features.MLPAdapter, self.config.language.width, self.config.language.compute.dtype)
        found = [nn.LayerNorm(use_scale=False, use_bias=False)(x) for x in found]
        return adapter(name="adapter")(*found) if self.mix is None else self.mix(adapter, name="mix")(*found)


CLIP = Source("clip_emoji-small", "params/vision", "params/vision/clip")
DINO = Source("dinov2_emoji-small", "params/backbone", "params/vision/dino")
EYES = {  # size -> sources, how the towers are mixed, tokens of a picture, what is trained
    "small_clip": ((CLIP,), None, 64, llava.INSTRUCT),
    "small_dino": ((DINO,), None, 64, llava.INSTRUCT),
    "small_additive": ((CLIP, DINO), partial(features.Additive, own_adapters=True), 64, llava.INSTRUCT),
    "small_interleaved": ((CLIP, DINO), features.Interleaved, 128, llava.INSTRUCT),
    "small_tuned": ((CLIP,), None, 64, ".*"),
}
SPEAKS = Source("llama_scenes-small", "params", "params/language")
SEES = Source("vit_scenes-small", "params/vision", "params/vision")
STAGES = {  # size -> sources, what is trained, what is asked
    "small_align": ((SEES, SPEAKS), llava.ALIGN, ("caption",)),
    "small_instruct": ((Source("llava_scenes-small_align", "params", "params"),), llava.INSTRUCT, KINDS),
}


def config(size: str) -> llava.LlavaConfig:
    vocab_size, image = scene_text.tokenizer().get_vocab_size(), scene_text.id_of(scene_text.IMAGE)
    made = llava.of_size("tiny" if size == "tiny" else "small", vocab_size, image)
    if size in STAGES:
        return made
    if size in ADAPTERS:
        projector = {"small": llava.mlp, "small_qformer": Queries}.get(size, llava.linear)
        return dataclasses.replace(made, projector=projector)
    sources, mix, length, _ = EYES[size]
    # Positions of 4 x 4 patches are resized to 8 x 8, as scenes are twice as large.
    seeing = dataclasses.replace(clip.small(8, 8).vision, resize=image_ops.resize_cubic) if CLIP in sources else None
    other = dataclasses.replace(dinov2.small().vision, resize=image_ops.resize_cubic) if DINO in sources else None
    return dataclasses.replace(
        made, see=partial(Towers, clip=seeing, dino=other), projector=partial(Mixed, mix=mix), image_length=length
    )  # fmt: skip


def small(size: str) -> Experiment:
    steps, batch, concepts = {
        "tiny": (8, 8, 16), "small_long": (3_000, 32, 64), "small_200": (3_000, 32, 200),
    }.get(size, (500, 32, 64))  # fmt: skip
    made, of, kinds = config(size), size if size in ("tiny", "small_200") else "small", KINDS
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": min(steps, 1_000)}
    if size in ADAPTERS:
        beside = Beside(concepts, made.vision.width)
        task = Task(llava.Llava(made), llava.Answers(ANSWERS, beside), init=beside.started(init_model))
        speaks = Source(f"llama_scenes-{of}", "params", "params/language")
        sources = (Source(f"vit_scenes-{of}", "params", "params"), speaks)
    else:
        if size in STAGES:
            sources, trainable, kinds = STAGES[size]
        else:
            own, _, _, trainable = EYES[size]
            sources = (*own, SPEAKS)
        task = Task(llava.Llava(made), llava.Answers(ANSWERS), trainable=trainable)
    data = SceneQuestions(
        vocabulary=concepts, image_tokens=made.tokens_per_image, kinds=kinds, length=96, answers=ANSWERS
    )  # fmt: skip
    return Experiment(
        task, data,
        optim.Muon(2e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch,
        **measured(size == "tiny"), sample=AskScenes("twemoji"), init_from=sources, **every,
    )  # fmt: skip


PAPER = {  # size -> what is trained, its rates, what is asked, steps and pictures: one epoch of 558k or 665k
    "paper": (llava.INSTRUCT, optim.AdamW(2e-5, warmup=156, clip=1.0), KINDS, 5_197, 128),
    "paper_align": (llava.ALIGN, optim.AdamW(1e-3, warmup=65, clip=1.0), ("caption",), 2_180, 256),
    "paper_lora": (
        rf"^projector/|{lora.TRAINABLE}",
        optim.Partitioned(
            {f"^{part}/": optim.AdamW(rate, warmup=156) for part, rate in (("projector", 2e-5), ("language", 2e-4))}
        ),
        KINDS, 5_197, 128,
    ),
}  # fmt: skip


def paper(size: str) -> Experiment:
    trainable, adamw, kinds, steps, batch = PAPER[size]
    made, composer = llava.llava_1_5_7b(), dataclasses.replace(COMPOSER, size=336, objects=(1, 6))
    compute = Compute(jnp.bfloat16, remat="full")
    # Rows are written in the vocabulary of scenes, whose id of a picture is another than LLaVA's.
    made = dataclasses.replace(llava.computed(made, compute), image_token=scene_text.id_of(scene_text.IMAGE))
    data = SceneQuestions(
        vocabulary=600, composer=composer, image_tokens=576, kinds=kinds, length=512, answers=256, cells=24
    )  # fmt: skip
    model, started = llava.Llava(made), init_model
    if size == "paper_lora":
        model = lora.LoRA(model, llava.LORA, rank=128, alpha=256.0)
        started = model.started(init_model)
    mesh = MeshShape(fsdp=128, tensor=2)  # a row for each two chips
    task = Task(model, llava.loss, trainable=trainable, init=started)
    return Experiment(task, data, adamw, steps, batch, mesh=mesh, sample=AskScenes("twemoji"))


def experiment(size: str) -> Experiment:
    if size not in (*PAPER, *ADAPTERS, *STAGES, *EYES):
        raise KeyError(size)
    return paper(size) if size in PAPER else small(size)
