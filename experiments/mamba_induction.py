"""Mamba learns induction heads: it sees a pair once and completes it much later (mmjax.data.recall).

Gu and Dao 2023, section 4.1.2. Trained at one length and asked at others, up to 32 times as long. A Transformer of the
same number of parameters stands beside it: sizes named NAME_transformer train it with the same steps, rows and learning
rate. It has never seen two tokens that far apart.

    mmjax train experiments/mamba_induction.py
    mmjax train experiments/mamba_induction.py --size small_transformer

tiny               seconds: does everything once, learns nothing
small              about 2 minutes on 2 CPU cores; trained on 32 tokens, asked at up to 1,024 (numbers: README)
small_transformer  the Transformer beside it; also tiny_transformer and paper_transformer
paper              trained on 256 tokens, 204,800 steps of 8 rows, asked at up to 2^16 (theirs: 2^20; section E.1)
"""

from typing import Any

from mmjax.data.recall import InductionHeads
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
        "tiny": (InductionHeads(8, 8), (8, 16), 8, 8, 1e-3),
        "small": (InductionHeads(32), (32, 64, 128, 256, 512, 1024), 1_500, 32, 3e-3),
        "paper": (InductionHeads(256), tuple(2**n for n in range(6, 17)), 204_800, 8, 1e-3),
    }[name]
    adamw = AdamW(peak, warmup=steps // 30, clip=1.0)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if name == "tiny" else {"log_every": 20}
    beyond = tuple(length for length in lengths if length != data.length)
    model = models(data.vocab_size, max(lengths), Compute(unroll=name == "small"))[which]
    return Experiment(
        Task(model, loss), data, adamw, steps, batch_size,
        evals=(Recall((data.length,)),), final_evals=(Recall(beyond),), sample=Recalling(), **every,
    )  # fmt: skip
