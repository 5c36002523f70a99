"""The Transformer of 2017 learns to put emoji's names from English into German, Spanish, French, Japanese and Chinese.

tiny    seconds: does everything once, learns nothing
small   MINUTES on 2 CPU cores, from scratch; names that no split of training has (numbers: README)
paper   the base model with its published recipe (sections 5.3 and 5.4), for `mmjax plan` and pods

`mmjax sample runs/transformer_names-small "green apple"` translates; `--set task.model.config.norm_first=True` trains
the variant whose norms come first.
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data import emoji_names
from mmjax.evals.translation import Translations, Translator
from mmjax.models import transformer
from mmjax.nn.beam import Search
from mmjax.nn.stack import Compute
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import Noam
from mmjax.train.task import Task


def tiny_model() -> transformer.TransformerConfig:
    return dataclasses.replace(transformer.TransformerConfig.tiny(), vocab_size=emoji_names.vocab_size())


def small_model() -> transformer.TransformerConfig:
    return transformer.TransformerConfig(
        emoji_names.vocab_size(), width=128, depth=3, decoder_depth=3, num_heads=4, hidden=512, dropout=0.2,
        compute=Compute(unroll=True),
    )  # fmt: skip


def paper_model() -> transformer.TransformerConfig:
    return dataclasses.replace(transformer.base(), compute=Compute(jnp.bfloat16))


def experiment(size: str) -> Experiment:
    config = {"tiny": tiny_model, "small": small_model, "paper": paper_model}[size]()
    special = emoji_names.tokenizer()
    config = dataclasses.replace(config, pad_id=special.pad, start_id=special.start, end_id=special.end)
    data, task = emoji_names.Names(), Task(transformer.Transformer(config), transformer.loss)
    search = Search(length=data.length, beams=1 if size == "tiny" else 4)
    evals = {
        "evals": (Translations("validation", search),),
        "final_evals": (Translations("concepts", search),),
        "sample": Translator(search),
    }
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, Noam(config.width, warmup=8), steps=8, batch_size=16, **every, **evals)
    if size == "small":
        every = {"save_every": 1_000, "eval_every": 1_000, "log_every": 50}
        noam = Noam(config.width, warmup=800)
        return Experiment(task, data, noam, steps=3_000, batch_size=64, **every, **evals)
    return Experiment(task, data, Noam(config.width), steps=100_000, batch_size=1_024, mesh=MeshShape(fsdp=8), **evals)
