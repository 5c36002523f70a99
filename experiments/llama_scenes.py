"""A language model that never sees: the questions and answers of scenes as text alone.

tiny        seconds: does everything once, learns nothing
small       about 4 minutes on one CPU core: the language model that llava_scenes and its heirs start from
small_200   with 200 names
small_twin  as many steps as those train: their blind twin, which says what the words of a question give away
paper       LLaMA-7B: for `mmjax plan` and pods
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import scene_text
from mmjax.data.scene_questions import SceneQuestions
from mmjax.evals.scene_answers import AskScenes, measured
from mmjax.models import llama, llava
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Task

ANSWERS = 56  # tokens that the assistant says in a row, at most


def loss(model: llama.Llama, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Of the answers; each conversation of a row by itself."""
    positions, mask = llava.packed(batch["segments"], batch["attention_mask"])
    out, _ = model.apply(variables, batch["input_ids"], positions, mask, method="decode")
    value, count = llava.answer_loss(model, variables, out.last_hidden_state, llava.labels_of(batch), ANSWERS)
    return value, Aux({"loss": value}, weight=count)


def config(size: str) -> llama.LlamaConfig:
    vocab_size = scene_text.tokenizer().get_vocab_size()
    if size == "paper":
        compute = Compute(jnp.bfloat16, remat="full")
        return dataclasses.replace(llama.llama_7b(), vocab_size=vocab_size, compute=compute)
    return llava.of_size("tiny" if size == "tiny" else "small", vocab_size, 0).language


def experiment(size: str) -> Experiment:
    steps, batch, concepts = {
        "tiny": (8, 8, 16), "small": (1_000, 32, 64), "small_twin": (2_000, 32, 64), "small_200": (1_000, 32, 200),
        "paper": (50_000, 256, 600),
    }[size]  # fmt: skip
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 1_000}
    return Experiment(
        Task(llama.Llama(config(size)), loss), SceneQuestions(vocabulary=concepts, image_tokens=0, answers=ANSWERS),
        optim.Muon(2e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch,
        **measured(size == "tiny"), sample=AskScenes("twemoji"), **every,
    )  # fmt: skip
