"""Answers to questions about scenes, by kind, beside what the commonest answer of training would score.

Metrics of a split "twemoji", for each kind of question:
    twemoji/what ...         share of answers that are right to the letter: names, numbers, yes and no, captions; of
                             a chain, that its end is right; of yes and no also precision, recall, f1 and yes_ratio
    twemoji/where, which     share of boxes that overlap the true one by more than half; with /iou the mean overlap, and
                             with /failed the answers that hold not exactly one box; of a model that cuts out, with
                             /mask_iou the mean overlap of masks, and with /filled_iou that of its boxes, filled
    twemoji/spot             share of points that lie on what was asked for, to the pixel
    twemoji/spotting         captions in which every name and every box is right; with /recall the share of boxes
    twemoji/caption/chrf     Popovic 2015 (evals.translation)
    .../majority             what the commonest answer scores; of boxes, the box of mean size in the middle
    .../n                    questions
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.data import scene_text, scene_turns
from mmjax.data.scene_questions import Example, SceneQuestions
from mmjax.data.scene_turns import Conversation, Thing, Turn
from mmjax.evals import grounding, translation
from mmjax.evals.search import square
from mmjax.evals.segmentation import filled
from mmjax.models import nextchat
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.nn.sampling import Sampling, generate
from mmjax.ops import segmentation
from mmjax.report import annotate

SHOWN = 12
CHAINS = ("chain", "chain_left")
BOXED, LISTED = ("where", "which"), ("spotting", *CHAINS)  # an answer is a box; or holds some
LONG = 64  # tokens of an answer that lists things; others have SHORT
SHORT = 12
PROMPT = 48  # prompts are padded to multiples of it, so that few programs are compiled
_BRACKETS = re.compile(r"\[[^\]]*\]")


class Reply(NamedTuple):
    text: str
    boxes: list[list[float]]  # in the order of the text, x0, y0, x1, y1 in [0, 1]
    masks: Sequence[np.ndarray] | None = None  # of each box [h w] bool; None: the model cuts nothing out


def masks_of(reply: Reply) -> Sequence[np.ndarray]:
    return () if reply.masks is None else reply.masks


# (model, variables, data, examples, conversations, most tokens) -> replies to the last question of each
Replies = Callable[[Any, dict, SceneQuestions, Sequence[Example], Sequence[Conversation], int], list[Reply]]


def greedy(model, variables, data, examples, conversations, tokens, batch_size: int = 250) -> list[Reply]:
    """Of a model that writes places as text."""
    sampling = Sampling(stop_ids=(scene_text.id_of(scene_text.END),))
    texts = []
    for n in range(0, len(examples), batch_size):
        batch = data.prompts(examples[n : n + batch_size], conversations[n : n + batch_size])
        count = len(batch["images"])
        batch = padded(batch, batch_size)
        ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
        del batch["places"]  # they are numbers in the text
        inputs = batch if data.image_tokens else {}
        said = generate(model, variables, ids, mask, max_new_tokens=tokens, sampling=sampling, inputs=inputs).tokens
        texts += [words(ids) for ids in np.asarray(said)[:count]]
    return [Reply(text, [box for group in read_boxes(data, text) for box in group]) for text in texts]


def located(
    model, variables, data, examples, conversations, tokens, batch_size: int = 250, masks: bool = False
) -> list[Reply]:
    """Of a NExT-Chat, whose places are no text; masks: of its third stage, which cuts them out too."""
    sampling, replies = Sampling(stop_ids=(scene_text.id_of(scene_text.END),)), []
    for n in range(0, len(examples), batch_size):
        batch = data.prompts(examples[n : n + batch_size], conversations[n : n + batch_size])
        count = len(batch["images"])
        batch = padded(batch, batch_size)
        inputs = {"images": batch["images"], "boxes": batch["places"]}
        prompts = batch["input_ids"], batch["attention_mask"]
        said = nextchat.generate(model, variables, *prompts, max_new_tokens=tokens, sampling=sampling, inputs=inputs)
        found = np.asarray(said.found) & (np.arange(said.found.shape[1]) < np.asarray(said.lengths)[:, None])
        most = int(found.sum(1).max())
        cut = np.asarray(cut_out(model, variables, batch["images"], said, found, most)) if masks and most else None
        texts, boxes = np.asarray(said.tokens), np.asarray(said.boxes)
        for row in range(count):
            own = () if cut is None else cut[row, : found[row].sum()]
            replies.append(Reply(words(texts[row]), boxes[row, found[row]].tolist(), own if masks else None))
    return replies


segmented = functools.partial(located, masks=True)


@functools.partial(jax.jit, static_argnames=("model", "most"))
def cut_out(model, variables, images, said: nextchat.Located, found: jax.Array, most: int) -> jax.Array:
    """Masks [B most h w] bool of the first places that each answer speaks of; found [B N]: which tokens do."""
    states, boxes = (nextchat.take(values, found, most)[0] for values in (said.states, said.boxes))
    out = model.apply(variables, images, states, boxes, method="segment")
    return segmentation.resize(out.pred_masks[:, :, 0], *images.shape[1:3]) > 0


def padded(batch: dict, rows: int) -> dict:
    """More padding on the left; rows that are missing are copies of the first."""
    more = -batch["input_ids"].shape[1] % PROMPT
    text = {name: np.pad(batch[name], ((0, 0), (more, 0))) for name in ("input_ids", "attention_mask")}
    return {name: np.concatenate([x, np.repeat(x[:1], rows - len(x), 0)]) for name, x in {**batch, **text}.items()}


def words(ids: Sequence[int]) -> str:
    """The text up to its end."""
    ids = [int(i) for i in ids]
    end = scene_text.id_of(scene_text.END)
    ids = ids[: ids.index(end)] if end in ids else ids
    return scene_text.tokenizer().decode(ids, skip_special_tokens=False).strip()


def read_boxes(data: SceneQuestions, text: str) -> list[list[list[float]]]:
    """The boxes of an answer; what is no box, such as [1, 2], is none."""
    try:
        return data.form.form.read_boxes(text)
    except ValueError:
        return []


@dataclasses.dataclass(frozen=True)
class SceneAnswers:
    split: str
    count: int = 1_000  # scenes
    replies: Replies = greedy
    kinds: tuple[str, ...] | None = None  # None: those of the data

    def __call__(self, model: Any, variables: dict, data: SceneQuestions, rng: jax.Array) -> Result:
        """`rng` is unused."""
        kinds = data.kinds if self.kinds is None else self.kinds
        asked = collections.defaultdict(list)
        for example in data.examples(self.split, self.count, kinds):
            for conversation in example.conversations:
                asked[conversation[-1].kind].append((example, conversation))
        if not asked:
            raise ValueError(
                f"of {self.count} scenes of {self.split} none can be asked {', '.join(kinds) or 'anything'}"
            )
        metrics, shown = {}, []
        for kind in (kind for kind in kinds if kind in asked):
            examples, conversations = zip(*asked[kind], strict=True)
            tokens = LONG if kind in (*LISTED, "caption") else SHORT
            replies = self.replies(model, variables, data, examples, conversations, tokens)
            right, more = scored(data, kind, examples, conversations, replies)
            own = {
                "": right.mean(),
                "/majority": majority(data, kind, examples, conversations),
                "/n": len(right),
                **more,
            }
            metrics |= {f"{self.split}/{kind}{name}": float(value) for name, value in own.items()}
            shown += list(zip(right, examples, conversations, replies, strict=True))[:SHOWN]
        return Result(metrics, {f"{self.split} answers": sheet(data, shown)})


def measured(tiny: bool, replies: Replies = greedy) -> dict[str, tuple[SceneAnswers, ...]]:
    """`evals` and `final_evals` of an experiment: choices are made on validation drawings, and the held-out artist and
    the held-out combinations are read once. tiny: eight scenes and two kinds of questions, to see that all runs."""
    few = {"count": 8, "kinds": ("what", "is")} if tiny else {}
    related = {"count": 100, "kinds": ("left", "right")} if tiny else {}  # a tenth of their names are held out
    choice = SceneAnswers("validation", replies=replies, **(few or {"count": 200}))
    final = SceneAnswers("twemoji", replies=replies, **few), SceneAnswers("combinations", replies=replies, **related)
    return {"evals": (choice,), "final_evals": final}


def scored(data, kind, examples, conversations, replies) -> tuple[np.ndarray, dict[str, float]]:
    """Whether each reply is right [n] bool, and what else is measured of its kind."""
    turns = [conversation[-1] for conversation in conversations]
    if kind in BOXED:
        wanted = [example.things[turn.boxes[-1][0]].box for example, turn in zip(examples, turns, strict=True)]
        found = [reply.boxes[0] if len(reply.boxes) == 1 else None for reply in replies]
        numbers = grounding.referring(found, wanted)
        more = {f"/{name}": numbers[name] for name in ("iou", "failed", "acc@0.75", "acc@0.5:0.95")}
        if replies[0].masks is not None:
            shapes = [example.masks[turn.boxes[-1][0]] for example, turn in zip(examples, turns, strict=True)]
            cut = [reply.masks[0] if len(reply.boxes) == 1 else None for reply in replies]
            boxes = [box and filled(box, *shapes[0].shape) for box in found]
            more["/mask_iou"] = grounding.segmenting(cut, shapes)["miou"]
            more["/filled_iou"] = grounding.segmenting(boxes, shapes)["miou"]
        return grounding.overlaps(found, wanted) > 0.5, more
    if kind in LISTED:
        wanted = [boxes_of(example, turn) for example, turn in zip(examples, turns, strict=True)]
        ends = [(end_of(reply.text), end_of(turn.answer)) for reply, turn in zip(replies, turns, strict=True)]
        boxes = grounding.several([reply.boxes for reply in replies], wanted)
        more = {"/recall": boxes["recall"], "/precision": boxes["precision"]}
        if kind != "spotting":
            return np.array([said == true for said, true in ends]), more
        named = [names_of(reply.text) == names_of(turn.answer) for reply, turn in zip(replies, turns, strict=True)]
        all_boxes = [
            len(reply.boxes) == len(want) and grounding.paired(reply.boxes, want) == len(want)
            for reply, want in zip(replies, wanted, strict=True)
        ]
        return np.array(named) & np.array(all_boxes), more
    if kind == "spot":
        groups = [data.form.form.read_points(reply.text) for reply in replies]
        points = [group[0][0] if len(group) == len(group[0]) == 1 else None for group in (g or [[]] for g in groups)]
        shapes = [example.masks[turn.points[-1][0]] for example, turn in zip(examples, turns, strict=True)]
        each = [grounding.pointing([one], [shape]) for one, shape in zip(points, shapes, strict=True)]
        return np.array([one["accuracy"] == 1 for one in each]), {"/failed": np.mean([one["failed"] for one in each])}
    right = np.array([reply.text == turn.answer for reply, turn in zip(replies, turns, strict=True)])
    if kind == "is":
        said = [reply.text if reply.text in ("yes", "no") else None for reply in replies]
        polled = grounding.polling(said, [turn.answer for turn in turns])
        return right, {f"/{name}": polled[name] for name in ("precision", "recall", "f1", "yes_ratio")}
    if kind == "caption":
        chrf = translation.chrf([reply.text for reply in replies], [turn.answer for turn in turns])
        return right, {"/chrf": chrf}
    return right, {}


def end_of(chain: str) -> str:
    """The answer behind the steps of a chain."""
    return chain.split(":")[-1].strip()


def boxes_of(example: Example, turn) -> list[tuple[float, ...]]:
    """Of the answer's marks."""
    first = turn.question.count("<boxes>")
    return [example.things[i].box for group in turn.boxes[first:] for i in group]


def names_of(text: str) -> list[str]:
    """The names of a list, without places."""
    plain = _BRACKETS.sub("", text.replace(scene_text.AT, "").replace("<boxes>", ""))
    return [name.strip() for name in plain.replace(" and ", ",").split(",") if name.strip()]


def majority(data, kind, examples, conversations) -> float:
    """What the commonest answer of training scores here."""
    common = commonest(data).get(kind, "")
    if kind == "spot":
        common = data.form.form.write(((0.5, 0.5),))  # the middle
    reply = Reply("", [common]) if kind in BOXED else Reply(common, [])
    return float(scored(data, kind, examples, conversations, [reply] * len(examples))[0].mean())


@functools.lru_cache(maxsize=8)
def commonest(data: SceneQuestions) -> dict[str, Any]:
    """By kind, the commonest answer in 1,000 scenes of training; of boxes, their mean size in the middle."""
    answers, boxes = collections.defaultdict(collections.Counter), collections.defaultdict(list)
    for example in data.examples("train", 1_000, tuple(scene_turns.KINDS)):
        for *_, turn in example.conversations:
            answers[turn.kind][end_of(turn.answer) if turn.kind in CHAINS else turn.answer] += 1
            if turn.kind in BOXED:
                boxes[turn.kind].append(example.things[turn.boxes[-1][0]].box)
    common = {kind: count.most_common(1)[0][0] for kind, count in answers.items()}
    for kind, found in boxes.items():
        found = np.array(found)
        half = (found[:, 2:] - found[:, :2]).mean(0) / 2
        common[kind] = [*(0.5 - half), *(0.5 + half)]
    return common


def sheet(data: SceneQuestions, shown: Sequence[tuple], most: int = 24) -> np.ndarray:
    """Scenes with what was asked and said, right and wrong."""
    step, items = max(1, len(shown) // most), []
    for right, example, conversation, reply in shown[::step][:most]:
        lines = []
        for turn in conversation:
            question, true = data.form.write(turn, example.things)
            lines.append(annotate.Line(f"{turn.kind}: {question}" + ("" if turn is conversation[-1] else f" {true}")))
        lines += [annotate.Line(reply.text, bool(right)), annotate.Line(f"true: {true}")]
        truth = boxes_of(example, conversation[-1])
        items.append(annotate.Card(annotate.annotated(example.image, reply.boxes, truth, masks_of(reply)), lines))
    return annotate.cards(items)


@dataclasses.dataclass(frozen=True)
class AskScenes:
    """An Experiment's `sample`: a person's questions about a picture, or one about a scene of a split. Places are asked
    about as "[0.1,0.2,0.4,0.5]" or "[0.2,0.3]", in shares of the square about the picture, whoever is asked."""

    split: str
    replies: Replies = greedy

    def __call__(self, model: Any, variables: dict, request: Request, data: SceneQuestions, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if not request.texts:
            raise ValueError('there is no question; ask one, such as --image FILE "Where is the fox?"')
        if len(request.images) > int(data.image_tokens > 0):
            most = "one picture at a time" if data.image_tokens else "no picture"
            raise ValueError(f"this model looks at {most}, got {len(request.images)}")
        shown = [square(image, data.composer.size) for image in request.images]
        image = shown[0] if shown else data.examples(self.split, 1, ())[0].image
        image = image if data.image_tokens else np.full_like(image, 255)
        asked = [asked_about(image, text.strip().lower()) for text in request.texts]
        replies = self.replies(model, variables, data, *zip(*asked, strict=True), LONG)
        texts = [readable(reply) for reply in replies]
        lines = [annotate.Line(line) for pair in zip(request.texts, texts, strict=True) for line in pair]
        boxes = [box for reply in replies for box in reply.boxes]
        masks = [mask for reply in replies for mask in masks_of(reply)]
        card = annotate.Card(annotate.annotated(image, boxes, masks=masks), lines)
        return Answer("\n".join(texts), {"answer": annotate.cards([card], columns=1)})


def asked_about(image: np.ndarray, text: str) -> tuple[Example, Conversation]:
    """image [s s 3]; each place in brackets becomes a thing without a name."""
    side, things, masks, groups = image.shape[0], [], [], {4: [], 2: []}

    def mark(found: re.Match) -> str:
        try:
            place = [float(x) for x in found[1].split(",")]
        except ValueError:
            place = []
        ordered = len(place) == 2 or (len(place) == 4 and place[0] < place[2] and place[1] < place[3])
        if not ordered or not all(0 <= x <= 1 for x in place):
            raise ValueError(
                f"a place is [x0,y0,x1,y1] or [x,y] of numbers from 0 to 1, the upper left corner first, got {found[0]}"
            )
        box = (*place, *place) if len(place) == 2 else tuple(place)
        things.append(Thing("", box, spot=tuple(place) if len(place) == 2 else None))
        mask = np.ones((side, side), bool) if len(place) == 2 else filled(box, side, side)
        x, y = (min(int(x * side), side - 1) for x in things[-1].centre)
        mask[y, x] = True  # also of a box that is smaller than a pixel
        masks.append(mask)
        groups[len(place)].append((len(things) - 1,))
        return "<boxes>" if len(place) == 4 else "<points>"

    if unfilled := scene_turns.MARKS.search(text):
        raise ValueError(f"write a place as [x0,y0,x1,y1] or [x,y], not {unfilled[0]}")
    text = re.sub(r"\[([^\]]*)\]", mark, text)
    example = Example(image, tuple(things), np.array(masks).reshape(-1, side, side), ())
    return example, (Turn("asked", text, "", tuple(groups[4]), tuple(groups[2])),)


def readable(reply: Reply) -> str:
    """Its text, with numbers where a model that writes none says a place."""
    boxes = iter(reply.boxes)
    return re.sub(
        rf"{scene_text.AT}\s*<boxes>", lambda _: "[" + ",".join(f"{x:.2f}" for x in next(boxes)) + "]", reply.text
    )
