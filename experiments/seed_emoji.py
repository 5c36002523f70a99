"""SEED on emoji: a picture becomes 16 ids in a row, each of which is said knowing those before.

tiny_align   seconds: does everything once, learns nothing; tiny starts from it
small_align  stage 1: the last query learns to know the picture's name; about 5 minutes on one CPU core after
             dinov2_emoji, not recorded yet
small        stage 2, from there: queries become codes, which say what CLIP says of the picture; about 4 minutes after
             clip_emoji, not recorded yet
paper_align  the published stages: for `mmjax plan` and pods
paper

What draws pictures of the ids is seed_decoder_emoji; what reads and writes them is seed_words_emoji. small differs from
the paper: the eye is DINOv2's of dinov2_emoji, and the Q-Former starts at random.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from mmjax.data import emoji
from mmjax.data.emoji_pictures import NAME, EmojiPictures, names
from mmjax.evals.drawn import HeldOut
from mmjax.evals.retrieval import Retrieval
from mmjax.evals.search import Search
from mmjax.evals.tell_ids import TellIds
from mmjax.models import clip, dinov2, qformer, seed, vit
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model

TEXT = 24  # T, tokens of a name at most


def named(batch: Batch) -> Batch:
    """With the name of what each drawing shows; drawings of one thing share it."""
    concept, rows = batch["label"][:, 0], names(TEXT)
    return {**batch, **{name: jnp.asarray(x)[concept] for name, x in rows.items()}, "image_id": concept}


def align(model: seed.Stage1, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    return seed.stage1_loss(model, variables, named(batch), rng, step)


def align_started(model: seed.Stage1, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    return init_model(model, rng, named(batch), loaded)


def started(model: seed.Seed, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """From stage 1, all parameters of which are `stage1`, where it was loaded."""
    loaded = dict(loaded)
    stage1 = loaded.pop("stage1", None)
    variables = init_model(model, rng, batch, loaded)
    if stage1 is None:
        return variables
    return {**variables, "params": {**variables["params"], **seed.frozen_of(stage1)}}


def eyes(tiny: bool) -> vit.ViTConfig:
    return (dinov2.DINOv2Config.tiny() if tiny else dinov2.small()).vision


def small(of: str, stage: str) -> Experiment:
    tiny, data = of == "tiny", EmojiPictures(NAME)
    steps, batch = (8, 8) if tiny else (1_200, 64)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 600}
    adamw = optim.AdamW(2e-3, warmup=100, end=0.01, weight_decay=0.05, clip=1.0)
    stage1 = seed.small(eyes(tiny), emoji.tokenizer().vocab_size, TEXT)
    if stage == "align":
        parts = {"^temperature$": optim.AdamW(1e-4, warmup=100), "^(?!temperature$)": adamw}
        task = Task(seed.Stage1(stage1), align, seed.STAGE1_TRAINABLE, init=align_started)
        return Experiment(
            task, data, optim.Partitioned(parts), steps, batch, evals=(Retrieval("validation"),),
            final_evals=(Retrieval("twemoji"), Retrieval("concepts")), sample=Search("twemoji"),
            init_from=(Source(f"dinov2_emoji-{of}", "params/backbone", "params/vision"),), **every,
        )  # fmt: skip
    few = {"count": 16, "batch": 8} if tiny else {}
    task = Task(
        seed.Seed(seed.small_tokenizer(stage1, seed.small_judge(emoji.tokenizer().vocab_size, tiny))),
        seed.loss,
        seed.TRAINABLE,
        init=started,
    )
    return Experiment(
        task, data, adamw, steps, batch, evals=(HeldOut(seed.loss, "validation", **few),),
        final_evals=tuple(HeldOut(seed.loss, split, **few) for split in ("twemoji", "concepts")), sample=TellIds(),
        init_from=(Source(f"seed_emoji-{of}_align", "params", "stage1"), Source(f"clip_emoji-{of}", to="target")),
        **every,
    )  # fmt: skip


def paper(stage: str) -> Experiment:
    compute, data = Compute(jnp.bfloat16, "full"), EmojiPictures(NAME, image_size=224)
    made = qformer.vit_g()
    stage1 = dataclasses.replace(made, qformer=dataclasses.replace(made.qformer, compute=compute), compute=compute)
    rates = {"weight_decay": 0.05, "warmup": 2_000}
    if stage == "align":  # 64 devices, 10 epochs of CC3M
        task = Task(seed.Stage1(stage1), align, seed.STAGE1_TRAINABLE, init=align_started)
        return Experiment(task, data, optim.AdamW(3e-5, end=0.1, **rates), 7_300, 4_096, sample=Search("twemoji"))
    target = clip.CLIP(dataclasses.replace(clip.vit_h14(), compute=compute))
    config = dataclasses.replace(seed.seed_tokenizer(), qformer=stage1.qformer, compute=compute)
    config = dataclasses.replace(config, target=partial(seed.clip_target, target))
    task = Task(seed.Seed(config), seed.loss, seed.TRAINABLE, init=paper_started)
    return Experiment(task, data, optim.AdamW(1e-4, end=0.1, **rates), 91_500, 16_384, sample=TellIds())


def paper_started(model: seed.Seed, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """With a target as large as LAION's CLIP ViT-H/14, which is for `mmjax plan`: its weights are the user's."""
    clip_rng, rng = jax.random.split(rng)
    target = model.config.target.args[0]
    rows = {"input_ids": jnp.zeros((1, 77), jnp.int32), "images": batch["images"][:1]}
    return {**started(model, rng, batch, loaded), "target": init_model(target, clip_rng, rows, {})}


def experiment(size: str) -> Experiment:
    of, _, stage = size.partition("_")
    if of not in ("tiny", "small", "paper") or stage not in ("", "align"):
        raise KeyError(size)
    return paper(stage) if of == "paper" else small(of, stage)
