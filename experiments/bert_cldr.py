"""BERT's two pretraining tasks on CLDR's English: hidden words, and whether the second sentence follows the first.

A sentence is an emoji's name with its keywords, "fox: animal face orange"; the one that follows is the next emoji's.

tiny    seconds: does everything once, learns nothing
small   about 6 minutes on 2 CPU cores, from scratch, with the pack's own 2,048 word pieces (numbers: README)
paper   BERT-large as published (Devlin et al. 2019, appendix A.2), 256 rows of 512: for `mmjax plan` and pods

`mmjax sample runs/bert_cldr-small "fox: animal [MASK]"` fills in words. Differs from the original: Adam corrects its
bias, positions and types have no weight decay, and all steps have rows of one length (the original: 90 % of 128, then
10 % of 512).
"""

from functools import partial

from mmjax.data.emoji_text import SentencePairs
from mmjax.evals.encoder import HiddenWords, ask
from mmjax.models import bert
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

VOCAB_SIZE = 2048  # of the pack's own word pieces


def experiment(size: str) -> Experiment:
    config = bert.of_size(size, VOCAB_SIZE)
    data = SentencePairs(config.length)
    masking = bert.Masking(data.tokenizer.mask, config.vocab_size, never=(data.tokenizer.cls, data.tokenizer.sep))
    task = Task(
        bert.BERTForPreTraining(config), partial(bert.masking_loss, masking=masking, loss=bert.pretraining_loss)
    )
    evals = {
        "evals": (HiddenWords("validation", masking),),
        "final_evals": (HiddenWords("concepts", masking),),
        "sample": ask,
    }
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-3), steps=8, batch_size=16, **every, **evals)
    if size == "small":
        adamw = AdamW(peak=1e-3, warmup=200, decay="linear", weight_decay=0.01, clip=1.0)
        every = {"save_every": 500, "eval_every": 500, "log_every": 20}
        return Experiment(task, data, adamw, steps=2_000, batch_size=32, **every, **evals)
    adamw = AdamW(peak=1e-4, warmup=10_000, decay="linear", eps=1e-6, weight_decay=0.01, clip=1.0)
    return Experiment(task, data, adamw, steps=1_000_000, batch_size=256, mesh=MeshShape(fsdp=16), **evals)
