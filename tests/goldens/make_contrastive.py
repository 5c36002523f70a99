"""Makes contrastive.npz: open_clip's ClipLoss and SigLipLoss with their gradients, in float32.

Needs torch and open_clip. 13 rows for one device, 24 for eight (three rows each).
"""

from pathlib import Path

import numpy as np
import torch
from open_clip.loss import ClipLoss, SigLipLoss

torch.manual_seed(0)
out = {}
for rows in (13, 24):
    images, texts = (torch.nn.functional.normalize(torch.randn(rows, 7), dim=-1) for _ in range(2))
    inputs = {"images": images, "texts": texts, "scale": torch.tensor(9.5), "bias": torch.tensor(-3.25)}
    for name, loss in (("clip", ClipLoss()), ("siglip", SigLipLoss())):
        leaves = [x.clone().requires_grad_() for x in inputs.values()][: 3 if name == "clip" else 4]
        value = loss(*leaves)
        value.backward()
        out[f"{rows}/{name}/value"] = value.detach().numpy()
        out |= {f"{rows}/{name}/{key}": x.grad.numpy() for key, x in zip(inputs, leaves, strict=False)}
    out |= {f"{rows}/{key}": x.numpy() for key, x in inputs.items()}
np.savez(Path(__file__).parent / "contrastive.npz", **out)
