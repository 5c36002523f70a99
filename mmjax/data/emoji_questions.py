"""Questions and answers about the emoji pack: conversations to learn from, pairs to prefer, prompts to be asked.

    (concept, kind) --question--> "Which group does fox belong to?"   answers that are right: {"Animals & Nature"}

Three kinds: the concept's group (8), its subgroup (95, "animal mammal") and a keyword of CLDR's other than its name.
Whoever wrote the demonstrations was wordy half of the time ("That is a good question. I would say Animals & Nature."),
so that there is something left to prefer: right before wrong, and then short before wordy.

Concepts that the pack holds out are asked about in the split "held_out" and nowhere else; `docs` doesn't describe them
either, so only their names can tell.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data import docs, emoji, pipeline
from mmjax.text import chat

KINDS = ("group", "subgroup", "keyword")
QUESTIONS = {
    "group": (
        "Which group does {} belong to?", "What is the group of {}?", "In which group would I look for {}?",
        "Name the group of {}.",
    ),
    "subgroup": (
        "What kind of emoji is {}?", "Which subgroup is {} in?", "What sort of thing is {}?",
        "Name the subgroup of {}.",
    ),
    "keyword": (
        "Give me a keyword for {}.", "Which word goes with {}?", "What could I type to find {}?",
        "Name a word for {}.",
    ),
}  # fmt: skip
WORDY = (
    "That is a good question. I would say {}.",
    "Well, let me think about it. It should be {}.",
    "I am glad that you ask, and I think that it is {}.",
)
SPOKEN = re.compile("|".join(re.escape(form).replace(r"\{\}", "(.+)") for form in WORDY))
FORMS = 4  # of each question


class Question(NamedTuple):
    concept: int  # row of the pack
    kind: int  # of KINDS
    right: tuple[str, ...]  # every right answer

    def text(self, form: int) -> str:
        """In one of its FORMS, counted from anywhere."""
        return QUESTIONS[KINDS[self.kind]][form % FORMS].format(emoji.pack().concepts[self.concept].name)


@functools.cache
def questions(split: str) -> tuple[Question, ...]:
    """Every concept and kind of "train" or "held_out" that has an answer."""
    if split not in ("train", "held_out"):
        raise ValueError(f"no split {split!r}; there are train and held_out")
    held_out = set(emoji.pack().split("concepts")[1])
    found = []
    for number, one in enumerate(emoji.pack().concepts):
        if (number in held_out) == (split == "held_out"):
            keywords = tuple(word for word in one.keywords if word != one.name)
            rights = (one.group,), (one.subgroup.replace("-", " "),), keywords
            found += [Question(number, kind, right) for kind, right in enumerate(rights) if right]
    return tuple(found)


def core_of(answer: str) -> tuple[str, bool]:
    """What an answer says once wordiness is taken off, and whether it was short."""
    spoken = SPOKEN.fullmatch(answer.strip())
    return (next(part for part in spoken.groups() if part), False) if spoken else (answer.strip(), True)


def is_right(question: Question, answer: str) -> bool:
    return core_of(answer)[0] in question.right


def quality(question: Question, answer: str) -> float:
    """What a person would say: 1 for a right and short answer, 0.5 for a right and wordy one, 0 for a wrong one."""
    return is_right(question, answer) * (1.0 if core_of(answer)[1] else 0.5)


@functools.cache
def all_answers() -> tuple[tuple[str, ...], ...]:
    """Right answers to each kind of question about any training concept; what a wrong answer is drawn from."""
    return tuple(
        tuple(sorted({answer for one in questions("train") if one.kind == kind for answer in one.right}))
        for kind in range(len(KINDS))
    )


def wrong(question: Question, draw: float) -> str:
    """A wrong answer of the right kind; draw in [0, 1)."""
    others = [answer for answer in all_answers()[question.kind] if answer not in question.right]
    return others[int(draw * len(others))]


def pick(answers: Sequence[str], draw: float) -> str:
    return answers[int(draw * len(answers))]


def messages(*turns: str) -> list[dict[str, str]]:
    """Said by user and assistant in turns."""
    return [{"role": chat.ROLES[1 + i % 2], "content": text} for i, text in enumerate(turns)]


def conversations(all_turns: Sequence[Sequence[dict]], length: int) -> pipeline.Batch:
    """input_ids int32, attention_mask and spoken (by the assistant, see objectives.sft) bool, each [B T]; padded on the
    right. Raises ValueError for one that does not fit: cut, it would lose the end of its turn."""
    batch = {name: np.zeros((len(all_turns), length), bool) for name in ("attention_mask", "spoken")}
    batch["input_ids"] = np.zeros((len(all_turns), length), np.int32)
    for i, turns in enumerate(all_turns):
        encoded = chat.encode(docs.tokenizer(), chat.chatml(turns))
        size = len(encoded.ids)
        if size > length:
            raise ValueError(f"a conversation has {size} tokens, and at most {length} fit; make data.length larger")
        batch["input_ids"][i, :size] = encoded.ids
        batch["spoken"][i, :size] = encoded.learned
        batch["attention_mask"][i, :size] = True
    return batch


def prompts(texts: Sequence[str], length: int) -> pipeline.Batch:
    """Questions up to where the assistant is to speak, padded on the left: input_ids int32, attention_mask [B T]."""
    encoded = [chat.encode(docs.tokenizer(), chat.chatml(messages(text), answer=True)).ids for text in texts]
    return docs.left_padded(encoded, length)


def stop_ids() -> tuple[int, ...]:
    """What ends an answer: the end of the turn, or of the text."""
    return tuple(docs.tokenizer().token_to_id(token) for token in (docs.TURN_END, docs.END))


def decode(ids: Sequence[Sequence[int]]) -> list[str]:
    """What the assistant said, int [B T]: up to what ends it."""
    stops, said = stop_ids(), []
    for row in (list(map(int, row)) for row in ids):
        said.append(row[: next((i for i, token in enumerate(row) if token in stops), len(row))])
    return docs.tokenizer().decode_batch(said, skip_special_tokens=True)


DRAWS = 8  # random numbers in [0, 1) for each row of a batch


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the data sets share: every training question once per epoch, and all questions of a split for evals."""

    length: int = 96  # T, tokens of a row
    prompt_length: int = 44  # tokens of a prompt

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        every = questions("train")

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            draws = rng.random((len(indices), DRAWS))
            return self.examples(indices[rows], draws[rows])

        return pipeline.Batches(len(every), batch_size, seed, rows, make)

    def examples(self, indices: np.ndarray, draws: np.ndarray) -> pipeline.Batch:
        """Of the training questions with these numbers [B], given their random numbers [B DRAWS]."""
        raise NotImplementedError(f"{type(self).__name__} makes no batches")

    def asked(self, split: str) -> tuple[tuple[Question, ...], pipeline.Batch]:
        """All questions of a split, each in one form, and their prompts."""
        every = questions(split)
        return every, self.tokenize([one.text(one.concept) for one in every])

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return prompts(texts, self.prompt_length)


@dataclasses.dataclass(frozen=True)
class EmojiChat(Asked):
    """Demonstrations: two questions with right answers in a row, the second about something else."""

    length: int = 144  # what the longest two turns need
    wordy: float = 0.5  # share of the answers

    def examples(self, indices: np.ndarray, draws: np.ndarray) -> pipeline.Batch:
        every, turns = questions("train"), []
        for index, draw in zip(indices, draws, strict=True):
            second = every[int(draw[6] * len(every))]
            turns.append(messages(*self.turn(every[index], *draw[:3]), *self.turn(second, *draw[3:6])))
        return conversations(turns, self.length)

    def turn(self, question: Question, form: float, answer: float, style: float) -> tuple[str, str]:
        said = pick(question.right, answer)
        if style < self.wordy:
            said = pick(WORDY, style / self.wordy).format(said)
        return question.text(int(form * FORMS)), said


@dataclasses.dataclass(frozen=True)
class EmojiPreferences(Asked):
    """Pairs: a right and short answer, and one that is wrong or wordy or both (see objectives.reward.REJECTED)."""

    wordy: float = 0.5  # share of the rejected answers that are right, and only wordy; of the others half are wordy too

    def examples(self, indices: np.ndarray, draws: np.ndarray) -> pipeline.Batch:
        every = questions("train")
        return self.rows([self.pair(every[index], draw) for index, draw in zip(indices, draws, strict=True)])

    def pairs(self, split: str) -> tuple[list[bool], pipeline.Batch]:
        """One pair for each question of a split: which of the rejected answers are wrong, and all pairs as a batch."""
        draws = np.random.default_rng(0).random((len(questions(split)), DRAWS))
        pairs = [self.pair(question, draw) for question, draw in zip(questions(split), draws, strict=True)]
        wrong = [not is_right(question, pair[2]) for question, pair in zip(questions(split), pairs, strict=True)]
        return wrong, self.rows(pairs)

    def pair(self, question: Question, draw: np.ndarray) -> tuple[str, str, str]:
        """A question, the better answer and the worse one."""
        chosen = pick(question.right, draw[1])
        if draw[2] < self.wordy:
            rejected = pick(WORDY, draw[3]).format(pick(question.right, draw[4]))
        else:
            rejected = wrong(question, draw[5])
            rejected = rejected if draw[6] < 0.5 else pick(WORDY, draw[3]).format(rejected)
        return question.text(int(draw[0] * FORMS)), chosen, rejected

    def rows(self, pairs: Sequence[tuple[str, str, str]]) -> pipeline.Batch:
        chosen, rejected = (
            conversations([messages(pair[0], pair[side]) for pair in pairs], self.length) for side in (1, 2)
        )
        return chosen | {f"rejected_{name}": one for name, one in rejected.items()}


@dataclasses.dataclass(frozen=True)
class EmojiPrompts(Asked):
    """Questions alone, for policies that write the answers themselves; `index` int32 [B] says which they are."""

    def examples(self, indices: np.ndarray, draws: np.ndarray) -> pipeline.Batch:
        every = questions("train")
        texts = [every[index].text(int(draw[0] * FORMS)) for index, draw in zip(indices, draws, strict=True)]
        return self.tokenize(texts) | {"index": indices.astype(np.int32)}
