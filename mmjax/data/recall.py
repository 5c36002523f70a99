"""Two made-up tasks that ask what a model remembers: selective copying and induction heads.

Source: Gu and Dao 2023, arXiv:2312.00752, section 4.1; before it Arjovsky et al. 2016, arXiv:1511.06464, and Olsson et
al. 2022, arXiv:2209.11895.

    selective copying   ..c.a...f.  ???      at each ? the next letter of those among the dots: c a f
    induction heads     g a > c f b e a >    what followed the first >: c

There is nothing to load and nothing to hold out: rows are drawn, 10^15 and more are possible, and batch i is a pure
function of (seed, i). B rows, L tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data import pipeline
from mmjax.ops.cross_entropy import IGNORED

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Drawn(NamedTuple):
    """Endless batches `draw(rng, batch_size)`, of which `rows` are kept."""

    draw: Callable
    batch_size: int
    seed: int
    rows: slice

    def __getitem__(self, step: int) -> pipeline.Batch:
        # The last number sets this stream apart from those of the evals (`questions`).
        whole = self.draw(np.random.default_rng((self.seed, step, 0)), self.batch_size)
        return {name: x[self.rows] for name, x in whole.items()}


@dataclasses.dataclass(frozen=True)
class Task:
    """What both tasks share; `draw(rng, rows, length)` and `symbols` are their own.

    A batch holds `input_ids` int32 [B L'] and `labels` int32 [B L'], IGNORED wherever nothing is asked.
    """

    length: int  # L, in training
    vocab_size: int = 16

    def __post_init__(self):
        if not 3 <= self.vocab_size <= len(LETTERS):
            raise ValueError(f"data.vocab_size must be from 3 to {len(LETTERS)}, got {self.vocab_size}")

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> Drawn:
        return Drawn(lambda rng, count: self.draw(rng, count, self.length), batch_size, seed, rows)

    def questions(self, rows: int, length: int) -> pipeline.Batch:
        """Always the same rows, which training does not draw; `length` may be another than in training."""
        return self.draw(np.random.default_rng((length, rows, 1)), rows, length)

    def write(self, ids: Sequence[int]) -> str:
        return "".join(self.symbols[int(one)] for one in ids)

    def read(self, text: str) -> np.ndarray:
        """What `write` wrote, blanks apart -> int32 [L]."""
        text = "".join(text.split())
        if unknown := sorted(set(text) - set(self.symbols)):
            raise ValueError(f"{text!r} holds {' '.join(unknown)}; this task knows {self.symbols}")
        return np.array([self.symbols.index(one) for one in text], np.int32)


@dataclasses.dataclass(frozen=True)
class SelectiveCopying(Task):
    """L tokens of noise, `count` letters scattered among them, then as many markers, where the letters are due in
    order. Where they stand differs from row to row: a convolution, which knows only distances, cannot do it."""

    count: int = 16

    @property
    def symbols(self) -> str:
        """Id -> sign: noise, letters, marker."""
        return f".{LETTERS[: self.vocab_size - 2]}?"

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> pipeline.Batch:
        if length < self.count:
            raise ValueError(f"{self.count} letters do not fit in a length of {length}; make data.length larger")
        letters = rng.integers(1, self.vocab_size - 1, (rows, self.count), np.int32)
        places = np.sort(rng.random((rows, length)).argpartition(self.count - 1)[:, : self.count])
        body = np.zeros((rows, length), np.int32)
        np.put_along_axis(body, places, letters, axis=1)
        markers = np.full_like(letters, self.vocab_size - 1)
        nothing = np.full_like(body, IGNORED)
        return {
            "input_ids": np.concatenate([body, markers], axis=1),
            "labels": np.concatenate([nothing, letters], axis=1),
        }

    def prompt(self, text: str) -> np.ndarray:
        """Its tokens, with as many markers as it has letters."""
        ids = self.read(text.rstrip("? "))
        count = int(((ids > 0) & (ids < self.vocab_size - 1)).sum())
        if not count:
            raise ValueError(f"{text!r} holds no letter; write some among dots, such as ..c.a...f.")
        return np.append(ids, np.full(count, self.vocab_size - 1, np.int32))

    def asked(self, ids: np.ndarray) -> np.ndarray:
        """bool [L], where an answer is due."""
        return ids == self.vocab_size - 1


@dataclasses.dataclass(frozen=True)
class InductionHeads(Task):
    """L random letters. Somewhere among them stands the trigger, once, and again at the end: what followed it?"""

    @property
    def symbols(self) -> str:
        """Id -> sign: letters, trigger."""
        return f"{LETTERS[: self.vocab_size - 1]}>"

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> pipeline.Batch:
        if length < 3:
            raise ValueError(f"a trigger, what follows and the trigger need a length of 3, got {length}")
        input_ids = rng.integers(0, self.vocab_size - 1, (rows, length), np.int32)
        place, each = rng.integers(0, length - 2, rows), np.arange(rows)
        input_ids[each, place] = input_ids[:, -1] = self.vocab_size - 1
        labels = np.full_like(input_ids, IGNORED)
        labels[:, -1] = input_ids[each, place + 1]
        return {"input_ids": input_ids, "labels": labels}

    def prompt(self, text: str) -> np.ndarray:
        ids = self.read(text)
        if len(ids) < 3 or ids[-1] != self.vocab_size - 1 or not (ids[:-2] == self.vocab_size - 1).any():
            raise ValueError(f"{text!r} must hold a trigger >, later end with one, such as ga>cfbea>")
        return ids

    def asked(self, ids: np.ndarray) -> np.ndarray:
        """bool [L], where an answer is due."""
        return np.arange(len(ids)) == len(ids) - 1
