"""Judge A of generated pictures: learns from labels which group, subgroup, artist and concept a drawing belongs to.

tiny    seconds: does everything once, learns nothing
small   about 7 minutes on one CPU core: the weights in mmjax/evals/assets, with which pictures are judged

On white, at 32 pixels; the held-out artist and the held-out concepts are no part of training. It has no `paper` size:
nothing is published.
"""

from mmjax.data import emoji_drawings
from mmjax.evals import judges
from mmjax.evals.knn import KNN
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

CHOICE = (judges.Opinions("validation"), judges.Names("validation"))
HELD_OUT = (
    judges.Opinions("twemoji"), judges.Opinions("concepts"), judges.Opinions("twemoji_concepts"),
    judges.Names("twemoji"), judges.Names("concepts"), KNN("twemoji"),
)  # fmt: skip


def experiment(size: str) -> Experiment:
    config, steps, batch = {
        "tiny": (judges.JudgeConfig.tiny(), 8, 16), "small": (judges.JudgeConfig(), 2_400, 64),
    }[size]  # fmt: skip
    model = judges.ClassJudge(config, tuple(emoji_drawings.counts().values()))
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 1_200}
    return Experiment(
        Task(model, judges.class_loss), emoji_drawings.Labeled(),
        AdamW(3e-3, warmup=100, end=0.01, weight_decay=0.05, clip=1.0), steps, batch,
        seed=101, evals=CHOICE, final_evals=HELD_OUT, sample=judges.Tell(), **every,
    )  # fmt: skip
