"""Makes segmentation.npz: torchvision's sigmoid_focal_loss with its gradient; the dice loss with a gradient by
differences, and the overlap of masks, by plain loops in float64; of random masks.

Run with torch and torchvision installed: python tests/goldens/make_segmentation.py
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.ops import sigmoid_focal_loss


def dice(logits: np.ndarray, target: np.ndarray, smooth: float) -> np.ndarray:
    """[N h w] -> [N], pixel by pixel."""
    values = []
    for mask, wanted in zip(logits.astype(np.float64), target, strict=True):
        both = inside = covered = 0.0
        for x, t in zip(mask.ravel(), wanted.ravel(), strict=True):
            p = 1 / (1 + np.exp(-x))
            both, inside, covered = both + p * t, inside + p, covered + t
        values.append(1 - (2 * both + smooth) / (inside + covered + smooth))
    return np.array(values)


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    a, b = ({tuple(at) for at in np.argwhere(mask)} for mask in (found, wanted))
    return len(a & b) / len(a | b) if a | b else 1.0


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(5, 6, 7))).astype(np.float32)
    logits[0, 0, :3] = 60, -60, 0  # where 1 - p has no digits left
    target = (rng.random((5, 6, 7)) < [[[0.5]], [[0.2]], [[0.9]], [[0]], [[1]]]).astype(np.float32)
    weights = rng.normal(size=(5, 6, 7)).astype(np.float32)
    golden = {"logits": logits, "target": target, "weights": weights}
    for name, alpha, gamma in (("focal", 0.25, 2.0), ("focal_bare", -1, 1.5)):
        x = torch.tensor(logits, requires_grad=True)
        value = sigmoid_focal_loss(x, torch.tensor(target), alpha, gamma)
        (value * torch.tensor(weights)).sum().backward()
        golden |= {name: value.detach().numpy(), f"{name}_gradient": x.grad.numpy()}
    golden |= {f"dice_{smooth}": dice(logits, target, smooth) for smooth in (1, 3)}
    step, difference = 1e-4, np.zeros(7)
    for column in range(7):  # of the second mask's first row, by differences
        up, down = (logits[1:2].astype(np.float64) for _ in range(2))
        up[0, 0, column] += step
        down[0, 0, column] -= step
        difference[column] = (dice(up, target[1:2], 1)[0] - dice(down, target[1:2], 1)[0]) / (2 * step)
    golden |= {"dice_gradient": difference, "iou": [overlap(a > 0, b > 0) for a, b in zip(logits, target, strict=True)]}
    np.savez_compressed(Path(__file__).parent / "segmentation.npz", **golden)
