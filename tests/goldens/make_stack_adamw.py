"""Makes stack_adamw.npz: three steps of torch.optim.AdamW on three residual layers and a head, each tensor clipped by
its own norm, decayed only where it is a weight, learning rates halved from layer to layer downwards. Needs torch.
"""

from pathlib import Path

import numpy as np
import torch

DEPTH, WIDTH, CLASSES, STEPS = 3, 6, 4, 3
RATE, DECAY, CLIP, EPSILON = 0.1, 0.2, 0.5, 1e-2  # a large epsilon: without it a first step hides the gradient's size


def main() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]
    head = torch.nn.Linear(WIDTH, CLASSES)
    named = [(f"layers.{i}.{name}", p) for i, layer in enumerate(layers) for name, p in layer.named_parameters()]
    named += [(f"head.{name}", p) for name, p in head.named_parameters()]
    golden = {f"before/{name}": p.detach().numpy().copy() for name, p in named}

    def group(name: str, p: torch.nn.Parameter) -> dict:
        halvings = DEPTH - 1 - int(name.split(".")[1]) if name.startswith("layers") else 0
        return {"params": [p], "lr": RATE * 0.5**halvings, "weight_decay": DECAY if name.endswith("weight") else 0.0}

    optimizer = torch.optim.AdamW([group(name, p) for name, p in named], betas=(0.9, 0.98), eps=EPSILON)
    x, y = torch.randn(STEPS, 5, WIDTH) * 3, torch.randn(STEPS, 5, CLASSES) * 3
    golden |= {"x": x.numpy(), "y": y.numpy()}
    for step in range(STEPS):
        hidden = x[step]
        for layer in layers:
            hidden = hidden + torch.tanh(layer(hidden))
        optimizer.zero_grad()
        ((head(hidden) - y[step]) ** 2).mean().backward()
        norms = [torch.nn.utils.clip_grad_norm_([p], CLIP) for _, p in named]
        golden[f"norms/{step}"] = torch.stack(norms).numpy()
        optimizer.step()
        golden |= {f"after{step}/{name}": p.detach().numpy().copy() for name, p in named}
    return golden


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).parent / "stack_adamw.npz", **main())
