"""How well a model says where things are: boxes, points and masks, read out of its answers or predicted beside them.

Pure functions of predictions and targets, in NumPy; one prediction a question, None where the answer could not be read,
which counts as wrong and is reported as "failed". Boxes are (x0, y0, x1, y1), of any one unit.

    one_box, one_point, answer_of      what an answer says, or None
    referring     one box for each expression (RefCOCO): accuracy at intersection over union > 0.5, and the curve
    several       any number of boxes for each expression: precision, recall, and how often all is right
    pointing      a point, which must lie in the target's box or mask
    segmenting    masks: cIoU, the sum of intersections over the sum of unions; mIoU, the mean over expressions
    exact         words: the share of answers that are the target's; polling adds what POPE asks of yes and no

Sources: shikras/shikra (rec.py, point_qa.py, compute_metrics.py), NExT-ChatV/NExT-Chat (res.py); Li et al. 2023,
arXiv:2305.10355 (POPE); He et al. 2023, arXiv:2308.16182 (several boxes). Boxes of a square that holds the whole
picture (ops.images.in_square) have the overlap that they have in pixels, since both of its axes have one scale.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.evals import segmentation
from mmjax.ops import boxes
from mmjax.text.coordinates import PLAIN, Bins, Plain

Box = Sequence[float]
CURVE = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
DIGITS = 9  # an overlap of exactly 1/2 must not be more than 0.5 by the last bit


# What an answer says


def one_box(text: str, form: Plain | Bins = PLAIN) -> list[float] | None:
    """None unless the text holds one group of one box."""
    return _one(form.read_boxes(text))


def one_point(text: str, form: Plain | Bins = PLAIN) -> list[float] | None:
    return _one(form.read_points(text))


def _one(groups: list) -> list[float] | None:
    return groups[0][0] if len(groups) == 1 and len(groups[0]) == 1 else None


def answer_of(text: str) -> str | None:
    """X of "The answer is X ."; None unless the text says so once."""
    found = re.findall(r"The answer is (.+?)\.", text.strip())
    return found[0].strip() if len(found) == 1 else None


# How right it is


def overlaps(found: Sequence[Box | None], wanted: Any) -> np.ndarray:
    """N boxes or None, [N 4] -> intersection over union [N]; 0 for None, and for a reversed box."""
    wanted = np.asarray(wanted, np.float64).reshape(-1, 4)
    _same_length(found, wanted)
    rows = np.array([(0, 0, 0, 0) if box is None else box for box in found], np.float64).reshape(-1, 4)
    return np.where(boxes.valid(rows), boxes.iou(rows, wanted), 0).round(DIGITS)


def referring(found: Sequence[Box | None], wanted: Any) -> dict[str, float]:
    """N boxes or None, [N 4] -> acc@0.5 ... acc@0.95 and their mean, the mean overlap, and the share that failed."""
    shared = overlaps(found, wanted)
    curve = {f"acc@{threshold:g}": float((shared > threshold).mean()) for threshold in CURVE}
    return {
        **curve,
        "acc@0.5:0.95": float(np.mean(list(curve.values()))),
        "iou": float(shared.mean()),
        "failed": _failed(found),
    }


def paired(found: Any, wanted: Any, threshold: float = 0.5) -> int:
    """[n 4], [m 4] -> how many pairs overlap more than `threshold`, the best first and none twice."""
    found, wanted = (np.asarray(x, np.float64).reshape(-1, 4) for x in (found, wanted))
    shared = np.where(boxes.valid(found)[:, None], boxes.iou(found[:, None], wanted), 0).round(DIGITS)
    count = 0
    while shared.size and shared.max() > threshold:
        row, column = np.unravel_index(shared.argmax(), shared.shape)
        shared = np.delete(np.delete(shared, row, 0), column, 1)
        count += 1
    return count


def several(found: Sequence[Any], wanted: Sequence[Any], threshold: float = 0.5) -> dict[str, float]:
    """N times [n 4] or None, N times [m 4] -> precision and recall of all boxes, and `exact`, the share of questions
    whose boxes are all right and all there; nothing found where nothing is wanted is right."""
    _same_length(found, wanted)
    rows = [([] if f is None else f, w) for f, w in zip(found, wanted, strict=True)]
    right = np.array([paired(f, w, threshold) for f, w in rows])
    said, asked = (np.array([len(row[i]) for row in rows]) for i in (0, 1))
    exact = (right == said) & (right == asked) & np.array([f is not None for f in found])
    precision, recall = (float(right.sum() / max(count.sum(), 1)) for count in (said, asked))
    return {"precision": precision, "recall": recall, "exact": float(exact.mean()), "failed": _failed(found)}


def pointing(found: Sequence[Sequence[float] | None], wanted: Sequence[Any]) -> dict[str, float]:
    """N points (x, y) or None; N boxes in the same unit, or N masks bool [h w] with points in [0, 1] of them."""
    _same_length(found, wanted)
    pairs = zip(found, wanted, strict=True)
    right = [point is not None and _inside(np.asarray(point), np.asarray(target)) for point, target in pairs]
    return {"accuracy": float(np.mean(right)), "failed": _failed(found)}


def _inside(point: np.ndarray, target: np.ndarray) -> bool:
    if target.shape == (4,):
        return bool(boxes.contains(target.astype(np.float64), point))
    height, width = target.shape
    x, y = np.floor(point * [width, height]).astype(int)
    return 0 <= x < width and 0 <= y < height and bool(target[y, x])


def segmenting(found: Sequence[np.ndarray | None], wanted: Sequence[np.ndarray]) -> dict[str, float]:
    """N masks bool [h w] or None, N masks; sizes may differ from question to question. None and a mask of another size
    than its target's are an empty mask."""
    _same_length(found, wanted)
    fits = [mask is not None and mask.shape == target.shape for mask, target in zip(found, wanted, strict=True)]
    masks = [mask if fit else np.zeros_like(target) for mask, target, fit in zip(found, wanted, fits, strict=True)]
    pairs = list(zip(masks, wanted, strict=True))
    both = sum(int((mask & target).sum()) for mask, target in pairs)
    either = sum(int((mask | target).sum()) for mask, target in pairs)
    each = np.array([segmentation.iou(mask, target) for mask, target in pairs])
    precision = {f"acc@{threshold:g}": float((each.round(DIGITS) > threshold).mean()) for threshold in (0.5, 0.7, 0.9)}
    return {"ciou": both / max(either, 1), "miou": float(each.mean()), **precision, "failed": 1 - float(np.mean(fits))}


def exact(found: Sequence[str | None], wanted: Sequence[str | None]) -> dict[str, float]:
    """The share of all N answers that are the target's, character for character; a target of None is never met."""
    _same_length(found, wanted)
    right = [one is not None and one == target for one, target in zip(found, wanted, strict=True)]
    return {"accuracy": float(np.mean(right)), "failed": _failed(found)}


def polling(found: Sequence[str | None], wanted: Sequence[str]) -> dict[str, float]:
    """Answers "yes", "no" or None to questions whether something is there. Of precision and recall, yes is what is
    looked for; yes_ratio tells a model that sees everything everywhere. An answer of None is neither."""
    metrics, found, wanted = exact(found, wanted), np.array(found, object), np.array(wanted, object)
    unknown = set(wanted) - {"yes", "no"}
    if unknown:
        raise ValueError(f'targets must be "yes" or "no", got {sorted(map(str, unknown))}')
    right = float(((found == "yes") & (wanted == "yes")).sum())
    precision = right / max((found == "yes").sum(), 1)
    recall = right / max((wanted == "yes").sum(), 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    rates = {"precision": precision, "recall": recall, "f1": f1, "yes_ratio": np.mean(found == "yes")}
    return metrics | {name: float(value) for name, value in rates.items()}


def _failed(found: Sequence[Any]) -> float:
    return float(np.mean([one is None for one in found]))


def _same_length(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    if len(found) != len(wanted) or not len(found):
        raise ValueError(
            f"each question needs a prediction, None where there is none, and a target; got {len(found)} predictions "
            f"and {len(wanted)} targets"
        )
