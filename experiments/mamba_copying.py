"""Mamba learns selective copying: letters among noise are remembered, the noise is not (mmjax.data.recall).

Gu and Dao 2023, section 4.1.1. A Transformer of the same number of parameters stands beside it: sizes named
NAME_transformer train it with the same steps, rows and learning rate. Both are then asked at lengths beyond training.

    mmjax train experiments/mamba_copying.py
    mmjax train experiments/mamba_copying.py --size small_transformer

tiny               seconds: does everything once, learns nothing
small              about 2 minutes on 2 CPU cores; 4 letters in 48 tokens, asked at up to 384 (numbers: README)
small_transformer  the Transformer beside it; also tiny_transformer and paper_transformer
paper              16 letters in 4,096 tokens, 400,000 steps of 64 rows at 1e-4, 2 layers of width 64 (section E.1)
"""

from typing import Any

from mmjax.data.recall import SelectiveCopying
from mmjax.evals.recall import Recall, Recalling
from mmjax.models import llama, mamba
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

TRANSFORMER = "_transformer"  # how sizes of the model beside Mamba end


def models(vocab_size: int, length: int, compute: Compute) -> dict[str, Any]:
    """Mamba and a Transformer: 2 layers of width 64, and 66 thousand parameters each."""
    config = mamba.MambaConfig(vocab_size, width=64, depth=2, rank=4, compute=compute)
    beside = llama.LlamaConfig(
        vocab_size, length, width=64, depth=2, num_heads=4, num_kv_heads=4, head_dim=16, hidden=85, tied=True,
        compute=compute,
    )  # fmt: skip
    return {"": mamba.Mamba(config), TRANSFORMER: llama.Llama(beside)}


def loss(model: Any, variables: dict, batch: dict, rng: Any, step: Any) -> tuple:
    """Of the answers only."""
    return pretrain.of_labels(model, variables, batch)


def experiment(size: str) -> Experiment:
    name, which = (size.removesuffix(TRANSFORMER), TRANSFORMER) if size.endswith(TRANSFORMER) else (size, "")
    data, lengths, steps, batch_size, peak = {
        "tiny": (SelectiveCopying(16, 8, count=2), (16, 32), 8, 8, 1e-3),
        "small": (SelectiveCopying(48, count=4), (48, 96, 192, 384), 2_000, 32, 3e-3),
        "paper": (SelectiveCopying(4096), (4096, 8192, 16_384), 400_000, 64, 1e-4),
    }[name]
    adamw = AdamW(peak, warmup=steps // 30, decay="constant" if name == "paper" else "cosine", clip=1.0)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if name == "tiny" else {"log_every": 20}
    beyond = tuple(length for length in lengths if length != data.length)
    model = models(data.vocab_size, 2 * max(lengths), Compute(unroll=name == "small"))[which]
    return Experiment(
        Task(model, loss), data, adamw, steps, batch_size,
        evals=(Recall((data.length,)),), final_evals=(Recall(beyond),), sample=Recalling(), **every,
    )  # fmt: skip
