"""Makes vit_hf.npz: transformers.ViTModel, random weights, its last hidden state. Needs torch and transformers."""

from pathlib import Path

import numpy as np
import torch
from transformers import ViTConfig, ViTModel


def main() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=30, patch_size=10,
        layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        images = torch.randn(3, 3, 30, 30)
        golden = {f"weights/{name}": weight.numpy() for name, weight in model.state_dict().items()}
        return golden | {"images": images.numpy(), "last_hidden_state": model(images).last_hidden_state.numpy()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).parent / "vit_hf.npz", **main())
