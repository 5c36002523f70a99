"""Makes hf_siglip/: a tiny SiglipModel as save_pretrained writes it, with random weights, and in outputs.npz what it
computes: embeddings, loss, the gradient of the loss, texts with their padding masked, images of another size.

Sizes are odd and unequal, so that no axis can stand in for another. Needs torch and transformers.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TEXT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 36}
LENGTH, VOCABULARY, END = 9, 40, 1


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = {"logit_scale": 2.0, "logit_bias": -3.0}.get(name, 1.0 if "norm" in name and "weight" in name else 0)
            weight.copy_(mean + torch.randn(weight.shape) * 0.2)


def main() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    config = transformers.SiglipConfig(
        vision_config=VISION | {"image_size": 32, "patch_size": 10},  # 2 pixels fill no patch
        text_config=TEXT | {
            "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "projection_size": 24,
            "bos_token_id": None, "eos_token_id": END, "pad_token_id": END,
        },
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.SiglipModel(config).eval()
    randomise(model)
    model.save_pretrained(HERE / "hf_siglip")

    ids, mask = torch.randint(2, VOCABULARY, (4, LENGTH)), torch.ones(4, LENGTH, dtype=torch.int64)
    for row, end in enumerate((8, 3, 5, 1)):
        ids[row, end:], mask[row, end + 1 :] = END, 0
    images, larger = torch.randn(4, 3, 32, 32), torch.randn(2, 3, 25, 54)
    out = model(input_ids=ids, pixel_values=images, return_loss=True)
    out.loss.backward()
    golden = {name: out[name] for name in ("image_embeds", "text_embeds", "logits_per_image", "loss")}
    golden |= {f"gradients/{name}": weight.grad for name, weight in model.named_parameters()}
    with torch.no_grad():
        golden["vision_last_hidden_state"] = out.vision_model_output.last_hidden_state
        golden["text_last_hidden_state"] = out.text_model_output.last_hidden_state
        golden["text_pooler_masked"] = model.get_text_features(ids, attention_mask=mask).pooler_output
        golden["larger_pooler"] = model.get_image_features(larger, interpolate_pos_encoding=True).pooler_output
    golden |= {"images": images.permute(0, 2, 3, 1), "larger": larger.permute(0, 2, 3, 1)}
    golden |= {"input_ids": ids.to(torch.int32), "attention_mask": mask.bool()}
    return {name: x.detach().numpy() for name, x in golden.items()}


if __name__ == "__main__":
    outputs = main()
    np.savez_compressed(HERE / "hf_siglip" / "outputs.npz", **outputs)
