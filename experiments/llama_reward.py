"""A reward model, from the LLaMA of llama_sft with a head for one number: right before wrong, short before wordy.

tiny    seconds: does everything once, learns nothing
small   about 3 minutes on 2 CPU cores; share of pairs about held-out concepts that it orders as people do
        (numbers: README)
paper   LLaMA-7B with the hyper-parameters of Llama 2's reward models (Touvron et al. 2023b, section 3.2.2)
"""

from mmjax.data.docs import tokenizer
from mmjax.data.emoji_questions import EmojiPreferences
from mmjax.evals.preference import RewardAccuracy, Score
from mmjax.models import llama
from mmjax.models.reward import RewardModel
from mmjax.objectives.reward import Reward
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment, Source
from mmjax.train.optim import AdamW
from mmjax.train.task import Task


def experiment(size: str) -> Experiment:
    config = llama.of_size(size, tokenizer().get_vocab_size())
    task, data = Task(RewardModel(llama.Llama(config)), Reward(center=0.01)), EmojiPreferences(length=72)
    wiring = {
        "evals": (RewardAccuracy("held_out"),),
        "sample": Score(),
        "init_from": (Source("llama_sft", "params", "params/language_model"),),
    }
    if size == "tiny":
        every = {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(task, data, AdamW(1e-2), steps=8, batch_size=16, **every, **wiring)
    if size == "small":
        adamw = AdamW(peak=3e-4, warmup=50, end=0.1, weight_decay=0.1, clip=1.0)
        every = {"save_every": 500, "eval_every": 100, "log_every": 20}
        return Experiment(task, data, adamw, steps=400, batch_size=32, **every, **wiring)
    adamw = AdamW(peak=1e-5, warmup=85, end=0.1, b2=0.95, eps=1e-5, weight_decay=0.1, clip=1.0)
    return Experiment(task, data, adamw, 2_830, 512, mesh=MeshShape(fsdp=-1, data=1), **wiring)  # 1.4 M pairs
