"""Makes boxes.npz: torchvision's box_iou, generalized_box_iou and its gradients, box_convert, clip_boxes_to_image and
generalized_box_iou_loss of random boxes, of boxes within boxes, apart, side by side and without area.

Suppression: greedy by a plain loop in float64, written from torchvision's documentation.
Run with torch and torchvision installed: python tests/goldens/make_boxes.py
"""

from pathlib import Path

import numpy as np
import torch
from torchvision import ops

PAIRS = [  # within, apart, apart along one axis, equal, a line
    ([0.1, 0.1, 0.9, 0.8], [0.3, 0.2, 0.5, 0.7]),
    ([0.0, 0.0, 0.2, 0.1], [0.7, 0.6, 0.9, 1.0]),
    ([0.1, 0.3, 0.3, 0.6], [0.5, 0.2, 0.8, 0.7]),
    ([0.2, 0.2, 0.7, 0.5], [0.2, 0.2, 0.7, 0.5]),
    ([0.4, 0.1, 0.4, 0.6], [0.3, 0.2, 0.8, 0.7]),
]


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 1, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32)


def suppressed(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    def shared(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        both = max(width, 0) * max(height, 0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return both / (sum(areas) - both)

    keep = []
    for i in np.argsort(-scores, kind="stable"):
        if all(shared(boxes[i].astype(float), boxes[j].astype(float)) <= threshold for j in keep):
            keep.append(i)
    return np.isin(np.arange(len(boxes)), keep)


def main() -> None:
    rng = np.random.default_rng(0)
    a = np.concatenate([random_boxes(rng, 9), [pair[0] for pair in PAIRS]]).astype(np.float32)
    b = np.concatenate([random_boxes(rng, 9), [pair[1] for pair in PAIRS]]).astype(np.float32)
    weight = rng.normal(size=(len(a), len(b))).astype(np.float32)
    first, second = (torch.tensor(x, requires_grad=True) for x in (a, b))
    giou = ops.generalized_box_iou(first, second)
    (giou * torch.tensor(weight)).sum().backward()
    wild = torch.tensor(rng.uniform(-40, 140, (11, 4)).astype(np.float32))
    many = np.round(random_boxes(rng, 25), 3)
    many[5:20] = many[:15] + rng.uniform(0, 0.06, (15, 1)).astype(np.float32)  # neighbours, some of which are doubles
    scores = np.round(rng.uniform(size=25), 1).astype(np.float32)  # with equal ones
    arrays = {
        "a": a, "b": b, "weight": weight, "iou": ops.box_iou(first, second).detach().numpy(),
        "giou": giou.detach().numpy(), "grad_a": first.grad.numpy(), "grad_b": second.grad.numpy(),
        "giou_loss": ops.generalized_box_iou_loss(first, second).detach().numpy(),
        "xywh": ops.box_convert(torch.tensor(a), "xyxy", "xywh").numpy(),
        "cxcywh": ops.box_convert(torch.tensor(a), "xyxy", "cxcywh").numpy(),
        "wild": wild.numpy(), "clipped": ops.clip_boxes_to_image(wild, (70, 90)).numpy(),  # height, width
        "many": many, "scores": scores,
    }  # fmt: skip
    arrays |= {f"keep_{threshold}": suppressed(many, scores, threshold) for threshold in (0.3, 0.7)}
    np.savez_compressed(Path(__file__).with_name("boxes.npz"), **arrays)


if __name__ == "__main__":
    main()
