"""BERT fine-tuned to tag: which words of a sentence mention an emoji, and of which of 8 groups, for names never seen.

Sentences are composed ("we saw fox , pizza and car today"), names and groups are CLDR's; the score is that of named
entities, whole mentions of the right kind.

tiny    seconds: does everything once, learns nothing
small   about 2 minutes on 2 CPU cores, from the run of bert_cldr of the same size (numbers: README)
minilm  minutes, from real weights, as in bert_names: --set data.vocab=FOLDER, and each --set init_from.N.run=FOLDER
paper   BERT-large with the published recipe (Devlin et al. 2019, section 5.3 and appendix A.3)

`mmjax sample runs/bert_tags-small "we saw a red panda and a green car"` lists mentions.
"""

import dataclasses

from mmjax.data.emoji_text import Mentions
from mmjax.evals.encoder import Spans, ask
from mmjax.models import bert
from mmjax.nn.stack import Compute
from mmjax.train.experiment import Experiment, Source
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

VOCAB_SIZE = 2048  # of the pack's own word pieces
MINILM = "weights/minilm"
ENCODER = ("embed", "pos_embed", "type_embed", "norm", "layers")  # all but the pooler, which tags don't read


def experiment(size: str) -> Experiment:
    if size == "minilm":
        config = dataclasses.replace(bert.minilm(), compute=Compute(unroll=True))
    else:
        config = bert.of_size(size, VOCAB_SIZE)
    data = Mentions(vocab=MINILM if size == "minilm" else "")
    task = Task(bert.BERTForTagging(config, data.labels), bert.loss)
    run, inside = (MINILM, "params") if size == "minilm" else ("bert_cldr", "params/bert")
    sources = tuple(Source(run, f"{inside}/{part}", f"params/bert/{part}") for part in ENCODER)
    evals = {"evals": (Spans("validation"),), "final_evals": (Spans("concepts"),), "sample": ask}
    common = {"init_from": sources, **evals}
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-3), steps=8, batch_size=16, **every, **common)
    if size in ("small", "minilm"):
        adamw = AdamW(peak=5e-4 if size == "small" else 1e-4, warmup=40, decay="linear", weight_decay=0.01, clip=1.0)
        every = {"save_every": 200, "eval_every": 200, "log_every": 20}
        steps = 600 if size == "small" else 240
        return Experiment(task, data, adamw, steps, batch_size=32, **every, **common)
    adamw = AdamW(peak=5e-5, warmup=40, decay="linear", eps=1e-6, weight_decay=0.01, clip=1.0)
    return Experiment(task, data, adamw, steps=400, batch_size=32, **common)
