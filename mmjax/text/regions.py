"""Regions of a picture as words and as masks: what a person points at, and what a model points at in its answer.

Source: You et al. 2023 (Ferret), arXiv:2310.07704, section 3.1; details from apple/ml-ferret (train.py, model_lvis.py,
eval_refexp.py).

    [x, y] <region_fea>               a point
    [x1, y1, x2, y2] <region_fea>     a box, or any other shape, by the box around it

Coordinates are integers from 0 to 999 whatever the picture's size, rounded down. <region_fea> stands for what a
sampler makes of the region's mask; answers hold boxes without it. Sizes are (width, height) in pixels, boxes
(x1, y1, x2, y2) in pixels with both corners inside, masks [H W] bool, True inside (the original's are [W H]).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 1000
TOKEN = "<region_fea>"
SPAN = 5  # pixels around a point that belong to its region
GAUSSIAN = 0.15  # standard deviation of a point in a box, in sides of the box
TRIED = 1000  # pixels of a mask among which the most central one is looked for


class Region(NamedTuple):
    words: str  # what stands in the text
    mask: np.ndarray  # [H W] bool, never empty


class Found(NamedTuple):
    entity: str  # the text before the box
    box: tuple[int, int, int, int]  # in bins


# Words


def bins(place: Sequence[float], size: tuple[int, int]) -> tuple[int, ...]:
    """x, y or x1, y1, x2, y2 in pixels -> in bins."""
    _check_place(place)
    return tuple(int(v * (BINS / size[i % 2])) for i, v in enumerate(place))


def pixels(place: Sequence[int], size: tuple[int, int]) -> tuple[int, ...]:
    """Back from bins, rounded down again: up to one bin and one pixel less than what it came from."""
    _check_place(place)
    return tuple(int(v * (size[i % 2] / BINS)) for i, v in enumerate(place))


def words(place: Sequence[float], size: tuple[int, int]) -> str:
    """A point or a box in pixels, as an answer says it."""
    return "[" + ", ".join(map(str, bins(place, size))) + "]"


def parse(answer: str) -> list[Found]:
    """Every [x1, y1, x2, y2] of an answer, with the text before it.

    That text begins behind the punctuation mark (. , ; ! ?) that follows the box before. ValueError where a bracket
    holds anything but four or more integers.
    """
    found, start, entity = [], 0, ""
    at = 0
    while at < len(answer):
        if answer[at] == "[":
            entity, start = answer[start:at].strip(), at + 1
        elif answer[at] == "]":
            found.append(Found(entity, _box(answer[start:at])))
            # The walk goes on behind the bracket, so that a box right behind this one is seen too.
            follows = re.search(r"[.,;!?]", answer[at + 1 :])
            start = len(answer) + 1 if follows is None else at + 2 + follows.start()
        at += 1
    return found


def _box(inner: str) -> tuple[int, int, int, int]:
    try:
        numbers = [int(one) for one in inner.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) < 4:
        raise ValueError(f"a box in an answer is [x1, y1, x2, y2] with integers, got [{inner.strip()}]")
    return tuple(numbers[:4])


# Regions


def point(at: Sequence[float], size: tuple[int, int], within: np.ndarray | None = None) -> Region:
    """(x, y) in pixels. The mask is a square of 11 pixels, cut at the edges of the picture, and where `within` is given
    ([H W]; in training the object's mask or its box) at its edges too."""
    if len(at) != 2:
        raise ValueError(f"a point is (x, y), got {tuple(at)}")
    width, height = size
    mask = np.zeros((height, width), bool)
    columns, rows = (
        slice(int(max(0, v - SPAN)), int(max(0, min(n, v + SPAN + 1)))) for v, n in zip(at, size, strict=True)
    )
    mask[rows, columns] = True
    return Region(f"{words(at, size)} {TOKEN}", _cut(mask, within, f"the point {tuple(at)}"))


def box(corners: Sequence[float], size: tuple[int, int], within: np.ndarray | None = None) -> Region:
    """(x1, y1, x2, y2) in pixels, put inside of the picture. within: [H W], in training the object's mask; where the
    two share no pixel it is the box."""
    if len(corners) != 4:
        raise ValueError(f"a box is (x1, y1, x2, y2), got {tuple(corners)}")
    corners = clamped(corners, size)
    mask = box_mask(corners, size)
    if within is not None and (mask & _fitting(within, mask)).any():
        mask = mask & _fitting(within, mask)
    return Region(f"{words(corners, size)} {TOKEN}", _cut(mask, None, f"the box {corners}"))


def shape(mask: np.ndarray, corners: Sequence[float] | None = None) -> Region:
    """A free form [H W], by its mask; corners: the box to name and to cut it by, None: the one around it."""
    mask = np.asarray(mask, bool)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(f"a shape is a mask [H W] with at least one pixel, got {list(mask.shape)}")
    size = mask.shape[::-1]
    corners = around(mask) if corners is None else clamped(corners, size)
    cut = _cut(mask, box_mask(corners, size), f"the shape in {tuple(corners)}")
    return Region(f"{words(corners, size)} {TOKEN}", cut)


def scribble(line: Sequence[Sequence[float]], size: tuple[int, int], thickness: float = 5.0) -> Region:
    """A line drawn through points [(x, y), ...] in pixels, so many pixels thick: a free form."""
    line = np.asarray(line, np.float64)
    if line.ndim != 2 or line.shape[1] != 2 or not len(line):
        raise ValueError(f"a scribble is a list of points (x, y), got shape {list(line.shape)}")
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size)), axis=-1)  # [H W 2]
    mask = np.zeros(grid.shape[:2], bool)
    for start, stop in zip(line, line[1:] if len(line) > 1 else line, strict=False):
        along = stop - start
        share = ((grid - start) @ along / max(along @ along, 1e-12)).clip(0, 1)
        mask |= ((grid - start - share[..., None] * along) ** 2).sum(-1) <= (thickness / 2) ** 2
    if not mask.any():
        raise ValueError(f"the scribble lies outside of the picture of {size[0]} x {size[1]} pixels")
    return shape(mask)


def clamped(corners: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    """Each coordinate put into [0, W - 1] or [0, H - 1]."""
    return tuple(max(0, min(v, size[i % 2] - 1)) for i, v in enumerate(corners))


def around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around what is True."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def box_mask(corners: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    x1, y1, x2, y2 = (int(v) for v in corners)
    mask = np.zeros(size[::-1], bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def _cut(mask: np.ndarray, within: np.ndarray | None, what: str) -> np.ndarray:
    cut = mask if within is None else mask & _fitting(within, mask)
    if not cut.any():
        where = f"the picture of {mask.shape[1]} x {mask.shape[0]} pixels" if within is None else "what it should be in"
        raise ValueError(f"{what} has no pixel inside of {where}")
    return cut


def _fitting(within: np.ndarray, mask: np.ndarray) -> np.ndarray:
    within = np.asarray(within, bool)
    if within.shape != mask.shape:
        raise ValueError(f"the mask must be [H W] = {list(mask.shape)}, got {list(within.shape)}")
    return within


def _check_place(place: Sequence[float]) -> None:
    if len(place) not in (2, 4):
        raise ValueError(f"a place is (x, y) or (x1, y1, x2, y2), got {tuple(place)}")


# Which point speaks for an object, in training


def central_point(mask: np.ndarray, corners: Sequence[float], rng: np.random.Generator) -> tuple[int, int]:
    """(x, y) of the pixel of `mask` [H W] that is nearest to the middle of its box, among TRIED random ones."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError(f"the mask {list(np.shape(mask))} is empty: no point can be taken from it")
    tried = rng.permutation(len(rows))[:TRIED]
    x, y = int((corners[0] + corners[2]) / 2), int((corners[1] + corners[3]) / 2)
    best = tried[np.argmin((columns[tried] - x) ** 2 + (rows[tried] - y) ** 2)]
    return int(columns[best]), int(rows[best])


def gaussian_point(corners: Sequence[float], rng: np.random.Generator) -> tuple[float, float]:
    """(x, y) inside of a box, mostly near its middle: where there is no mask."""
    low, high = np.array(corners[:2], float), np.array(corners[2:], float)
    if (high < low).any():
        raise ValueError(f"a box is (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, got {tuple(corners)}")
    while True:
        x, y = rng.normal((low + high) / 2, GAUSSIAN * (high - low))
        if low[0] <= x <= high[0] and low[1] <= y <= high[1]:
            return float(x), float(y)
