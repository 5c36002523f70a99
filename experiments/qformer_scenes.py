"""Q-Former on scenes, BLIP-2's first stage: queries learn to take from a picture what its caption says.

tiny    seconds: does everything once, learns nothing
small   about 9 minutes on one CPU core, after vit_scenes: 31 % of the held-out artist's scenes have their caption first
        among 258, 63 % among the first five (numbers: README)
paper   ViT-g as published, batch and steps too: for `mmjax plan` and pods

Three losses on the same weights: contrast (ITC), match (ITM, with hard negatives out of the global batch) and caption
(ITG). The tower of vit_scenes stays as it is, but for the norm after it. Layouts are composed, pixels are the artists'
own; the numbers are of an artist that was never trained on.

small differs from the paper: no dropout, and the Q-Former starts at random, where the authors' starts from BERT. Scenes
with one caption share an image_id, as the authors' code has it where a picture has several captions; on pictures of the
web they take all others of the batch for wrong.
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data import scene_text
from mmjax.data.scene_captions import SceneCaptions
from mmjax.data.scene_questions import COMPOSER
from mmjax.evals.scene_answers import SceneAnswers
from mmjax.evals.scene_captions import CaptionRetrieval, Describe, captioned
from mmjax.models import blip2, llava, qformer
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task

DECAYED = r"(kernel|embedding|pos_embed|query_tokens)$"  # published: all that has more than one axis


def config(size: str) -> qformer.RetrievalConfig:
    start = scene_text.id_of(scene_text.ANSWER)  # what a caption begins with, in place of <start>
    if size == "paper":
        made, compute = qformer.vit_g(), Compute(jnp.bfloat16, remat="full")
        # Rows are written in the vocabulary of scenes, whose ids are others than BERT's.
        queries = dataclasses.replace(made.qformer, start_id=start, compute=compute)
        return dataclasses.replace(made, qformer=queries, compute=compute)
    vocab_size = scene_text.tokenizer().get_vocab_size()
    sees = llava.of_size(size, vocab_size, 0)
    return blip2.of_size(size, sees.vision, vocab_size, start, sees.compute)


def small(size: str) -> Experiment:
    steps, batch, concepts = {"tiny": (8, 8, 16), "small": (1_200, 32, 64)}[size]
    tiny = size == "tiny"
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 400}
    few = {"count": 16} if tiny else {}
    choice = few or {"count": 200}
    adamw = optim.AdamW(2e-3, warmup=100, weight_decay=0.05, clip=1.0, mask=DECAYED)
    # The temperature has no bounds: twenty times its published rate could take it below zero.
    parts = {"^temperature$": optim.AdamW(1e-4, warmup=100), "^(?!temperature$)": adamw}
    return Experiment(
        Task(qformer.Stage1(config(size)), qformer.loss, trainable=qformer.TRAINABLE),
        SceneCaptions(vocabulary=concepts), optim.Partitioned(parts), steps, batch,
        evals=(CaptionRetrieval("validation", **choice), SceneAnswers("validation", replies=captioned, **choice)),
        final_evals=(CaptionRetrieval("twemoji", **few), SceneAnswers("twemoji", replies=captioned, **few)),
        sample=Describe("twemoji"), init_from=(Source("vit_scenes", "params/vision", "params/vision"),), **every,
    )  # fmt: skip


def paper() -> Experiment:
    composer = dataclasses.replace(COMPOSER, size=224, objects=(1, 6))
    adamw = optim.AdamW(1e-4, warmup=2_000, end=0.1, b2=0.98, weight_decay=0.05, mask=DECAYED)
    return Experiment(
        Task(qformer.Stage1(config("paper")), qformer.loss, trainable=qformer.TRAINABLE),
        SceneCaptions(vocabulary=600, composer=composer, length=32), adamw, 250_000, 1_680, sample=Describe("twemoji"),
        mesh=MeshShape(data=1, fsdp=-1),  # 105 rows on each of 16 chips
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
