"""SigLIP on the emoji pack: as clip_emoji, but each pair of drawing and caption is asked by itself whether it fits.

tiny    seconds: does everything once, learns nothing
small   about 6 minutes on 2 CPU cores, then names Twemoji's drawings among all 1,555 names (numbers: README)
paper   B/16 at 224 pixels, 9 billion pairs in global batches of 32,768 (Zhai et al. 2023, section 4): for `mmjax plan`
        and pods

Captions are padded and not masked: the text tower sees the padding, as in the original.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from mmjax.data import pipeline
from mmjax.data.emoji import EmojiData, tokenizer
from mmjax.evals.embedding_map import EmbeddingMap
from mmjax.evals.knn import KNN
from mmjax.evals.probe import LinearProbe
from mmjax.evals.retrieval import Retrieval
from mmjax.evals.search import Search
from mmjax.evals.zero_shot import ZeroShot
from mmjax.models import siglip
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


@dataclasses.dataclass(frozen=True)
class PaddedEmoji(EmojiData):
    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return {"input_ids": super().tokenize(texts)["input_ids"]}


def tiny_model() -> siglip.SigLIP:
    config = siglip.SigLIPConfig.tiny()
    text = dataclasses.replace(config.text, vocab_size=tokenizer().vocab_size)
    return siglip.SigLIP(dataclasses.replace(config, text=text))


def small_model() -> siglip.SigLIP:
    config = siglip.small(tokenizer().vocab_size, length=16)
    return siglip.SigLIP(dataclasses.replace(config, compute=Compute(unroll=True)))


def paper_model() -> siglip.SigLIP:
    return siglip.SigLIP(dataclasses.replace(siglip.b16(), compute=Compute(jnp.bfloat16, remat="full")))


def experiment(size: str) -> Experiment:
    model = {"tiny": tiny_model, "small": small_model, "paper": paper_model}[size]()
    task = Task(model, siglip.loss, cached=(siglip.embed, siglip.loss_of_embeddings))
    data = PaddedEmoji(model.config.vision.image_size, model.config.text.length)
    evals = {"evals": CHOICE, "final_evals": HELD_OUT, "sample": Search("twemoji")}
    if size == "tiny":
        adamw, every = AdamW(1e-3), {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, adamw, steps=8, batch_size=16, **every, **evals)
    if size == "small":
        adamw = AdamW(peak=2e-3, warmup=100, end=0.01, b2=0.98, weight_decay=0.05, clip=1.0)
        every = {"save_every": 600, "eval_every": 600, "log_every": 20}
        return Experiment(task, data, adamw, steps=2_000, batch_size=128, **every, **evals)
    # big_vision's decay of 1e-4 is not multiplied by the peak, as optax's is. Warm-up and clipping are not published.
    adamw = AdamW(peak=1e-3, warmup=10_000, b2=0.95, weight_decay=0.1, clip=1.0, mask=r"kernel$")
    mesh = MeshShape(fsdp=16)
    return Experiment(task, data, adamw, steps=274_658, batch_size=32_768, mesh=mesh, **evals)
