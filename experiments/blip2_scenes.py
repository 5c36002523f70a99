"""BLIP-2 on scenes, its second stage: what the queries found stands before the words of a language model.

tiny    seconds: does everything once, learns nothing
small   about 5 minutes on one of 2 CPU cores, not recorded yet, after qformer_scenes and llama_scenes
paper   ViT-g and LLaMA-7B with the steps and the batch published for OPT: for `mmjax plan` and pods

Trained are queries, Q-Former, the norm after the tower and one linear projection; tower and language model stay as they
are. All that is asked is what the picture shows, as published. Layouts are composed, pixels are the artists' own; the
numbers are of an artist that was never trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import scene_text
from mmjax.data.scene_questions import COMPOSER, SceneQuestions
from mmjax.evals.scene_answers import AskScenes, SceneAnswers
from mmjax.models import blip2, llava
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model


def started(model: llava.Llava, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """The eyes are those of `stage1`, all parameters of the first stage, where it was loaded."""
    params = dict(loaded.get("params", {}))
    if "stage1" in loaded:
        params["vision"] = blip2.eyes_of(loaded["stage1"])
    return init_model(model, rng, batch, {"params": params})


def config(size: str) -> llava.LlavaConfig:
    vocab_size, image = scene_text.tokenizer().get_vocab_size(), scene_text.id_of(scene_text.IMAGE)
    if size == "paper":
        made, compute = blip2.vit_g_llama_7b(), Compute(jnp.bfloat16, remat="full")
        see = blip2.Ask(dataclasses.replace(made.see.qformer, compute=compute))
        # Rows are written in the vocabulary of scenes, whose id of a picture is another than the published model's.
        return llava.computed(dataclasses.replace(made, see=see, image_token=image), compute)
    made = llava.of_size(size, vocab_size, image)
    queries = blip2.of_size(size, made.vision, vocab_size, 0, made.compute).qformer
    return dataclasses.replace(blip2.blip2(made.vision, queries, made.language, image), compute=made.compute)


def small(size: str) -> Experiment:
    steps, batch, concepts = {"tiny": (8, 8, 16), "small": (1_500, 32, 64)}[size]
    tiny = size == "tiny"
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 500}
    few = {"count": 8} if tiny else {}
    return Experiment(
        Task(blip2.Blip2(config(size)), llava.loss, trainable=blip2.TRAINABLE, init=started),
        data(concepts, config(size).tokens_per_image),
        optim.AdamW(2e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch,
        evals=(SceneAnswers("validation", **(few or {"count": 200})),),
        final_evals=(SceneAnswers("twemoji", **few),), sample=AskScenes("twemoji"),
        init_from=(
            Source("qformer_scenes", "params", "stage1"), Source("llama_scenes", "params", "params/language"),
        ), **every,
    )  # fmt: skip


def data(concepts: int, image_tokens: int, **fields) -> SceneQuestions:
    return SceneQuestions(
        vocabulary=concepts, image_tokens=image_tokens, kinds=("caption",), answered=True, length=32, **fields
    )  # fmt: skip


def paper() -> Experiment:
    made, composer = config("paper"), dataclasses.replace(COMPOSER, size=224, objects=(1, 6))
    adamw = optim.AdamW(1e-4, warmup=2_000, end=0.5, b2=0.98, weight_decay=0.05)
    return Experiment(
        Task(blip2.Blip2(made), llava.loss, trainable=blip2.TRAINABLE),
        data(600, made.tokens_per_image, composer=composer), adamw, 80_000, 1_920, sample=AskScenes("twemoji"),
        mesh=MeshShape(data=1, fsdp=-1),  # 15 rows on each of 128 chips
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
