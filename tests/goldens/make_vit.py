"""Makes, with random weights and odd sizes, and with torch and transformers installed:

vit_hf.npz       ViTModel's last hidden state
vit_dinov2.npz   Dinov2WithRegistersModel, which has everything that a ViT learned since: registers, LayerScale, SwiGLU,
                 masked patches, images of another size; outputs, and the gradient of their weighted mean
hf_vit/          ViTModel with its pooler, as save_pretrained writes it; what it computes of two image sizes
hf_vit_classes/  ViTForImageClassification; outputs, loss, and the gradient of the loss
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import ViTConfig, ViTModel

HERE = Path(__file__).parent
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 30, "patch_size": 10,
    "layer_norm_eps": 1e-6, "attn_implementation": "eager",
}  # fmt: skip


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


def vit_hf() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**SIZES, intermediate_size=40), add_pooling_layer=False).eval()
    randomise(model)
    with torch.no_grad():
        images = torch.randn(3, 3, 30, 30)
        golden = {f"weights/{name}": weight.numpy() for name, weight in model.state_dict().items()}
        return golden | {"images": images.numpy(), "last_hidden_state": model(images).last_hidden_state.numpy()}


def gradients(model: torch.nn.Module, value: torch.Tensor) -> dict[str, np.ndarray]:
    model.zero_grad()
    value.backward()
    return {f"gradients/{name}": weight.grad.numpy().copy() for name, weight in model.named_parameters()}


def vit_dinov2() -> dict[str, np.ndarray]:
    torch.manual_seed(1)
    config = transformers.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=4, num_register_tokens=2, use_swiglu_ffn=True)
    model = transformers.Dinov2WithRegistersModel(config).eval()
    randomise(model)
    images, masked = torch.randn(3, 3, 50, 20), torch.rand(3, 10) < 0.4
    out = model(images, bool_masked_pos=masked, output_hidden_states=True)
    weights = torch.randn(out.last_hidden_state.shape)
    golden = {f"weights/{name}": weight.detach().numpy() for name, weight in model.state_dict().items()}
    golden |= {"images": images.numpy(), "masked": masked.numpy(), "mean_weights": weights.numpy()}
    golden["last_hidden_state"] = out.last_hidden_state.detach().numpy()
    golden["hidden_states"] = np.stack([x.detach().numpy() for x in out.hidden_states[1:]])
    return golden | gradients(model, (out.last_hidden_state * weights).mean())


def hf_vit() -> None:
    torch.manual_seed(2)
    model = ViTModel(ViTConfig(**SIZES, intermediate_size=40)).eval()
    randomise(model)
    model.save_pretrained(HERE / "hf_vit")
    images, larger = torch.randn(3, 3, 30, 30), torch.randn(2, 3, 40, 50)
    with torch.no_grad():
        out, other = model(images), model(larger, interpolate_pos_encoding=True)
    np.savez_compressed(
        HERE / "hf_vit" / "outputs.npz",
        images=images.permute(0, 2, 3, 1).numpy(), last_hidden_state=out.last_hidden_state.numpy(),
        pooler_output=out.pooler_output.numpy(), larger=larger.permute(0, 2, 3, 1).numpy(),
        larger_hidden_state=other.last_hidden_state.numpy(),
    )  # fmt: skip


def hf_vit_classes() -> None:
    torch.manual_seed(3)
    names = ("cat", "dog", "red panda")
    config = ViTConfig(**SIZES, intermediate_size=40, id2label=dict(enumerate(names)))
    model = transformers.ViTForImageClassification(config).eval()
    randomise(model)
    model.save_pretrained(HERE / "hf_vit_classes")
    images, label = torch.randn(4, 3, 30, 30), torch.tensor([2, 0, 1, 2])
    out = model(images, labels=label)
    golden = {"images": images.permute(0, 2, 3, 1).numpy(), "label": label.numpy()}
    golden |= {"logits": out.logits.detach().numpy(), "loss": out.loss.detach().numpy()}
    np.savez_compressed(HERE / "hf_vit_classes" / "outputs.npz", **golden, **gradients(model, out.loss))


if __name__ == "__main__":
    np.savez_compressed(HERE / "vit_hf.npz", **vit_hf())
    np.savez_compressed(HERE / "vit_dinov2.npz", **vit_dinov2())
    hf_vit()
    hf_vit_classes()
