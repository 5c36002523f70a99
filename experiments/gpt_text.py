"""GPT-2 learns to continue text, on the rows that llama_text and mamba2_text read (mmjax.data.docs).

As many parameters and steps as mamba2_text; LLaMA over as many: see there.

tiny    seconds: does everything once, learns nothing
small   about 4 minutes on 2 CPU cores; perplexity on held-out documents (numbers: README)
paper   GPT-2 XL as published (Radford et al. 2019, section 2.3: 512 rows of 1,024 tokens): for `mmjax plan` and pods;
        the rate, which the paper doesn't give, is GPT-3's at that size (Brown et al. 2020, table 2.1), the text stays
        that of `docs`, and ids above 2,048 are not used
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data.docs import DocsData, tokenizer
from mmjax.evals.continuation import Continuation
from mmjax.evals.perplexity import Perplexity
from mmjax.models import gpt
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


def config(size: str) -> gpt.GPTConfig:
    vocab_size = tokenizer().get_vocab_size()
    small = gpt.GPTConfig(
        vocab_size, length=256, width=152, depth=4, num_heads=4, hidden=608, compute=Compute(unroll=True)
    )
    return {
        "tiny": dataclasses.replace(gpt.GPTConfig.tiny(), vocab_size=vocab_size, length=256),
        "small": small,
        "paper": dataclasses.replace(gpt.gpt2_xl(), compute=Compute(jnp.bfloat16, remat="full")),
    }[size]


def experiment(size: str) -> Experiment:
    task = Task(gpt.GPT(config(size)), pretrain.loss)
    wiring = {"evals": (Perplexity("held_out"),), "sample": Continuation()}
    if size == "tiny":
        data, every = DocsData(length=32, corpora=("emoji",)), {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=16, **every, **wiring)
    if size == "small":
        adamw = AdamW(peak=3e-3, warmup=100, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
        every = {"save_every": 500, "eval_every": 500, "log_every": 20}
        return Experiment(task, DocsData(), adamw, steps=400, batch_size=32, **every, **wiring)
    adamw = AdamW(peak=2e-4, warmup=2_000, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
    return Experiment(task, DocsData(length=1024), adamw, 250_000, 512, mesh=MeshShape(fsdp=32, data=-1), **wiring)
