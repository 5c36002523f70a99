"""Pictures with boxes, masks and words about them: pure functions, arrays in, [H W 3] uint8 out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmjax.report.pictures import CATEGORIES, GAP, INK, LINE, RIGHT, TEXT, canvas, enlarged, fit, font

TRUE, FOUND = RIGHT, (213, 94, 0)
SIDE = 192  # pixels of a picture on a sheet


class Line(NamedTuple):
    text: str
    right: bool | None = None  # None: neither right nor wrong, a question


class Card(NamedTuple):
    """A picture and what was said about it."""

    image: np.ndarray  # [H W 3] uint8
    lines: Sequence[Line]


def annotated(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]] = (),
    true_boxes: Sequence[Sequence[float]] = (),
    masks: Sequence[np.ndarray] = (),
    size: int = SIDE,
) -> np.ndarray:
    """[H W 3] uint8 -> [size size 3]: the true boxes thin and green, those found thick, masks [H W] bool tinted.

    Boxes are x0, y0, x1, y1 in [0, 1].
    """
    tinted = np.asarray(image, np.float32)
    for n, mask in enumerate(masks):
        colour = np.array(CATEGORIES[n % len(CATEGORIES)], np.float32)
        tinted = np.where(np.asarray(mask)[..., None], 0.45 * tinted + 0.55 * colour, tinted)
    sheet, draw = canvas(size, size)
    sheet.paste(Image.fromarray(enlarged(tinted.astype(np.uint8), size)))
    for group, colour, width in ((true_boxes, TRUE, 1), (boxes, FOUND, 3)):
        for n, box in enumerate(group):
            x0, y0, x1, y1 = np.clip(np.asarray(box, float), 0, 1) * (size - 1)
            own = CATEGORIES[n % len(CATEGORIES)] if group is boxes and len(boxes) > 1 else colour
            draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=own, width=width)
    return np.asarray(sheet)


def cards(items: Sequence[Card], columns: int = 2, words: int = 400) -> np.ndarray:
    """Pictures in a grid, each with its lines on the right; right answers are green and ticked, wrong ones orange."""
    columns, pitch = min(columns, len(items)), TEXT + 4
    height = max(SIDE, max(len(item.lines) for item in items) * pitch) + 2 * GAP
    width = SIDE + words + 3 * GAP
    sheet, draw = canvas(columns * width, -(-len(items) // columns) * height + GAP)
    for n, item in enumerate(items):
        left, top = n % columns * width + GAP, n // columns * height + GAP
        sheet.paste(Image.fromarray(enlarged(item.image, SIDE)), (left, top))
        draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=LINE)
        for k, line in enumerate(item.lines):
            mark, ink = {None: ("", INK), True: ("✓ ", RIGHT), False: ("✗ ", FOUND)}[line.right]
            bold = line.right is None
            at = (left + SIDE + GAP, top + k * pitch)
            draw.text(at, fit(mark + line.text, words, TEXT - 2, bold), ink, font(TEXT - 2, bold))
    return np.asarray(sheet)
