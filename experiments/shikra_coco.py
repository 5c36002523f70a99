"""Shikra on your own pictures with boxes: COCO's JSON, or expressions in JSON lines (see mmjax/data/coco.py).

    mmjax train experiments/shikra_coco.py --set data.path=my_pictures
    mmjax train experiments/shikra_coco.py --set data.path=my_pictures --set data.annotations=expressions.jsonl

tiny          seconds, to see whether the folder reads
small         3,200 steps of 32 pictures, 64 x 64 pixels: some 40 minutes on one CPU core
small_scenes  the same, from what shikra_scenes has learned of drawings
paper         Shikra-7B, its second stage, in the vocabulary of scenes: for `mmjax plan` and pods

Questions: what is in a box, where something is, whether it is there. Expressions seldom speak of all that a picture
shows; then leave the last one out: --set "data.kinds=('what', 'where')".
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import scene_text
from mmjax.data.coco import CocoData
from mmjax.data.scene_questions import COMPOSER
from mmjax.evals.scene_answers import AskScenes, SceneAnswers
from mmjax.models import llava, shikra
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task

ANSWERS = 56  # tokens that the assistant says in a row, at most
PARTS = ("vision", "projector", "language")


def answered(model: llava.Llava, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple:
    """llava.loss, where no more logits are made than answers have tokens."""
    out = llava.forward(model, variables, batch)
    text, count = llava.answer_loss(model, variables, out.last_hidden_state, llava.labels_of(batch), ANSWERS)
    return text, Aux({"loss": text}, weight=count)


def small(size: str) -> Experiment:
    steps, batch_size, scenes = {"tiny": (8, 8, 8), "small": (3_200, 32, 200), "small_scenes": (3_200, 32, 200)}[size]
    vocab_size, image = scene_text.tokenizer().get_vocab_size(), scene_text.id_of(scene_text.IMAGE)
    made = llava.of_size(size.removesuffix("_scenes"), vocab_size, image)
    start = [Source("shikra_scenes-small", f"params/{part}", f"params/{part}") for part in PARTS]
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 1_000}
    return Experiment(
        Task(llava.Llava(dataclasses.replace(made, projector=llava.linear)), answered),
        CocoData(answers=ANSWERS),
        optim.Muon(2e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch_size,
        evals=(SceneAnswers("validation", scenes),), sample=AskScenes("validation"),
        init_from=tuple(start) if size == "small_scenes" else (), **every,
    )  # fmt: skip


def paper() -> Experiment:
    made = llava.computed(shikra.shikra_7b(), Compute(jnp.bfloat16, remat="full"))
    # Rows are written in the vocabulary of scenes, whose id of a picture is another than Shikra's.
    made = dataclasses.replace(made, image_token=scene_text.id_of(scene_text.IMAGE))
    composer = dataclasses.replace(COMPOSER, size=made.vision.image_size)
    return Experiment(
        Task(llava.Llava(made), llava.loss, trainable=llava.INSTRUCT),
        CocoData(composer=composer, image_tokens=made.tokens_per_image, length=512, answers=256),
        optim.AdamW(2e-5, warmup=3_000, clip=1.0), 100_000, 64, sample=AskScenes("validation"),
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
