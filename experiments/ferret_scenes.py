"""Ferret on scenes: what a question points at is sampled from the picture, at every pixel that belongs to it.

tiny        seconds: does everything once, learns nothing
small       about 11 minutes on one CPU core, after llava_scenes in its size small_long
small_plain as small, with the mean over the region in place of the spatial-aware sampler
small_200   with 200 concepts
paper       Ferret-7B: for `mmjax plan` and pods

As shikra_scenes, but for the regions; places are integers from 0 to 99. Layouts are composed, pixels are the artists'
own; the numbers are of an artist that was never trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import scene_text, scene_turns
from mmjax.data.scene_questions import COMPOSER, SceneQuestions
from mmjax.evals.scene_answers import AskScenes, measured
from mmjax.models import ferret, llava
from mmjax.nn.cells import Beside
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task, init_model

ANSWERS = 56  # tokens that the assistant says in a row, at most


@dataclasses.dataclass(frozen=True)
class Loss:
    cells: Beside

    def __call__(self, model, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
        out = ferret.forward(model, variables, batch, rng)
        labels = llava.labels_of(batch)
        text, _ = llava.answer_loss(model, variables, out.last_hidden_state, labels, ANSWERS)
        return self.cells.added(text, {"text": text}, variables, out.image_features, batch)


def config(size: str) -> ferret.FerretConfig:
    vocab_size, image = scene_text.tokenizer().get_vocab_size(), scene_text.id_of(scene_text.IMAGE)
    made = llava.of_size("tiny" if size == "tiny" else "small", vocab_size, image)
    return ferret.FerretConfig(
        dataclasses.replace(made, projector=llava.linear), scene_text.id_of(scene_text.REGION),
        regions=ferret.plain if size == "small_plain" else ferret.sampler,
        sampler=ferret.SamplerConfig(32, (8, 4), (6, 4)),
    )  # fmt: skip


def small(size: str) -> Experiment:
    steps, batch, concepts = {
        "tiny": (8, 8, 16), "small": (1_000, 32, 64), "small_plain": (1_000, 32, 64), "small_200": (1_000, 32, 200),
    }[size]  # fmt: skip
    made, of = config(size), size.removesuffix("_plain")
    cells = Beside(concepts, made.llava.vision.width)
    knows = Source(f"llava_scenes-{'small_long' if of == 'small' else of}", "params", "params")
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 500}
    data = SceneQuestions(
        scene_text.Regions(), concepts, answers=ANSWERS, region_points=made.sampler.points, often=scene_turns.PLACES
    )
    return Experiment(
        Task(ferret.Ferret(made), Loss(cells), init=cells.started(init_model)), data,
        optim.Muon(2e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch, **measured(size == "tiny"),
        sample=AskScenes("twemoji"), init_from=(knows,), **every,
    )  # fmt: skip


def paper() -> Experiment:
    made, composer = ferret.ferret_7b(), dataclasses.replace(COMPOSER, size=336, objects=(1, 6))
    # Rows are written in the vocabulary of scenes, whose special ids are others than Ferret's.
    inner = llava.computed(made.llava, Compute(jnp.bfloat16, remat="full"))
    inner = dataclasses.replace(inner, image_token=scene_text.id_of(scene_text.IMAGE))
    made = dataclasses.replace(made, llava=inner, region_token=scene_text.id_of(scene_text.REGION))
    data = SceneQuestions(
        scene_text.Regions(), 600, composer, image_tokens=576, length=512, answers=256, cells=24,
        region_points=made.sampler.points,
    )  # fmt: skip
    adamw = optim.AdamW(2e-5, warmup=780, clip=1.0)  # 3 epochs of 1.1 million
    return Experiment(
        Task(ferret.Ferret(made), ferret.loss, trainable=ferret.TRAINED),
        data,
        adamw,
        26_000,
        128,
        sample=AskScenes("twemoji"),
    )


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
