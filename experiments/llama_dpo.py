"""DPO: the LLaMA of llama_sft learns from the same preferences as llama_reward, without a reward model.

tiny    seconds: does everything once, learns nothing
small   about 2 minutes on 2 CPU cores; win rate against the SFT model on held-out questions, and the divergence from it
        that this costs (numbers: README)
paper   LLaMA-7B with the hyper-parameters of Rafailov et al. 2023, appendix B (there with RMSprop)
"""

from mmjax.data.docs import tokenizer
from mmjax.data.emoji_questions import EmojiPreferences
from mmjax.evals.answers import Answers, Talk, WinRate
from mmjax.models import llama
from mmjax.objectives.dpo import DPO
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment, Source
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


def experiment(size: str) -> Experiment:
    config = llama.of_size(size, tokenizer().get_vocab_size())
    # A small model leaves the reference easily, and loses what it knew: dearer there than in the paper.
    dpo, data = DPO(beta=0.3 if size == "small" else 0.1), EmojiPreferences(length=72)
    task = Task(llama.Llama(config), dpo)
    wiring = {
        "evals": (Answers("held_out"), WinRate("held_out")),
        "sample": Talk(),
        "init_from": (Source("llama_sft", "params", "params"), Source("llama_sft", "params", "reference")),
    }
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=16, **every, **wiring)
    if size == "small":
        adamw = AdamW(peak=2e-5, warmup=20, end=0.1, clip=1.0)
        every = {"save_every": 500, "eval_every": 50, "log_every": 10}
        return Experiment(task, data, adamw, steps=150, batch_size=32, **every, **wiring)
    adamw = AdamW(peak=1e-6, warmup=150, decay="constant", clip=10.0)
    return Experiment(task, data, adamw, 2_500, 64, mesh=MeshShape(fsdp=-1, data=1), **wiring)
