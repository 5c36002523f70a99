"""VAR on emoji: a picture scale by scale, all codes of the next scale at once.

tiny    seconds: does everything once, learns nothing
small   about 7 minutes on one CPU core, not recorded yet, after var_tokenizer_emoji
names   told the name and the artist, for pairs that were never seen; about 60 minutes
paper   VAR-d30 at 256 pixels: for `mmjax plan` and pods

Numbers compare what is drawn with drawings of the same labels; Frechet distances of few pictures see whether colours
and outlines are those of a class, and little of whether a picture is good: look at the sheets.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.data.emoji_pictures import NAME, SUBJECT, EmojiPictures
from mmjax.evals.drawn import Ask, HeldOut
from mmjax.evals.never_drawn import final_evals
from mmjax.evals.progress import Progress
from mmjax.models import var, var_tokenizer
from mmjax.models.var_tokenizer import Tokenizer
from mmjax.nn.sampling import Sampling
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model


def started(model: var.VAR, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    return init_model(model, rng, {"label": batch["label"]}, loaded)


def loss(model: var.VAR, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> Any:
    """VAR's, of pictures."""
    tokenizer = Tokenizer(model.config.tokenizer)
    ids = tokenizer.apply(variables["tokenizer"], batch["images"], method="encode")
    return var.loss(model, variables, {"ids": ids, "label": batch["label"]}, rng, step)


@dataclasses.dataclass(frozen=True)
class Draw:
    guidance: float = 2.0
    how: Sampling = Sampling(temperature=1.0)

    def __call__(self, model: var.VAR, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        ids = var.sample(model, variables, rng, label, guidance=self.guidance, how=self.how)
        images = Tokenizer(model.config.tokenizer).apply(variables["tokenizer"], ids, method="decode")
        return image_ops.to_uint8(images, 0.5, 0.5)

    def progress(self, model: var.VAR, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        """[S B H W 3]: the picture after each scale."""
        ids = var.sample(model, variables, rng, label, guidance=self.guidance, how=self.how)
        images = Tokenizer(model.config.tokenizer).apply(variables["tokenizer"], ids, method="progressive")
        return image_ops.to_uint8(images, 0.5, 0.5)


def small(size: str) -> Experiment:
    tiny, named = size == "tiny", size == "names"
    data, tokenizer = EmojiPictures(NAME if named else SUBJECT), var_tokenizer.small(tiny)
    width, depth = (16, 2) if tiny else (160, 5) if named else (128, 4)
    config = var.VARConfig(
        tokenizer, width, depth, width // 32 or 1, 19 * width // 4, data.counts, drop_path=0.0, gate_init=1e-3
    )  # fmt: skip
    draw, few = Draw(), {"count": 16, "batch": 8} if tiny else {}
    source = Source("var_tokenizer_emoji-tiny" if tiny else "var_tokenizer_emoji-small", to="tokenizer")
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 500}
    task = Task(
        var.VAR(config), loss, init=optim.with_copy("ema", init=started),
        after_update=optim.ema("params", "ema", 0.9 if tiny else 0.995), serve="ema",
    )  # fmt: skip
    return Experiment(
        task, data, optim.AdamW(2e-3, warmup=100, end=0.01, weight_decay=0.03, clip=1.0),
        8 if tiny else 4_150 if named else 830, 8 if tiny else 32, evals=(HeldOut(loss, "validation", **few),),
        final_evals=(*final_evals(draw, data.kinds == NAME, **few), Progress(draw.progress)), sample=Ask(draw),
        init_from=(source,), **every,
    )  # fmt: skip


def paper() -> Experiment:
    config = dataclasses.replace(var.var_d30(), classes=(1_000,))
    adamw = optim.AdamW(8e-5 * 4, warmup=25_000, b2=0.95, weight_decay=0.05, clip=2.0)  # of 1,024 pictures
    draw = Draw(1.5, var.BENCHMARK)
    return Experiment(
        Task(var.VAR(config, Compute(jnp.bfloat16, "full")), loss, init=started),
        EmojiPictures(("subgroup",), image_size=256), adamw, 437_000, 1_024, sample=Ask(draw),
        init_from=(Source("var_tokenizer_emoji", to="tokenizer"),),
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    if size not in ("tiny", "small", "names", "paper"):
        raise KeyError(size)
    return paper() if size == "paper" else small(size)
