"""CLIP on your own pictures: a folder of images and a file of captions (see mmjax/data/folder.py).

    mmjax train experiments/clip_folder.py --set data.path=my_pictures

tiny    seconds, to see whether the folder reads
small   2,000 steps of 128 pairs, 64 x 64 pixels: some 15 minutes on 2 CPU cores
paper   ViT-B/16 as published, global batch 32,768; name CLIP's vocabulary: --set data.tokenizer=FILE

The vocabulary is trained on the captions. With a `data.tokenizer` of your own,
set task.model.config.text.vocab_size to its size: an id beyond it makes the loss not a number.
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data.folder import TRAINED_VOCABULARY, FolderData
from mmjax.evals.retrieval import Retrieval
from mmjax.evals.search import Search
from mmjax.models import clip
from mmjax.nn.stack import Compute
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


def experiment(size: str) -> Experiment:
    small = clip.small(TRAINED_VOCABULARY, length=32, image_size=64)
    config, compute, batch_size = {
        "tiny": (small, Compute(unroll=True), 16),
        "small": (small, Compute(unroll=True), 128),
        "paper": (clip.vit_b16(), Compute(jnp.bfloat16, remat="full"), 32_768),
    }[size]
    model = clip.CLIP(dataclasses.replace(config, compute=compute))
    cached = (clip.embed, clip.loss_of_embeddings)
    task = Task(model, clip.loss, after_update=clip.clamp_scale, cached=cached)
    data = FolderData(image_size=config.vision.image_size, text_length=config.text.length)
    optimizer = AdamW(peak=1e-3, warmup=100, b2=0.98, weight_decay=0.1, clip=1.0)
    evals = {"evals": (Retrieval("validation"),), "sample": Search("validation")}
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, optimizer, steps=8, batch_size=batch_size, **every, **evals)
    steps = {"small": 2_000, "paper": 390_625}[size]
    return Experiment(task, data, optimizer, steps=steps, batch_size=batch_size, **evals)
