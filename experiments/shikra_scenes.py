"""Shikra on scenes: places are numbers in the text, read and written.

tiny        seconds: does everything once, learns nothing
small       about 15 minutes on one CPU core, after llava_scenes in its size small_long
small_long  the same, three times as long
small_200   with 200 concepts
paper       Shikra-7B, its second stage: for `mmjax plan` and pods

Starts from a LLaVA with one linear projector that answers questions already, and trains all of it on. What the patches
show stays an auxiliary task; without it the tower forgets. Layouts are composed, pixels are the
artists' own; the numbers are of an artist that was never trained on.
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data import scene_text, scene_turns
from mmjax.data.scene_questions import COMPOSER, KINDS, SceneQuestions
from mmjax.evals.scene_answers import AskScenes, measured
from mmjax.models import llava, shikra
from mmjax.nn.cells import Beside
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task, init_model

ANSWERS = 56  # tokens that the assistant says in a row, at most


def config(size: str) -> llava.LlavaConfig:
    vocab_size, image = scene_text.tokenizer().get_vocab_size(), scene_text.id_of(scene_text.IMAGE)
    made = llava.of_size("tiny" if size == "tiny" else "small", vocab_size, image)
    return dataclasses.replace(made, projector=llava.linear)


def small(size: str) -> Experiment:
    steps, batch, concepts = {
        "tiny": (8, 8, 16), "small": (1_500, 32, 64), "small_long": (5_000, 32, 64), "small_200": (1_000, 32, 200),
    }[size]  # fmt: skip
    of = size.removesuffix("_long")
    made = config(size)
    cells = Beside(concepts, made.vision.width)
    knows = Source(f"llava_scenes-{'small_long' if of == 'small' else of}", "params", "params")
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 750}
    return Experiment(
        Task(llava.Llava(made), llava.Answers(ANSWERS, cells), init=cells.started(init_model)),
        SceneQuestions(vocabulary=concepts, answers=ANSWERS, kinds=(*KINDS, "spot"), often=scene_turns.PLACES),
        optim.Muon(2e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch, **measured(size == "tiny"),
        sample=AskScenes("twemoji"), init_from=(knows,), **every,
    )  # fmt: skip


def paper() -> Experiment:
    made, composer = shikra.shikra_7b(), dataclasses.replace(COMPOSER, size=224, objects=(1, 6))
    compute = Compute(jnp.bfloat16, remat="full")
    # Rows are written in the vocabulary of scenes, whose id of a picture is another than Shikra's.
    made = dataclasses.replace(llava.computed(made, compute), image_token=scene_text.id_of(scene_text.IMAGE))
    data = SceneQuestions(vocabulary=600, composer=composer, image_tokens=256, length=512, answers=256, cells=16)
    adamw = optim.AdamW(2e-5, warmup=3_000, clip=1.0)
    return Experiment(
        Task(llava.Llava(made), llava.loss, trainable=llava.INSTRUCT),
        data,
        adamw,
        100_000,
        64,
        sample=AskScenes("twemoji"),
    )


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
