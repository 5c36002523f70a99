"""Documents of any length in rows of one length, with as little padding as may be.

    ids of documents --cut--> pieces no longer than T --best_fit--> rows of pieces --row--> [T] ids, segments, positions

Which piece lies in which row is decided once, before training, and written down as an index: a row is then a pure
function of its number, and a run resumes by the number of its step alone. Pieces are laid by best fit, longest first
(Ding et al. 2024, arXiv:2404.10830): each into the fullest row that still has room. Only documents that are longer than
a row are cut, into as many pieces as it takes; nothing is dropped.

In a row, `segments` number the pieces from 1 (0 is padding) and `positions` restart with each. A model that attends
within segments only computes what it would for each piece alone.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def cut(sizes: Sequence[int], length: int) -> np.ndarray:
    """Lengths of documents laid end to end -> int64 [M 2], where each piece of at most `length` starts and stops."""
    if length < 1:
        raise ValueError(f"a row must hold at least one token, got length={length}")
    ends = np.cumsum(sizes)
    pieces = [
        (start, min(start + length, end))
        for end, size in zip(ends, sizes, strict=True)
        for start in range(end - size, end, length)
    ]
    return np.asarray(pieces, np.int64).reshape(-1, 2)


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Sizes of pieces, none above `length` -> rows, each the numbers of its pieces; a row holds at most `length`."""
    if len(sizes) and max(sizes) > length:
        raise ValueError(f"a piece of {max(sizes)} tokens does not fit in a row of {length}; cut it first")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        place = bisect.bisect_left(room, (sizes[piece], -1))
        if place == len(room):
            rows.append([])
            left, row = length, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(piece)
        bisect.insort(room, (left - sizes[piece], row))
    return rows


class Packed(NamedTuple):
    """The index, and the tokens that it points to."""

    ids: np.ndarray  # int32, all documents end to end
    pieces: np.ndarray  # [M 2] where each piece starts and stops in `ids`
    rows: list[list[int]]  # pieces of each row
    length: int  # T

    @property
    def fill(self) -> float:
        """Share of the rows that is tokens and not padding."""
        return len(self.ids) / (len(self.rows) * self.length)

    def batch(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """input_ids, segments, positions int32 and attention_mask bool, each [B T]."""
        shape = len(rows), self.length
        batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "segments", "positions")}
        for i, row in enumerate(rows):
            begin = 0
            for segment, piece in enumerate(self.rows[row], start=1):
                start, stop = self.pieces[piece]
                place = slice(begin, begin + stop - start)
                batch["input_ids"][i, place] = self.ids[start:stop]
                batch["segments"][i, place] = segment
                batch["positions"][i, place] = np.arange(stop - start)
                begin = place.stop
        return {**batch, "attention_mask": batch["segments"] > 0}


def pack(documents: Sequence[Sequence[int]], length: int) -> Packed:
    """documents: ids of each, its end id included."""
    sizes = [len(document) for document in documents]
    pieces = cut(sizes, length)
    ids = np.concatenate([np.asarray(document, np.int32) for document in documents]) if documents else np.zeros(0, int)
    return Packed(ids, pieces, best_fit([int(stop - start) for start, stop in pieces], length), length)
