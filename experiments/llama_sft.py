"""The LLaMA of llama_text learns to answer: demonstrations about the emoji pack, half of them wordy.

tiny    seconds: does everything once, learns nothing
small   about 8 minutes on 2 CPU cores; share of right answers about concepts that it never saw (numbers: README)
paper   LLaMA-7B with the hyper-parameters of Stanford Alpaca (Taori et al. 2023)
"""

from mmjax.data.docs import tokenizer
from mmjax.data.emoji_questions import EmojiChat
from mmjax.evals.answers import Answers, Talk
from mmjax.models import llama
from mmjax.objectives import sft
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment, Source
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


def experiment(size: str) -> Experiment:
    config = llama.of_size(size, tokenizer().get_vocab_size())
    task, data = Task(llama.Llama(config), sft.loss), EmojiChat()
    wiring = {"evals": (Answers("held_out"),), "sample": Talk(), "init_from": (Source("llama_text"),)}
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=16, **every, **wiring)
    if size == "small":
        adamw = AdamW(peak=1e-3, warmup=50, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
        every = {"save_every": 500, "eval_every": 500, "log_every": 20}
        return Experiment(task, data, adamw, steps=1_000, batch_size=32, **every, **wiring)
    adamw = AdamW(peak=2e-5, warmup=36, clip=1.0)  # 3 epochs of 52,000 conversations
    return Experiment(task, data, adamw, 1_218, 128, mesh=MeshShape(fsdp=-1, data=1), **wiring)
