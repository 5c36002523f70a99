"""CLIP on the emoji pack: learns from seven artists, is asked about an eighth that it never saw.

tiny    seconds: does everything once, learns nothing
small   about 6 minutes on 2 CPU cores, then names Twemoji's drawings among all 1,555 names (numbers: README)
paper   ViT-L/14 as published (Radford et al. 2021, tables 19 and 20), global batch 32,768: for `mmjax plan` and pods
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data.emoji import EmojiData, tokenizer
from mmjax.evals.embedding_map import EmbeddingMap
from mmjax.evals.knn import KNN
from mmjax.evals.probe import LinearProbe
from mmjax.evals.retrieval import Retrieval
from mmjax.evals.search import Search
from mmjax.evals.zero_shot import ZeroShot
from mmjax.models import clip
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

# Choices are made on validation drawings; the held-out artist and concepts are read once, at the end.
CHOICE = (Retrieval("validation"), ZeroShot("validation"))
HELD_OUT = (
    ZeroShot("twemoji"), Retrieval("twemoji"), Retrieval("concepts"), Retrieval("twemoji_concepts"),
    KNN("twemoji"), LinearProbe("twemoji"), EmbeddingMap("twemoji"),
)  # fmt: skip


def tiny_model() -> clip.CLIP:
    config = clip.CLIPConfig.tiny()
    text = dataclasses.replace(config.text, vocab_size=tokenizer().vocab_size)
    return clip.CLIP(dataclasses.replace(config, text=text))


def small_model() -> clip.CLIP:
    config = clip.small(tokenizer().vocab_size, length=16)
    return clip.CLIP(dataclasses.replace(config, compute=Compute(unroll=True)))


def paper_model() -> clip.CLIP:
    compute = Compute(jnp.bfloat16, remat="full")
    return clip.CLIP(dataclasses.replace(clip.vit_l14(), compute=compute))


def task(model: clip.CLIP) -> Task:
    cached = (clip.embed, clip.loss_of_embeddings)
    return Task(model, clip.loss, after_update=clip.clamp_scale, cached=cached)


def experiment(size: str) -> Experiment:
    model = {"tiny": tiny_model, "small": small_model, "paper": paper_model}[size]()
    data = EmojiData(model.config.vision.image_size, model.config.text.length)
    evals = {"evals": CHOICE, "final_evals": HELD_OUT, "sample": Search("twemoji")}
    if size == "tiny":
        adamw, every = AdamW(1e-3), {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task(model), data, adamw, steps=8, batch_size=16, **every, **evals)
    if size == "small":
        adamw = AdamW(peak=2e-3, warmup=100, end=0.01, b2=0.98, weight_decay=0.05, clip=1.0)
        every = {"save_every": 600, "eval_every": 600, "log_every": 20}
        return Experiment(task(model), data, adamw, steps=2_000, batch_size=128, **every, **evals)
    adamw = AdamW(peak=4e-4, warmup=2_000, b2=0.98, eps=1e-6, weight_decay=0.2)  # 32 epochs of 400 M pairs
    mesh = MeshShape(fsdp=16)
    return Experiment(task(model), data, adamw, steps=390_625, batch_size=32_768, mesh=mesh, **evals)
