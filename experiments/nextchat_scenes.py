"""NExT-Chat on scenes: a place is a vector, decoded into a box and into a mask.

tiny          seconds: does everything once, learns nothing
small         about 16 minutes on one CPU core, after llava_scenes in its size small_long: its first two stages in one,
              places as boxes
small_long    the same, three times as long
small_200     with 200 concepts
small_masks   the third stage, from the runs of small and of sam_scenes: what SAM is asked by, and its decoder, learn to
              cut out what an answer speaks of; all else stays as it is
tiny_masks    the same in seconds, from the runs of tiny
paper         NExT-Chat-7B, its second stage: for `mmjax plan` and pods

As shikra_scenes, but for the places: no digits are read or written, and the overlap is in the loss. Layouts are
composed, pixels are the artists' own; the numbers are of an artist that was never trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.data import scene_text, scene_turns
from mmjax.data.scene_questions import COMPOSER, SceneQuestions
from mmjax.evals.scene_answers import AskScenes, SceneAnswers, located, measured, segmented
from mmjax.models import llava, nextchat, sam
from mmjax.nn.cells import Beside
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute
from mmjax.text import coordinates
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task, init_model

ANSWERS = 56  # tokens that the assistant says in a row, at most


@dataclasses.dataclass(frozen=True)
class Loss:
    cells: Beside

    def __call__(self, model, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
        batch = {**batch, "boxes": batch["places"]}
        out = nextchat.forward(model, variables, batch)
        places, aux = nextchat.loss_of(model, variables, out, batch, ANSWERS)
        return self.cells.added(places, aux.metrics, variables, out.image_features, batch)


def config(size: str) -> nextchat.NextChatConfig:
    vocab_size, image = scene_text.tokenizer().get_vocab_size(), scene_text.id_of(scene_text.IMAGE)
    made = llava.of_size("tiny" if size == "tiny" else "small", vocab_size, image)
    made = dataclasses.replace(made, projector=llava.linear)
    # Weights of the losses of boxes as in DETR (Carion et al. 2020, arXiv:2005.12872).
    return nextchat.NextChatConfig(**vars(made), **tokens(), l1_weight=5.0, giou_weight=2.0)


def tokens() -> dict[str, int]:
    return {"at_token": scene_text.id_of(scene_text.AT), "box_token": scene_text.id_of(coordinates.BOXES)}


def small(size: str) -> Experiment:
    steps, batch, concepts = {
        "tiny": (8, 8, 16), "small": (1_500, 32, 64), "small_long": (5_000, 32, 64), "small_200": (1_000, 32, 200),
    }[size]  # fmt: skip
    of = size.removesuffix("_long")
    made = config(size)
    cells = Beside(concepts, made.vision.width)
    knows = Source(f"llava_scenes-{'small_long' if of == 'small' else of}", "params", "params")
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if size == "tiny" else {"eval_every": 750}
    return Experiment(
        Task(nextchat.NextChat(made), Loss(cells), init=cells.started(init_model)),
        SceneQuestions(scene_text.Embedded(), concepts, answers=ANSWERS, often=scene_turns.PLACES),
        optim.Muon(2e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch,
        **measured(size == "tiny", located), sample=AskScenes("twemoji", located), init_from=(knows,), **every,
    )  # fmt: skip


def mask_loss(model, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Scenes are as large as SAM's pictures, and square already."""
    batch = {**batch, "boxes": batch["places"], "sam_images": batch["images"]}
    return nextchat.mask_loss(model, variables, batch, rng, step)


def masks(size: str) -> Experiment:
    of = size.removesuffix("_masks")
    steps, batch, concepts = {"tiny": (8, 8, 16), "small": (1_000, 16, 64)}[of]
    own = sam.SamConfig.tiny(64) if of == "tiny" else sam.small()
    made = nextchat.NextChatSegConfig(**vars(config(of)), sam_config=own)
    cells = Beside(concepts, made.vision.width)  # they come with the run, and are neither asked nor trained
    data = SceneQuestions(
        scene_text.Embedded(), concepts, kinds=("where", "which", "spotting"), length=80, places=12, place_masks=True
    )  # fmt: skip
    few = {"count": 8} if of == "tiny" else {}
    choice = SceneAnswers("validation", replies=segmented, **(few or {"count": 200}))
    final = ("twemoji", few), ("combinations", {"count": 200} if few else {})
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if of == "tiny" else {"eval_every": 500}
    answers = Source(f"nextchat_scenes-{of}", "params", "params")
    cuts = Source(f"sam_scenes-{of}", "params", "params/sam")
    return Experiment(
        Task(nextchat.NextChatSeg(made), mask_loss, nextchat.MASK_STAGE, cells.started(init_model)), data,
        optim.AdamW(1e-3, warmup=100, weight_decay=0.05, clip=1.0), steps, batch,
        evals=(choice,), final_evals=tuple(SceneAnswers(split, replies=segmented, **more) for split, more in final),
        sample=AskScenes("twemoji", segmented),
        init_from=(answers, cuts),
        **every,
    )  # fmt: skip


def paper() -> Experiment:
    made, composer = nextchat.nextchat_7b(), dataclasses.replace(COMPOSER, size=336, objects=(1, 6))
    compute = Compute(jnp.bfloat16, remat="full")
    # Rows are written in the vocabulary of scenes, whose special ids are others than NExT-Chat's.
    made = dataclasses.replace(
        llava.computed(made, compute), **tokens(), image_token=scene_text.id_of(scene_text.IMAGE)
    )
    data = SceneQuestions(
        scene_text.Embedded(), 600, composer, image_tokens=576, length=512, answers=256, cells=24
    )  # fmt: skip
    adamw = optim.AdamW(2e-5, warmup=1_950, clip=1.0)
    task = Task(nextchat.NextChat(made), loss, trainable=nextchat.BOX_STAGES)
    return Experiment(task, data, adamw, 65_000, 64, sample=AskScenes("twemoji", located))


def loss(model, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    return nextchat.loss(model, variables, {**batch, "boxes": batch["places"]}, rng, step)


def experiment(size: str) -> Experiment:
    if size.endswith("_masks"):
        return masks(size)
    return paper() if size == "paper" else small(size)
