"""The words of scenes: how places are written, and the vocabulary that reads them.

    Turn, Things --Form--> question, answer as text --encode--> ids

Three systems write a place in three ways; all else of a turn is the same for them.

    Numbers     Shikra: plain text, "[0.12,0.30,0.48,0.90]"; a point "[0.30,0.60]"
    Regions     Ferret: in questions "[12, 30, 48, 90] <region_fea>", in answers without the token
    Embedded    NExT-Chat: "<at><boxes>": the numbers are no text

The vocabulary (`build_scenes_bpe.py`) has a token for nearly every word of the templates and of the names, and one for
each number of two decimals.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tokenizers

from mmjax.data import emoji, scene_turns
from mmjax.text import coordinates, regions

START, ANSWER, END = "<start>", "<answer>", "<end>"  # question between the first two, answer between the last two
IMAGE, AT, REGION = "<image>", "<at>", regions.TOKEN
SPECIAL = ("<pad>", START, ANSWER, END, IMAGE, AT, coordinates.BOXES, REGION)


class Written(NamedTuple):
    question: str
    answer: str


class Form(Protocol):
    """How a system writes places."""

    def write(self, turn: scene_turns.Turn, things: Sequence[scene_turns.Thing]) -> Written: ...


def _groups(turn: scene_turns.Turn, things: Sequence[scene_turns.Thing]) -> tuple[list, list]:
    """Boxes and points of the marks, question first."""
    boxes = [[things[i].box for i in group] for group in turn.boxes]
    return boxes, [[things[i].point for i in group] for group in turn.points]


@dataclasses.dataclass(frozen=True)
class Numbers:
    form: coordinates.Plain = coordinates.Plain(precision=2)

    def write(self, turn: scene_turns.Turn, things: Sequence[scene_turns.Thing]) -> Written:
        boxes, points = _groups(turn, things)
        asked, aimed = (turn.question.count(mark) for mark in (coordinates.BOXES, coordinates.POINTS))
        question = coordinates.fill(turn.question, boxes[:asked], points[:aimed], form=self.form)
        return Written(question, coordinates.fill(turn.answer, boxes[asked:], points[aimed:], form=self.form))


@dataclasses.dataclass(frozen=True)
class Hundredths:
    """Ferret's integers, a tenth as fine as published: a scene has less than a hundred pixels along a side."""

    bins: int = 100

    def write(self, group: coordinates.Group) -> str:
        return " ".join(
            "[" + ", ".join(str(min(int(x * self.bins), self.bins - 1)) for x in one) + "]" for one in group
        )

    def read_boxes(self, text: str) -> list[list[list[float]]]:
        """Each box a group of its own, in the middle of its bins."""
        return [[[(x + 0.5) / self.bins for x in one.box]] for one in regions.parse(text)]


@dataclasses.dataclass(frozen=True)
class Regions:
    form: Hundredths = Hundredths()

    def write(self, turn: scene_turns.Turn, things: Sequence[scene_turns.Thing]) -> Written:
        boxes, points = _groups(turn, things)
        marked = turn.question
        for mark in (coordinates.BOXES, coordinates.POINTS):
            marked = marked.replace(mark, f"{mark} {REGION}")
        asked = marked.count(coordinates.BOXES)
        question = coordinates.fill(marked, boxes[:asked], points, form=self.form)
        return Written(question, coordinates.fill(turn.answer, boxes[asked:], form=self.form))


@dataclasses.dataclass(frozen=True)
class Embedded:
    def write(self, turn: scene_turns.Turn, things: Sequence[scene_turns.Thing]) -> Written:
        """A point becomes the box of no size that it is."""
        question, answer = (
            text.replace(coordinates.BOXES, f"{AT}{coordinates.BOXES}").replace(
                coordinates.POINTS, f"{AT}{coordinates.BOXES}"
            )
            for text in (turn.question, turn.answer)
        )
        return Written(question, answer)


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(emoji.ASSETS / "scenes_bpe.json"))


def id_of(token: str) -> int:
    return tokenizer().token_to_id(token)
