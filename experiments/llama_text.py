"""LLaMA learns to continue text: the first of the steps to a chat model (llama_sft, llama_reward, llama_ppo ...).

The text is what Python, NumPy and the emoji pack say about themselves (mmjax.data.docs), 1.3 million tokens.

tiny    seconds: does everything once, learns nothing
small   about 9 minutes on 2 CPU cores; perplexity on held-out documents (numbers: README)
paper   LLaMA-7B as published (Touvron et al. 2023, section 2 and table 2), 4 million tokens a batch: for `mmjax plan`
        and pods; the text stays that of `docs`, and ids above 2,048 are not used
"""

from mmjax.data.docs import DocsData, tokenizer
from mmjax.evals.continuation import Continuation
from mmjax.evals.perplexity import Perplexity
from mmjax.models import llama
from mmjax.objectives import pretrain
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


def experiment(size: str) -> Experiment:
    config = llama.of_size(size, tokenizer().get_vocab_size())
    task = Task(llama.Llama(config), pretrain.loss)
    wiring = {"evals": (Perplexity("held_out"),), "sample": Continuation()}
    if size == "tiny":
        data, every = DocsData(length=32, corpora=("emoji",)), {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=16, **every, **wiring)
    if size == "small":
        adamw = AdamW(peak=3e-3, warmup=100, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
        every = {"save_every": 500, "eval_every": 500, "log_every": 20}
        return Experiment(task, DocsData(), adamw, steps=1_300, batch_size=32, **every, **wiring)
    adamw = AdamW(peak=3e-4, warmup=2_000, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
    return Experiment(task, DocsData(length=2048), adamw, 250_000, 2_048, mesh=MeshShape(fsdp=256), **wiring)
