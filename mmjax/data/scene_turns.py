"""What can be asked and said about a scene: turns of a conversation, with exact answers.

    Thing, Thing ... --KINDS--> Conversation: turns of question and answer, with <boxes> and <points> where places go

Kinds and where their form comes from: `what` and `point` ask for what is at a place (Chen et al. 2023, section 5,
arXiv:2306.15195: REG, PointQA), `where` and `which` for the place of a name or of a relation that makes it unique
(REC), `spot` for a point on it (PointQA the other way round), `is` as POPE does (Li et al. 2023, arXiv:2305.10355),
`count`, `left` ... `behind` and `bigger` as CLEVR does (Johnson et al. 2017, arXiv:1612.06890), `caption` and
`spotting` describe all things from left to right, without places and with (Shikra's spotting captions), `chain` counts
aloud and `chain_left` looks up both places first (Shikra's grounded chain of thought), and `dialogue` goes on asking
about its first answer. All templates are our own words.

A question is asked only where the scene has one answer to it: relations need a clear margin, names that occur twice are
named in no question but `count`'s and `which`'s, and what is hidden to a large part is not asked about.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

MARGIN = 0.08  # of the canvas: by how much a centre must lie beyond another to be left of it
RATIO = 1.3  # by how much a side must be longer to be bigger
CLEAR = 0.45  # share of a thing that must be visible to be asked about
MARKS = re.compile("<boxes>|<points>")
HIDDEN = 0.9  # visible share up to which a thing counts as behind what covers it

Box = tuple[float, float, float, float]


class Thing(NamedTuple):
    """An object of a scene; things later in the list lie on top."""

    name: str
    box: Box  # x0, y0, x1, y1 in [0, 1], of what is visible
    visible: float = 1.0  # share that nothing hides
    spot: tuple[float, float] | None = None  # x, y of what is visible, nearest to the centre; None: the centre

    @property
    def point(self) -> tuple[float, float]:
        return self.centre if self.spot is None else self.spot

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def size(self) -> float:
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


class Turn(NamedTuple):
    kind: str
    question: str
    answer: str
    boxes: tuple[tuple[int, ...], ...] = ()  # the things of each <boxes>, question first, then answer
    points: tuple[tuple[int, ...], ...] = ()  # and of each <points>
    concepts: tuple[str, ...] = ()  # of a relation: the name that it was asked about
    side: str | None = None  # the relation, where the kind does not say it


Conversation = tuple[Turn, ...]
Ask = Callable[[Sequence[Thing], Sequence[str], np.random.Generator], Conversation | None]

WHAT = ("what is at <boxes>?", "name the thing in <boxes>.", "<boxes> holds what?")
POINT = ("what is at <points>?", "name the thing at <points>.")
WHERE = ("where is the {}?", "find the {}.", "show me the {}.")
SPOT = ("point at the {}.", "touch the {}.")
WHICH = ("where is the {} {} the {}?", "find the {} {} the {}.")
IS = ("is the {} there?", "can you see the {}?", "is the {} in the picture?")
COUNT = ("how many things are there?", "count the things.")
SIDE = ("what is {} the {}?", "name the thing {} the {}.")
BIGGER = ("which is bigger, the {} or the {}?", "the {} or the {}, which is bigger?")
CAPTION = ("what is in the picture?", "describe the picture.")
SPOTTING = ("what is in the picture and where?", "describe the picture with places.")
CHAIN = ("count the things aloud.", "how many things are there? show each.")
CHAIN_LEFT = ("what is left of the {}? show your steps.",)
FOLLOWING = ("and what is left of it?",)
SIDES = {  # relation -> words, axis of the centre, sign
    "left": ("left of", 0, -1),
    "right": ("right of", 0, 1),
    "above": ("above", 1, -1),
    "below": ("below", 1, 1),
}


def _one(templates: Sequence[str], rng: np.random.Generator) -> str:
    return templates[rng.integers(len(templates))]


def _clear(things: Sequence[Thing]) -> list[int]:
    """Things that can be named: seen well, and with a name that no other has."""
    names = [thing.name for thing in things]
    return [i for i, thing in enumerate(things) if thing.visible >= CLEAR and names.count(thing.name) == 1]


def _pick(places: Sequence[int], rng: np.random.Generator) -> int | None:
    return None if not places else int(places[rng.integers(len(places))])


def _beyond(things: Sequence[Thing], anchor: int, relation: str) -> list[int]:
    """The things that lie on that side of the anchor by a margin; none where it is unclear for any thing."""
    _, axis, sign = SIDES[relation]
    distances = [sign * (thing.centre[axis] - things[anchor].centre[axis]) for thing in things]
    others = [(i, d) for i, d in enumerate(distances) if i != anchor]
    if any(abs(d) < MARGIN for _, d in others):
        return []
    return [i for i, d in others if d > 0]


def what(things, names, rng):
    i = _pick([i for i, thing in enumerate(things) if thing.visible >= CLEAR], rng)
    return None if i is None else (Turn("what", _one(WHAT, rng), things[i].name, boxes=((i,),)),)


def point(things, names, rng):
    """Of a thing whose point lies in no other's box: there, the other might be what is seen."""
    alone = [
        i
        for i, thing in enumerate(things)
        if thing.visible >= CLEAR and not any(_holds(other.box, thing.point) for other in things if other is not thing)
    ]
    i = _pick(alone, rng)
    return None if i is None else (Turn("point", _one(POINT, rng), things[i].name, points=((i,),)),)


def where(things, names, rng):
    i = _pick(_clear(things), rng)
    if i is None:
        return None
    return (Turn("where", _one(WHERE, rng).format(things[i].name), "<boxes>", boxes=((i,),)),)


def spot(things, names, rng):
    """As where, answered by a point."""
    i = _pick(_clear(things), rng)
    return None if i is None else (Turn("spot", _one(SPOT, rng).format(things[i].name), "<points>", points=((i,),)),)


def which(things, names, rng):
    """Of two things with one name, the one that lies on one side of a third."""
    shared = [thing.name for thing in things]
    pairs = [i for i, name in enumerate(shared) if shared.count(name) == 2 and things[i].visible >= CLEAR]
    found = []
    for relation, (words, _, _) in SIDES.items():
        for anchor in _clear(things):
            beyond = _beyond(things, anchor, relation)
            for i in pairs:
                if [j for j in beyond if shared[j] == shared[i]] == [i]:
                    found.append((i, anchor, words, relation))
    if not found:
        return None
    i, anchor, words, relation = found[rng.integers(len(found))]
    name = things[anchor].name
    question = _one(WHICH, rng).format(things[i].name, words, name)
    return (Turn("which", question, "<boxes>", boxes=((i,),), concepts=(name,), side=relation),)


def presence(things, names, rng):
    """Half of the questions name what is there."""
    if rng.random() < 0.5:
        i = _pick([i for i, thing in enumerate(things) if thing.visible >= CLEAR], rng)
        return None if i is None else (Turn("is", _one(IS, rng).format(things[i].name), "yes"),)
    here = {thing.name for thing in things}
    drawn = (names[rng.integers(len(names))] for _ in range(1_000))
    absent = next((name for name in drawn if name not in here), None)  # a vocabulary may hold only what is there
    return None if absent is None else (Turn("is", _one(IS, rng).format(absent), "no"),)


def count(things, names, rng):
    if any(thing.visible < CLEAR for thing in things):
        return None
    return (Turn("count", _one(COUNT, rng), str(len(things))),)


def _sided(things: Sequence[Thing], relation: str, rng: np.random.Generator) -> tuple[int, int] | None:
    """An anchor, and the only thing on that side of it."""
    found = []
    for anchor in _clear(things):
        beyond = _beyond(things, anchor, relation)
        if len(beyond) == 1 and things[beyond[0]].visible >= CLEAR:
            found.append((anchor, beyond[0]))
    return found[rng.integers(len(found))] if found else None


def side(relation: str) -> Ask:
    def ask(things, names, rng):
        if (pair := _sided(things, relation, rng)) is None:
            return None
        name, answer = (things[i].name for i in pair)
        question = _one(SIDE, rng).format(SIDES[relation][0], name)
        return (Turn(relation, question, answer, concepts=(name,)),)

    return ask


def bigger(things, names, rng):
    clear = _clear(things)
    found = [(i, j) for i in clear for j in clear if things[i].size >= RATIO * things[j].size]
    if not found:
        return None
    large, little = found[rng.integers(len(found))]
    order = (large, little) if rng.random() < 0.5 else (little, large)
    question = _one(BIGGER, rng).format(*(things[i].name for i in order))
    return (Turn("bigger", question, things[large].name),)


def behind(things, names, rng):
    """Of two things whose boxes meet, the lower one where it is partly hidden and nothing else covers it."""
    clear, found = _clear(things), []
    for i in clear:
        over = [j for j in range(i + 1, len(things)) if _meet(things[i].box, things[j].box)]
        if things[i].visible < HIDDEN and len(over) == 1 and over[0] in clear:
            under = [j for j in range(over[0]) if _meet(things[j].box, things[over[0]].box)]
            if under == [i]:
                found.append((over[0], i))
    if not found:
        return None
    top, i = found[rng.integers(len(found))]
    question = _one(SIDE, rng).format("behind", things[top].name)
    return (Turn("behind", question, things[i].name, concepts=(things[top].name,)),)


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _holds(box: Box, at: tuple[float, float]) -> bool:
    return box[0] <= at[0] <= box[2] and box[1] <= at[1] <= box[3]


def _in_order(things: Sequence[Thing]) -> list[int] | None:
    """From left to right; None where there is nothing, two are about equally far left, or one is hardly seen."""
    order = sorted(range(len(things)), key=lambda i: things[i].centre[0])
    steps = [things[b].centre[0] - things[a].centre[0] for a, b in zip(order, order[1:], strict=False)]
    clear = all(step >= MARGIN for step in steps) and all(thing.visible >= CLEAR for thing in things)
    return order if order and clear else None


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def caption(things, names, rng):
    order = _in_order(things)
    if order is None:
        return None
    return (Turn("caption", _one(CAPTION, rng), _listed([things[i].name for i in order])),)


def spotting(things, names, rng):
    order = _in_order(things)
    if order is None:
        return None
    words = _listed([f"{things[i].name} <boxes>" for i in order])
    return (Turn("spotting", _one(SPOTTING, rng), words, boxes=tuple((i,) for i in order)),)


def chain(things, names, rng):
    order = _in_order(things)
    if order is None:
        return None
    words = f"{_listed([f'{things[i].name} <boxes>' for i in order])}: {len(things)}"
    return (Turn("chain", _one(CHAIN, rng), words, boxes=tuple((i,) for i in order)),)


def chain_left(things, names, rng):
    if (pair := _sided(things, "left", rng)) is None:
        return None
    name, answer = (things[i].name for i in pair)
    words = f"{name} <boxes>, left of it <boxes>: {answer}"
    boxes = tuple((i,) for i in pair)
    return (Turn("chain_left", _one(CHAIN_LEFT, rng).format(name), words, boxes=boxes, concepts=(name,), side="left"),)


def dialogue(things, names, rng):
    """Where is the fox? And what is left of it?"""
    if (pair := _sided(things, "left", rng)) is None:
        return None
    name, answer = (things[i].name for i in pair)
    first = Turn("where", _one(WHERE, rng).format(name), "<boxes>", boxes=((pair[0],),))
    return (first, Turn("dialogue", _one(FOLLOWING, rng), answer, concepts=(name,), side="left"))


KINDS: Mapping[str, Ask] = {
    "what": what, "point": point, "where": where, "which": which, "is": presence, "count": count,
    **{relation: side(relation) for relation in SIDES}, "bigger": bigger, "behind": behind, "caption": caption,
    "spotting": spotting, "chain": chain, "chain_left": chain_left, "dialogue": dialogue, "spot": spot,
}  # fmt: skip
# What experiments ask: kind -> how often, beside the others. To find what a name means is the last that is learned, and
# yes or no teaches it at the price of one token: asked four times less often, it stays a guess for 3,200 steps.
MIX = {
    "what": 1.0, "point": 0.5, "where": 4.0, "which": 1.0, "is": 8.0, "count": 1.0, "left": 1.5, "right": 1.0,
    "above": 1.0, "below": 1.0, "bigger": 0.7, "behind": 0.5, "caption": 0.7, "spotting": 0.5, "chain": 0.2,
    "chain_left": 0.2, "dialogue": 0.3, "spot": 2.0,
}  # fmt: skip
# Of those who know names already and learn to say places.
PLACES = (("where", 9.0), ("which", 2.0), ("is", 1.5), ("spotting", 2.0))


def relation(turn: Turn) -> str | None:
    """Which of the held-out combinations its question could be: "left/fox". None where it asks for no relation."""
    if not turn.concepts:
        return None
    return f"{turn.side or turn.kind}/{turn.concepts[0]}"


def ask(
    kind: str, things: Sequence[Thing], names: Sequence[str], rng: np.random.Generator,
    may: Callable[[Conversation], bool] = lambda conversation: True,
) -> Conversation | None:  # fmt: skip
    """A conversation of this kind about the things, or None where the scene has none with one answer.

    names: of the vocabulary, for questions about what is absent. may: which conversations are allowed.
    """
    found = KINDS[kind](things, names, rng)
    return found if found is not None and may(found) else None
