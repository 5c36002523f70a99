"""Questions about scenes: pictures, conversations about them packed behind each, and what is where.

    cut-outs --scenes.compose--> Scene --scene_turns.ask--> conversations --Form--> ids [B T]

    row: <start> <image> x N | question <answer> answer <end> | question <answer> answer <end> | ... | padding
         segment 0           | 1                              | 2                              |

B batch, n things of a scene at most, N tokens of a picture, K places that a row speaks of, h w cells of a picture.
Layouts are composed, pixels are the artists' own. Names are those of the first `vocabulary` concepts of
`assets/scene_concepts.json`, which lists them from the most distinct one on (`build_scene_concepts.py`).

Splits: train and validation as in `emoji`; twemoji, the artist who was never trained on; combinations, the same artist
and only questions of a relation with a name that training never asked together (a tenth of all, by hashing; the other
splits never ask them); concepts, things that the vocabulary has no name for, of known artists, to be counted and boxed.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from mmjax.data import augment, emoji, pipeline, scene_text, scene_turns, scenes
from mmjax.data.scene_turns import Conversation, Thing, Turn

MOST = 600  # concepts in the list
SPLITS = ("train", "validation", "twemoji", "combinations", "concepts")
HELD_OUT = 0.1  # share of the combinations of relation and name that training does not ask
NEAR = 5 / 336  # sides, how far the region of a point reaches (Ferret: 5 pixels of 336)
COVERED = 0.35  # share of a cell that a thing must cover to be what the cell shows
COMPOSER = scenes.Composer(64, (1, 4), scale=(0.45, 0.95), strewn=0.35)
KINDS = tuple(kind for kind in scene_turns.MIX if kind != "spot")  # which not all forms can answer
TRIES = 200  # scenes that are drawn for a row which shall have a question


@functools.cache
def concepts(count: int) -> np.ndarray:
    """Rows of the pack [count], the most distinct first."""
    if not 1 <= count <= MOST:
        raise ValueError(f"a vocabulary of scenes has 1 to {MOST} concepts, got {count}")
    codes = json.loads((emoji.ASSETS / "scene_concepts.json").read_text(encoding="utf-8"))
    row = {concept.code: n for n, concept in enumerate(emoji.pack().concepts)}
    return np.array([row[code] for code in codes[:count]])


@functools.cache
def names(count: int) -> tuple[str, ...]:
    """In lower case, as the vocabulary spells them."""
    return tuple(_name(n) for n in concepts(count))


def is_held_out(conversation: Conversation) -> bool:
    """Whether one of its questions is of a held-out combination."""
    combinations = {scene_turns.relation(turn) for turn in conversation} - {None}
    return any(emoji.fraction("combination", one) < HELD_OUT for one in combinations)


class Example(NamedTuple):
    """A scene and what was asked about it."""

    image: np.ndarray  # [s s 3] uint8
    things: tuple[Thing, ...]
    masks: np.ndarray  # [len(things) s s] bool
    conversations: tuple[Conversation, ...]


@dataclasses.dataclass(frozen=True)
class SceneQuestions:
    form: scene_text.Form = scene_text.Numbers()  # how places are written
    vocabulary: int = 64  # concepts
    composer: scenes.Composer = COMPOSER
    image_tokens: int = 64  # N; 0: the text alone, without a picture to look at
    cells: int = 8  # h = w, of the labels of cells
    length: int = 112  # tokens of text behind a picture
    answers: int = 56  # of which the assistant says at most so many
    places: int = 24  # K at most
    region_points: int = 0  # P, points drawn in each place that a question names; 0: none
    place_masks: bool = False  # whether a row brings the mask of each of its places too
    kinds: tuple[str, ...] = KINDS  # that are asked, as often as scene_turns.MIX says
    often: tuple[tuple[str, float], ...] = ()  # kinds that are asked otherwise than MIX says: kind, how often
    twins: float = 0.3  # share of the scenes whose first two things have one name
    recolour: augment.Augment | None = augment.Augment()  # colours of each thing in training; None: the artist's own
    answered: bool = False  # whether training leaves out scenes that none of `kinds` can be asked about

    def __post_init__(self):
        if self.composer.size % self.cells:
            raise ValueError(f"cells must divide the side of {self.composer.size} pixels, got cells={self.cells}")
        if unknown := (set(self.kinds) | {kind for kind, _ in self.often}) - set(scene_turns.MIX):
            raise ValueError(f"no kind of question {min(unknown)!r}; there are {', '.join(scene_turns.MIX)}")

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """See `batch`, of training drawings."""
        pool = self._pool("train")

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            mine, found = np.arange(len(indices))[rows], {}
            for _ in range(TRIES if self.answered else 1):
                which, layouts = self._which(len(indices), pool, rng), scenes.draw(self.composer, len(indices), rng)
                seeds = rng.integers(2**63, size=len(indices))  # a row's questions depend on nothing but its own
                if self.recolour is not None:
                    layouts = scenes.recoloured(layouts, self.recolour, rng)
                left = np.array([row for row in mine if row not in found])
                examples = self._examples(pool, which[left], scenes.take(layouts, left), "train", seeds[left])
                for row, example in zip(left, examples, strict=True):
                    if example.conversations or not self.answered:
                        found[row] = example, seeds[row]
                if len(found) == len(mine):
                    return self.batch(*zip(*(found[row] for row in mine), strict=True))
            raise ValueError(f"of {TRIES} scenes none could be asked {', '.join(self.kinds) or 'anything'}; add kinds")

        return pipeline.Batches(len(pool.concepts), batch_size, seed, rows, make)

    def examples(self, split: str, count: int, kinds: Sequence[str] | None = None) -> list[Example]:
        """`count` scenes of a split, each with one conversation of each kind that it has; the same at every call."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r} of scenes; there are {', '.join(SPLITS)}")
        pool, rng = self._pool(split), np.random.default_rng((0x5CE4F, SPLITS.index(split)))
        which, layouts = self._which(count, pool, rng), scenes.draw(self.composer, count, rng)
        seeds = rng.integers(2**63, size=count)
        return self._examples(pool, which, layouts, split, seeds, self.kinds if kinds is None else kinds)

    def batch(self, examples: Sequence[Example], seeds: Sequence[int]) -> pipeline.Batch:
        """images uint8 [B s s 3]; input_ids int32, segments int32, spoken and attention_mask bool, all [B 1+N+length];
        cells int32 [B h w]: the thing that a cell shows, by its place in the vocabulary, -1 where none, -2 where it has
        no name there; cell_boxes float32 [B h w 4]; places float32 [B K 4], the boxes that the row speaks of, in the
        order of its tokens, zeros behind, and of no size for a point; place_count int32 [B]; with place_masks masks
        bool [B K s s] of what is visible of the things there; with region_points points float32 [B R P 2] of the places
        in questions, and region_count int32 [B]. A conversation that doesn't fit into the row is left out whole."""
        rngs = [np.random.default_rng(seed) for seed in seeds]
        encoded = self._encoded([[self._written(c, e.things) for c in e.conversations] for e in examples])
        rows = [self._row(e, ids, rng) for e, ids, rng in zip(examples, encoded, rngs, strict=True)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def prompts(self, examples: Sequence[Example], conversations: Sequence[Conversation]) -> pipeline.Batch:
        """A conversation about each example up to where the last answer is due, padded on the left; earlier answers are
        the true ones. images, input_ids int32 and attention_mask bool [B T], places float32 [B K 4] of what is said so
        far, and with region_points points [B R P 2].
        """
        texts = [[self._written(c, e.things)] for c, e in zip(conversations, examples, strict=True)]
        front, rows = self._front(), []
        for ((turns,),) in zip(self._encoded(texts), strict=True):
            ids, _ = conversation_ids(turns)
            rows.append([*front, *ids[: len(ids) - len(turns[-1][1]) - 1]])
        length = max(map(len, rows))
        batch = {
            "images": np.stack([example.image for example in examples]),
            "input_ids": np.array([[0] * (length - len(row)) + row for row in rows], np.int32),
            "attention_mask": np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows]),
        }
        batch["places"] = np.zeros((len(rows), self.places, 4), np.float32)
        for b, (example, conversation) in enumerate(zip(examples, conversations, strict=True)):
            *earlier, last = conversation
            due = last._replace(answer="", boxes=last.boxes[: last.question.count("<boxes>")])
            said = [place for turn in (*earlier, due) for place in places_of(turn, example.things)]
            batch["places"][b, : len(said)] = said or 0
        if self.region_points:
            asked = [_pointed(c, e.things) for c, e in zip(conversations, examples, strict=True)]
            made = [
                self._regions(e, i, np.random.default_rng(n))
                for n, (e, i) in enumerate(zip(examples, asked, strict=True))
            ]
            batch["points"] = np.stack([one["points"] for one in made])
        return batch

    def _front(self) -> list[int]:
        return [scene_text.id_of(scene_text.START), *[scene_text.id_of(scene_text.IMAGE)] * self.image_tokens]

    # Scenes

    def _pool(self, split: str) -> "_Pool":
        return _pool("twemoji" if split == "combinations" else split, self.vocabulary, self.composer)

    def _which(self, count: int, pool: "_Pool", rng: np.random.Generator) -> np.ndarray:
        """Drawings [count n] as rows of the pool: a concept at random, then an artist; sometimes a name twice."""
        most = self.composer.objects[1]
        if len(pool.distinct) < most:
            raise ValueError(
                f"scenes of {most} things need as many concepts, but this split draws {len(pool.distinct)} of the "
                f"vocabulary's; vocabulary={self.vocabulary} is too small"
            )
        concept = rng.permuted(np.tile(np.arange(len(pool.distinct)), (count, 1)), axis=1)[:, :most]
        twins = rng.random(count) < self.twins
        if most > 2:
            concept[:, 1] = np.where(twins, concept[:, 0], concept[:, 1])
        return pool.first[concept] + (rng.random(concept.shape) * pool.count[concept]).astype(int)

    def _examples(
        self, pool: "_Pool", which: np.ndarray, layouts: scenes.Layout, split: str, seeds: np.ndarray,
        kinds: Sequence[str] | None = None,
    ) -> list[Example]:  # fmt: skip
        scene = scenes.compose(pool.cutouts[which], layouts, self.composer.size, pool.may_flip[which])
        found = []
        for b, seed in enumerate(seeds):
            kept = np.flatnonzero(scene.present[b])
            things = tuple(
                Thing(
                    _name(pool.concepts[which[b, i]]),
                    tuple(scene.boxes[b, i].tolist()),
                    float(scene.visible[b, i]),
                    _spot(scene.masks[b, i], scene.boxes[b, i]),
                )  # fmt: skip
                for i in kept
            )
            asked = self._ask(things, split, np.random.default_rng(seed), kinds)
            found.append(Example(scene.images[b], things, scene.masks[b, kept], tuple(asked)))
        return found

    # Words

    def _ask(
        self, things: tuple[Thing, ...], split: str, rng: np.random.Generator, kinds: Sequence[str] | None
    ) -> list[Conversation]:
        """One conversation of each of `kinds`; where None, as many at random as a row may hold."""
        held_out = split == "combinations"
        may = (lambda asked: is_held_out(asked) == held_out) if split != "concepts" else (lambda asked: True)
        known = names(self.vocabulary)
        if kinds is not None:
            asked = [scene_turns.ask(kind, things, known, rng, may) for kind in kinds]
        else:
            mix = {**scene_turns.MIX, **dict(self.often)}
            chances = np.array([mix[kind] for kind in self.kinds])
            tries = self.length // 9 if self.kinds else 0
            drawn = rng.choice(len(chances) or 1, size=tries, p=chances / chances.sum() if tries else None)
            asked = [scene_turns.ask(self.kinds[k], things, known, rng, may) for k in drawn]
        return list(dict.fromkeys(conversation for conversation in asked if conversation is not None))

    def _written(self, conversation: Conversation, things: Sequence[Thing]) -> list[scene_text.Written]:
        return [self.form.write(turn, things) for turn in conversation]

    def _encoded(self, texts: list[list[list[scene_text.Written]]]) -> list[list[list[tuple[list[int], list[int]]]]]:
        """The ids of every question and answer, encoded together."""
        flat = [text for scene in texts for conversation in scene for written in conversation for text in written]
        ids = iter(one.ids for one in scene_text.tokenizer().encode_batch(flat, add_special_tokens=False))
        return [[[(next(ids), next(ids)) for _ in conversation] for conversation in scene] for scene in texts]

    def _row(self, example: Example, encoded: list, rng: np.random.Generator) -> pipeline.Batch:
        front = 1 + self.image_tokens
        total = front + self.length
        row = {
            "input_ids": np.zeros(total, np.int32), "segments": np.zeros(total, np.int32),
            "spoken": np.zeros(total, bool), "attention_mask": np.zeros(total, bool),
            "places": np.zeros((self.places, 4), np.float32), "place_count": np.int32(0),
        }  # fmt: skip
        row["input_ids"][:front] = self._front()
        row["attention_mask"][:front] = True
        places, asked, shown, start, segment = [], [], [], front, 0
        for conversation, turns in zip(example.conversations, encoded, strict=True):
            ids, spoken = conversation_ids(turns)
            marks = [(i, in_question) for turn in conversation for i, in_question in marks_of(turn)]
            pointed = _pointed(conversation, example.things)
            full = row["spoken"].sum() + sum(spoken) > self.answers
            if full or start + len(ids) > total or len(places) + len(marks) > self.places:
                continue
            if self.region_points and len(asked) + len(pointed) > self.places // 2:
                continue
            segment += 1
            stop = start + len(ids)
            row["input_ids"][start:stop], row["spoken"][start:stop] = ids, spoken
            row["segments"][start:stop], row["attention_mask"][start:stop] = segment, True
            places += [place for turn in conversation for place in places_of(turn, example.things)]
            shown += [i for i, _ in marks]
            asked += pointed
            start = stop
        if places:
            row["places"][: len(places)] = places
        row["place_count"] = np.int32(len(places))
        if self.place_masks:
            row["masks"] = np.zeros((self.places, *example.image.shape[:2]), bool)
            row["masks"][: len(shown)] = example.masks[shown]
        row |= {"images": example.image, **self._cells(example)}
        return row | (self._regions(example, asked, rng) if self.region_points else {})

    def _cells(self, example: Example) -> pipeline.Batch:
        h = self.cells
        labels, boxes = np.full((h, h), -1, np.int32), np.zeros((h, h, 4), np.float32)
        if example.things:
            covered = rearrange(example.masks, "n (h p) (w q) -> n h w (p q)", h=h, w=h).mean(-1)
            top = covered.argmax(0)
            shown = covered.max(0) > COVERED
            index = {name: i for i, name in enumerate(names(self.vocabulary))}
            known = np.array([index.get(thing.name, -2) for thing in example.things])
            labels[shown] = known[top[shown]]
            boxes[shown] = np.array([thing.box for thing in example.things], np.float32)[top[shown]]
        return {"cells": labels, "cell_boxes": boxes}

    def _regions(
        self, example: Example, asked: Sequence[tuple[int, scene_turns.Box]], rng: np.random.Generator
    ) -> pipeline.Batch:
        """Points (x, y) in [0, 1) inside of the visible pixels of each thing that a question points at; near the point,
        where it points at a point."""
        count, side = self.places // 2, example.image.shape[0]
        regions = np.zeros((count, self.region_points, 2), np.float32)
        for region, (i, place) in zip(regions, asked, strict=False):
            y, x = np.nonzero(example.masks[i])
            if place[0] == place[2]:
                distance = np.maximum(np.abs(x + 0.5 - place[0] * side), np.abs(y + 0.5 - place[1] * side))
                near = distance <= max(NEAR * side, distance.min())
                y, x = y[near], x[near]
            chosen = rng.integers(len(x), size=self.region_points)
            region[:] = np.stack([x[chosen], y[chosen]], -1) / side
        return {"points": regions, "region_count": np.int32(len(asked))}


def _pointed(conversation: Conversation, things: Sequence[Thing]) -> list[tuple[int, scene_turns.Box]]:
    """The things that its questions point at, and the place."""
    return [
        (i, place)
        for turn in conversation
        for (i, in_question), place in zip(marks_of(turn), places_of(turn, things), strict=True)
        if in_question
    ]


class _Pool(NamedTuple):
    """The drawings of a split, by concept."""

    cutouts: np.ndarray  # [M S S 4] at the size that they are shown at
    may_flip: np.ndarray  # [M] bool
    concepts: np.ndarray  # [M] rows of the pack
    distinct: np.ndarray  # [C] the concepts
    first: np.ndarray  # [C] where each begins
    count: np.ndarray  # [C] drawings of each


@functools.lru_cache(maxsize=8)
def _pool(split: str, vocabulary: int, composer: scenes.Composer) -> _Pool:
    artists, drawn = emoji.pack().split(split)  # ordered by concept
    if split != "concepts":
        kept = np.isin(drawn, concepts(vocabulary))
        artists, drawn = artists[kept], drawn[kept]
    cutouts = scenes.shrunk(emoji.cutouts(artists, drawn), composer)
    may_flip = np.array([emoji.pack().concepts[n].may_flip for n in drawn])
    return _Pool(cutouts, may_flip, drawn, *np.unique(drawn, return_index=True, return_counts=True))


def _spot(mask: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """The middle of the mask's pixel that lies nearest to the box's."""
    y, x = np.nonzero(mask)
    x, y = (x + 0.5) / mask.shape[1], (y + 0.5) / mask.shape[0]
    best = np.argmin((x - (box[0] + box[2]) / 2) ** 2 + (y - (box[1] + box[3]) / 2) ** 2)
    return float(x[best]), float(y[best])


@functools.cache
def _name(concept: int) -> str:
    return emoji.pack().names[concept].lower().replace("’", "'")


def marks_of(turn: Turn) -> list[tuple[int, bool]]:
    """The things that a turn's marks speak of, in the order of the text, and whether the question does."""
    boxes, points = iter(turn.boxes), iter(turn.points)
    found = []
    for text, in_question in ((turn.question, True), (turn.answer, False)):
        for mark in scene_turns.MARKS.findall(text):
            found += [(i, in_question) for i in next(boxes if mark == "<boxes>" else points)]
    return found


def places_of(turn: Turn, things: Sequence[Thing]) -> list[scene_turns.Box]:
    """A box for each of `marks_of`: what a mark speaks of, or for a point the box of no size in its middle."""
    marks = scene_turns.MARKS.findall(turn.question + turn.answer)
    things = [things[i] for i, _ in marks_of(turn)]
    return [
        thing.box if mark == "<boxes>" else (*thing.point, *thing.point)
        for mark, thing in zip(marks, things, strict=True)
    ]


def conversation_ids(turns: Sequence[tuple[list[int], list[int]]]) -> tuple[list[int], list[bool]]:
    """<question> <answer> answer <end> for each turn, and which of these the assistant says."""
    answer, end = scene_text.id_of(scene_text.ANSWER), scene_text.id_of(scene_text.END)
    ids, spoken = [], []
    for asked, said in turns:
        ids += [*asked, answer, *said, end]
        spoken += [False] * (len(asked) + 1) + [True] * (len(said) + 1)
    return ids, spoken
