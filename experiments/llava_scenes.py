"""LLaVA on scenes: a tower that was trained by what its patches show, a projector, and a small language model.

Sizes, all but `tiny` and `paper` about 20 minutes on one of 2 CPU cores (README):

tiny               seconds: does everything once, learns nothing
small              projector of two layers, all of it trained on conversations
small_linear       projector of one layer
small_200          with 200 concepts
paper              LLaVA-1.5-7B, stage 2: for `mmjax plan` and pods

Starts from vit_scenes (what sees) and llama_scenes (what speaks) of the same size. What the patches show stays an
auxiliary task, without which the tower forgets it. Places are numbers as text, as Shikra writes them.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import scene_text
from mmjax.data.scene_questions import COMPOSER, SceneQuestions
from mmjax.evals.scene_answers import AskScenes, SceneAnswers
from mmjax.models import llama, llava, vit
from mmjax.nn import cells
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task, init_model

CELLS = 1.0  # weight of the auxiliary task


@dataclasses.dataclass(frozen=True)
class Loss:
    """Answers, and what the patches show: the heads of vit_scenes are in params["cells"]."""

    heads: cells.CellHeads
    most: int = 56  # tokens that the assistant says in a row, SceneQuestions.answers

    def __call__(self, model, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
        out = llava.forward(model, variables, batch)
        answers, _ = llava.answer_loss(model, variables, out.last_hidden_state, llava.labels_of(batch), self.most)
        told = self.heads.apply({"params": variables["params"]["cells"]}, out.image_features)
        shown, metrics = cells.loss(told, batch["cells"], batch["cell_boxes"])
        total = answers + CELLS * shown
        return total, Aux({"loss": total, "answers": answers, "cell_names": metrics["names"]})

    def init(self, model, rng: jax.Array, batch: dict, loaded: dict) -> dict:
        loaded = {"params": dict(loaded.get("params", {}))}
        own = loaded["params"].pop("cells", None)
        variables = init_model(model, rng, batch, loaded)
        side = batch["cells"].shape[1]
        fresh = self.heads.init(rng, jnp.zeros((1, side * side, model.config.vision.width)))["params"]
        return {**variables, "params": {**variables["params"], "cells": fresh if own is None else own}}


def config(size: str) -> llava.LlavaConfig:
    image = scene_text.id_of(scene_text.IMAGE)
    vocab_size = scene_text.tokenizer().get_vocab_size()
    if size == "paper":
        return llava.llava_1_5_7b()
    plain = (0.5, 0.5, 0.5)
    vision = vit.ViTConfig(
        64, 8, width=96, depth=3, num_heads=3, hidden=192, stem=(32, 64), class_token=False, pool=vit.patch_mean
    )
    language = llama.LlamaConfig(
        vocab_size, length=512, width=96, depth=3, num_heads=3, num_kv_heads=3, head_dim=32, hidden=256, tied=True,
        compute=Compute(unroll=True),
    )  # fmt: skip
    compute = Compute(unroll=True)
    if size == "tiny":
        vision = dataclasses.replace(vision, width=32, depth=2, num_heads=2, hidden=32, stem=())
        language = dataclasses.replace(llama.LlamaConfig.tiny(), vocab_size=vocab_size, length=256, tied=True)
        compute = Compute()
    projector = llava.linear if size == "small_linear" else llava.mlp
    return llava.LlavaConfig(
        vision, language, image_token=image, see=llava.ViTPatches, projector=projector, image_mean=plain,
        image_std=plain, compute=compute,
    )  # fmt: skip


def small(size: str) -> Experiment:
    steps, batch, concepts = {
        "tiny": (8, 8, 16), "small": (5_000, 32, 64), "small_linear": (5_000, 32, 64), "small_200": (8_000, 32, 200),
    }[size]  # fmt: skip
    loss = Loss(cells.CellHeads(concepts))
    of = {"tiny": "tiny", "small_200": "small_200"}.get(size, "small")
    sees = Source(f"runs/vit_scenes-{of}", "params", "params")
    speaks = Source(f"runs/llama_scenes-{of}", "params", "params/language")
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 1_000}
    few = {"count": 8, "kinds": ("what", "where")} if size == "tiny" else {}
    choice, held_out = SceneAnswers("validation", **(few or {"count": 200})), SceneAnswers("twemoji", **few)
    return Experiment(
        Task(llava.Llava(config(size)), loss, init=loss.init), SceneQuestions(vocabulary=concepts),
        optim.AdamW(2e-3, warmup=200, weight_decay=0.05, clip=1.0), steps, batch, evals=(choice,),
        final_evals=(held_out, SceneAnswers("combinations", **few)), sample=AskScenes("twemoji"),
        init_from=(sees, speaks), **every,
    )  # fmt: skip


def paper() -> Experiment:
    made, composer = config("paper"), dataclasses.replace(COMPOSER, size=336, objects=(1, 6))
    data = SceneQuestions(vocabulary=600, composer=composer, image_tokens=576, length=1_000, cells=24)
    language = dataclasses.replace(made.language, compute=Compute(jnp.bfloat16, remat="full"))
    made = dataclasses.replace(made, language=language, compute=Compute(jnp.bfloat16, remat="full"))
    adamw = optim.AdamW(2e-5, warmup=156, clip=1.0)  # 5,197 steps are one epoch of 665k, warm-up 3 %
    return Experiment(Task(llava.Llava(made), llava.loss, trainable=llava.INSTRUCT), data, adamw, 5_197, 128)


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
