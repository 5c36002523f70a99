"""A language model on captions alone, in four sizes and from less data: the other side of the Platonic ladder.

It reads sentences "fox: animal face orange" of the concepts whose drawings ladder_images sees, and `_ladder` asks
whether the two come closer. Held-out concepts stay out. All take as many steps. Of each base size there are

    BASE_xs, BASE_s, BASE, BASE_l       width 32, 64, 128, 192
    BASE_16th, BASE_quarter             BASE from a share of the concepts, the same as of ladder_images

tiny    seconds: does everything once, learns nothing
small   a half (xs) to 2 CPU minutes (l), 6 for all six; perplexity of concepts that are kept for validation
paper   SmolLM2's three sizes and LLaMA-7B on these captions: for `mmjax plan` and pods
"""

import dataclasses

import jax.numpy as jnp

from mmjax.data import emoji_text
from mmjax.evals.continuation import Keywords
from mmjax.evals.perplexity import Perplexity
from mmjax.models import llama
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

SIZES = {"xs": (32, 2, 2), "s": (64, 3, 4), "": (128, 4, 4), "l": (192, 6, 6)}  # width, depth, heads
SHARES = {"16th": 1 / 16, "quarter": 1 / 4}  # of the concepts


def from_scratch(which: tuple[int, int, int], share: float, steps: int, **every) -> Experiment:
    width, depth, heads = which
    data = emoji_text.Sentences(share=share)
    config = llama.LlamaConfig(
        data.tokenizer.vocab_size, data.length, width, depth, heads, heads, head_dim=width // heads,
        hidden=8 * width // 3, tied=True, compute=Compute(unroll=steps > 100),
    )  # fmt: skip
    adamw = AdamW(peak=3e-3, warmup=steps // 10, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
    task = Task(llama.Llama(config), pretrain.loss)
    return Experiment(task, data, adamw, steps, batch_size=32, eval_every=steps, **every)


def paper(size: str, share: float) -> Experiment:
    sizes = {"xs": llama.smollm2_135m, "s": llama.smollm2_360m, "": llama.smollm2_1_7b, "l": llama.llama_7b}
    config = dataclasses.replace(sizes[size](), compute=Compute(jnp.bfloat16, remat="full"))
    adamw = AdamW(peak=3e-4, warmup=2_000, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
    task, data = Task(llama.Llama(config), pretrain.loss), emoji_text.Sentences(share=share)
    return Experiment(task, data, adamw, 250_000, 2_048, mesh=MeshShape(fsdp=256))


def experiment(size: str) -> Experiment:
    base, _, variant = size.partition("_")
    if base not in ("tiny", "small", "paper") or variant not in {*SIZES, *SHARES} or size.endswith("_"):
        raise KeyError(size)
    which, share = variant * (variant in SIZES), SHARES.get(variant, 1.0)
    if base == "paper":
        made = paper(which, share)
    elif base == "tiny":
        made = from_scratch((SIZES[which][0] // 4, 2, 2), share, steps=4, save_every=4, log_every=1)
    else:
        made = from_scratch(SIZES[which], share, steps=400, log_every=20)
    return dataclasses.replace(made, evals=(Perplexity("validation"),), sample=Keywords())
