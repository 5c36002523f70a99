"""Mamba-2 learns to continue text, on the rows that llama_text reads (mmjax.data.docs), for fewer steps.

LLaMA beside it, over as many steps: mmjax train experiments/llama_text.py --workdir runs/llama_text-400 --set steps=400

Rows are packed: the state and the convolutions start anew with each document.

tiny    seconds: does everything once, learns nothing
small   about 8 minutes on 2 CPU cores; perplexity on held-out documents (numbers: README, beside LLaMA's)
paper   Mamba-2 2.7B as published (Dao and Gu 2024, section 9.2), a million tokens a batch, rates 5 times GPT-3's: for
        `mmjax plan` and pods; the text stays that of `docs`, and ids above 2,048 are not used
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data.docs import DocsData, tokenizer
from mmjax.evals.continuation import Continuation
from mmjax.evals.perplexity import Perplexity
from mmjax.models import mamba2
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


def config(size: str) -> mamba2.Mamba2Config:
    vocab_size = tokenizer().get_vocab_size()
    full, small = Compute(jnp.bfloat16, remat="full"), Compute(unroll=True)
    return {
        "tiny": dataclasses.replace(mamba2.Mamba2Config.tiny(), vocab_size=vocab_size),
        # 1.5 million parameters, as llama.small
        "small": mamba2.Mamba2Config(vocab_size, width=160, depth=7, heads=5, state=32, compute=small),
        "paper": dataclasses.replace(mamba2.mamba2_2_7b(), compute=full),
    }[size]


def experiment(size: str) -> Experiment:
    task = Task(mamba2.Mamba2(config(size)), pretrain.loss)
    wiring = {"evals": (Perplexity("held_out"),), "sample": Continuation()}
    if size == "tiny":
        data, every = DocsData(length=32, corpora=("emoji",)), {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=16, **every, **wiring)
    if size == "small":
        adamw = AdamW(peak=3e-3, warmup=100, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
        every = {"save_every": 500, "eval_every": 500, "log_every": 20}
        return Experiment(task, DocsData(), adamw, steps=400, batch_size=32, **every, **wiring)
    adamw = AdamW(peak=8e-4, warmup=3_000, end=0.0125, b2=0.95, weight_decay=0.1, clip=1.0)
    return Experiment(task, DocsData(length=2048), adamw, 300_000, 512, mesh=MeshShape(fsdp=256), **wiring)
