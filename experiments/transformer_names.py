"""The Transformer of 2017 translates the emoji pack's names: English to German, Spanish and French, one model for all.

tiny    seconds: does everything once, learns nothing
small   about 6 minutes on 2 CPU cores; names it never saw, right to the letter and in chrF (numbers: README)
paper   the base model as published (Vaswani et al. 2017, table 3 and section 5): 100,000 steps of 25,000 tokens a side,
        for `mmjax plan` and pods; the names stay those of the pack, and ids above its vocabulary are not used

`mmjax sample runs/transformer_names-small "green apple"` translates. Differs from the original: whole sentences in rows
of one length, and the last parameters are used (the original: the mean of the last five checkpoints).
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data.emoji_names import EmojiNames, tokenizer
from mmjax.evals.translation import Translations, ask
from mmjax.models import transformer
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import Noam
from mmjax.train.task import Task


def small() -> transformer.TransformerConfig:
    """1.1 M parameters."""
    return transformer.TransformerConfig(
        width=128, depth=2, decoder_depth=2, num_heads=4, hidden=512, compute=Compute(unroll=True)
    )


def config(size: str) -> transformer.TransformerConfig:
    made = {"tiny": transformer.TransformerConfig.tiny, "small": small, "paper": transformer.base}[size]()
    ids = {"pad_id": tokenizer().pad, "start_id": tokenizer().start, "end_id": tokenizer().end}
    if size == "paper":
        return dataclasses.replace(made, compute=Compute(jnp.bfloat16), **ids)
    return dataclasses.replace(made, vocab_size=tokenizer().vocab_size, **ids)


def experiment(size: str) -> Experiment:
    model = transformer.Transformer(config(size))
    task, width = Task(model, transformer.loss), model.config.width
    evals = {"evals": (Translations("validation"),), "final_evals": (Translations("concepts"),), "sample": ask}
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, EmojiNames(), Noam(width, 8), steps=8, batch_size=16, **every, **evals)
    if size == "small":
        noam, every = Noam(width, warmup=400, factor=0.25), {"save_every": 500, "eval_every": 500, "log_every": 20}
        return Experiment(task, EmojiNames(), noam, steps=3_000, batch_size=64, **every, **evals)
    # 98 rows of 256 tokens are 25,000; 4 more, so that chips have as many each.
    data = EmojiNames(source_length=256, length=256)
    return Experiment(task, data, Noam(width), steps=100_000, batch_size=128, mesh=MeshShape(), **evals)
