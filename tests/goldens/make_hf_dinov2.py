"""Makes hf_dinov2/ and hf_dinov2_registers/: Dinov2Model and Dinov2WithRegistersModel of random weights and odd sizes,
as save_pretrained writes them, with what they compute of images of two sizes and of hidden patches, and the gradient of
its weighted mean. Needs torch and transformers.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

HERE = Path(__file__).parent
SIZES = {
    "hidden_size": 18, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 24, "patch_size": 6,
    "mlp_ratio": 2, "attn_implementation": "eager",
}  # fmt: skip


def make(folder: str, model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if ("norm" in name and name.endswith("weight")) or "lambda" in name else 0.0
            weight.copy_(torch.randn(weight.shape) * 0.2 + mean)
    model.eval().save_pretrained(HERE / folder)
    images, wide, masked = torch.randn(2, 3, 24, 24), torch.randn(2, 3, 30, 18), torch.rand(2, 15) < 0.4
    with torch.no_grad():
        out, other = model(images), model(wide)
    hidden = model(wide, bool_masked_pos=masked)
    weights = torch.randn(hidden.last_hidden_state.shape)
    (hidden.last_hidden_state * weights).mean().backward()
    channels_last = lambda x: x.permute(0, 2, 3, 1).numpy()  # noqa: E731
    np.savez_compressed(
        HERE / folder / "outputs.npz",
        images=channels_last(images), wide=channels_last(wide), masked=masked.numpy(), weights=weights.numpy(),
        last_hidden_state=out.last_hidden_state.numpy(), pooler_output=out.pooler_output.numpy(),
        wide_hidden_state=other.last_hidden_state.numpy(),
        masked_hidden_state=hidden.last_hidden_state.detach().numpy(),
        # A few that lie far apart; all of them are compared live.
        mask_gradient=model.embeddings.mask_token.grad.numpy(),
        position_gradient=model.embeddings.position_embeddings.grad.numpy(),
        scale_gradient=torch.stack([layer.layer_scale2.lambda1.grad for layer in model.encoder.layer]).numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    torch.manual_seed(0)
    make("hf_dinov2", Dinov2Model(Dinov2Config(**SIZES)))
    config = Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3, use_swiglu_ffn=True)
    make("hf_dinov2_registers", Dinov2WithRegistersModel(config))
