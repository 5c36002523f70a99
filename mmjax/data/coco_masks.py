"""COCO's masks: polygons and run lengths, to pixels and back, pixel for pixel as pycocotools has them.

    {"size": [H, W], "counts": [3, 5, ...]}     lengths of runs, outside first, down the columns from the left
    {"size": [H, W], "counts": "61X13mN..."}    the same as text
    [[x0, y0, x1, y1, ...], ...]                polygons in pixels, whose union is the mask

As text, each length from the fourth on is the difference from the one two before it, in groups of five bits from the
low end: character 48 + bits, with 32 added where more follow; the highest bit of the last group is the sign.
Source: Lin et al. 2014, arXiv:1405.0312; the file formats and rules of cocodataset/cocoapi (maskApi.c).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FINE = 5  # steps to a pixel along a polygon's edge
Segmentation = Mapping[str, Any] | Sequence[Sequence[float]]


def decode(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """-> bool [H W], which a thin polygon may leave empty. ValueError where it is malformed or of another size."""
    if isinstance(segmentation, Mapping):
        lengths = check_runs(segmentation, height, width)
        inside = np.arange(len(lengths)) % 2 == 1
        return np.repeat(inside, lengths).reshape(width, height).T
    mask = np.zeros((height, width), bool)
    for polygon in check_polygons(segmentation):
        mask |= fill(polygon, height, width)
    return mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    """bool [H W] -> run lengths as text."""
    flat = np.asarray(mask, bool).T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    first = [0] if flat.size and flat[0] else []
    lengths = np.diff(np.concatenate([first, [0], changes, [flat.size]])).astype(int)
    return {"size": list(mask.shape), "counts": to_text(lengths.tolist())}


# Run lengths


def check_runs(segmentation: Mapping[str, Any], height: int, width: int) -> list[int]:
    """The lengths, which fill the picture."""
    if "size" not in segmentation or "counts" not in segmentation:
        raise ValueError(
            f"run lengths have the keys size and counts, got {', '.join(map(str, segmentation)) or 'none'}"
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise ValueError(f"the mask is of a picture of size {size}, this one's is [{height}, {width}] (height, width)")
    if not isinstance(counts, Sequence):
        raise ValueError(f"counts must be a list of whole numbers or a text, got {counts!r:.60}")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")  # a byte each; those that mean nothing are named below
    lengths = from_text(counts) if isinstance(counts, str) else list(counts)
    if wrong := [n for n in lengths if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 0]:
        raise ValueError(f"counts must be whole numbers from 0 on, got {wrong[0]!r:.60}")
    if sum(lengths) != height * width:
        raise ValueError(
            f"run lengths must add up to {height} x {width} = {height * width}, got {len(lengths)} that add up to "
            f"{sum(lengths)}"
        )
    return lengths


def from_text(text: str) -> list[int]:
    lengths, value, shift = [], 0, 0
    for at, character in enumerate(text):
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(
                f"character {at} of the run lengths, {character!r}, is none of those that they are made of"
            )
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError(f"the run lengths end in the middle of a number: {text[-8:]!r}")
    return lengths


def to_text(lengths: Sequence[int]) -> str:
    characters = []
    for i, length in enumerate(lengths):
        value = length - (lengths[i - 2] if i > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + (0 if last else 32)))
            if last:
                break
    return "".join(characters)


# Polygons


def check_polygons(segmentation: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Each as [n 2]."""
    if isinstance(segmentation, str) or not isinstance(segmentation, Sequence) or not segmentation:
        raise ValueError(f"a mask is a list of polygons or run lengths, got {segmentation!r}")
    polygons = []
    for n, polygon in enumerate(segmentation):
        try:
            numbers = np.asarray(polygon, np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.zeros(0)
        if numbers.ndim != 1 or numbers.size < 6 or numbers.size % 2 or not np.isfinite(numbers).all():
            raise ValueError(f"polygon {n} must be x0, y0, x1, y1, ... with three points at least, got {polygon!r:.60}")
        polygons.append(numbers.reshape(-1, 2))
    return polygons


def fill(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """[n 2] as (x, y) -> bool [H W].

    The edges are walked in fifths of a pixel. Where a step crosses the middle line of a column, everything below that
    point changes sides; the last crossing of a column may lie below the picture, at the top of the next column.
    """
    corners = np.trunc(FINE * polygon + 0.5).astype(int)
    walks = [_walk(*ends) for ends in zip(corners, np.roll(corners, -1, 0), strict=True)]
    x, y = np.concatenate(walks).T
    steps = np.flatnonzero(np.diff(x))
    column = (np.minimum(x[steps], x[steps + 1]) + 0.5) / FINE - 0.5
    row = np.ceil(np.clip((np.minimum(y[steps], y[steps + 1]) + 0.5) / FINE - 0.5, 0, height))
    middle = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    at = (column[middle] * height + row[middle]).astype(int)
    crossings = np.bincount(at, minlength=height * width + 1)[: height * width]
    return (np.cumsum(crossings) % 2 == 1).reshape(width, height).T


def _walk(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """[2] twice -> [m 2], a point for each step along the longer axis; the same points in either direction."""
    along = int(abs(stop[1] - start[1]) > abs(stop[0] - start[0]))
    low, high = (start, stop) if start[along] <= stop[along] else (stop, start)
    steps = np.arange(high[along] - low[along] + 1)
    slope = (high[1 - along] - low[1 - along]) / max(steps[-1], 1)
    points = np.empty((len(steps), 2), int)
    points[:, along] = low[along] + steps
    points[:, 1 - along] = np.trunc(low[1 - along] + slope * steps + 0.5)
    return points if low is start else points[::-1]
