"""Judge B of generated pictures: learns which two drawings, by two artists, show the same thing; no classes.

tiny    seconds: does everything once, learns nothing
small   about 5 minutes on one CPU core: the weights in mmjax/evals/assets, with which pictures are judged

On white, at 32 pixels, moved and recoloured more than for judge A, from another seed; the held-out artist and the
held-out concepts are no part of training. It has no `paper` size: nothing is published.
"""

from mmjax.data import emoji_drawings
from mmjax.evals import judges
from mmjax.evals.knn import KNN
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

CHOICE = (KNN("validation"), judges.Names("validation"))
HELD_OUT = (KNN("twemoji"), KNN("concepts"), judges.Names("twemoji"), judges.Names("concepts"))


def experiment(size: str) -> Experiment:
    config, steps, batch = {
        "tiny": (judges.JudgeConfig.tiny(), 8, 16), "small": (judges.JudgeConfig(), 900, 64),
    }[size]  # fmt: skip
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 900}
    return Experiment(
        Task(judges.TwinJudge(config), judges.twin_loss), emoji_drawings.Twins(),
        AdamW(3e-3, warmup=100, end=0.01, weight_decay=0.05, clip=1.0), steps, batch,
        seed=202, evals=CHOICE, final_evals=HELD_OUT, sample=judges.Tell(), **every,
    )  # fmt: skip
