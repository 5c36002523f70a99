"""Makes clip_hf.npz (transformers.CLIPModel) and clip_open_clip.npz (open_clip.CLIP with ClipLoss): random weights in
the library's own names, inputs, and what it computes from them. Needs torch, torchvision, transformers, open_clip.

Sizes are odd and unequal, so that no axis can stand in for another; every weight is random, norms and biases too.
"""

import json
import re
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from transformers import CLIPConfig, CLIPModel

HERE = Path(__file__).parent
EOS = 51  # not the highest id of the vocabulary, so that the two rules for the end of the text differ
IMAGE, PATCH, LENGTH, VOCABULARY, EMBED = 30, 10, 13, 60, 12
VISION = {"width": 24, "layers": 2, "heads": 3, "hidden": 40}
TEXT = {"width": 16, "layers": 3, "heads": 2, "hidden": 36}


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = {"logit_scale": 2.0}.get(name, 1.0 if re.search(r"(norm|ln_)\w*\.weight", name) else 0.0)
            weight.copy_(mean + torch.randn(weight.shape) * 0.2)


def inputs(eos: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 50, (3, LENGTH))
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    for row, end in enumerate((LENGTH - 1, 4, 8)):
        ids[row, end] = eos
        ids[row, end + 1 :] = eos if row == 1 else 0  # both ways to pad: with the end token, with 0
        mask[row, end + 1 :] = 0
    return {"images": torch.randn(3, 3, IMAGE, IMAGE), "input_ids": ids, "attention_mask": mask}


def arrays(prefix: str, tensors) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": tensor.detach().numpy().copy() for name, tensor in tensors}


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, np.ndarray]:
    model.zero_grad()
    loss.backward()
    return arrays("gradients", ((name, weight.grad) for name, weight in model.named_parameters()))


def hf_config(eos: int) -> CLIPConfig:
    def tower(sizes: dict, **more) -> dict:
        names = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
        names["hidden"] = "intermediate_size"
        return {names[key]: value for key, value in sizes.items()} | more

    text = tower(TEXT, vocab_size=VOCABULARY, max_position_embeddings=LENGTH + 3, projection_dim=EMBED)
    text |= {"eos_token_id": eos, "bos_token_id": 1, "pad_token_id": 0}
    vision = tower(VISION, image_size=IMAGE, patch_size=PATCH, projection_dim=EMBED)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED, attn_implementation="eager")


def hf() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    config = hf_config(EOS)
    model = CLIPModel(config).eval()
    randomise(model)
    batch = inputs(EOS)
    batch["input_ids"][0, 5] = VOCABULARY - 1  # higher than EOS: only the rule by id reads the end of row 0
    golden = arrays("weights", model.state_dict().items()) | {"config": np.array(json.dumps(config.to_dict()))}
    golden |= arrays("inputs", batch.items())

    def run(model: CLIPModel, mask: bool):
        return model(
            input_ids=batch["input_ids"],
            pixel_values=batch["images"],
            attention_mask=batch["attention_mask"] if mask else None,
            return_loss=True,
            output_hidden_states=True,
        )

    out = run(model, mask=True)
    golden |= arrays("outputs", ((k, out[k]) for k in ("image_embeds", "text_embeds", "logits_per_image", "loss")))
    golden |= arrays("vision_hidden_states", ((str(i), h) for i, h in enumerate(out.vision_model_output.hidden_states)))
    golden["outputs/text_last_hidden_state"] = out.text_model_output.last_hidden_state.detach().numpy()
    golden |= gradients(model, out.loss)
    legacy = CLIPModel(hf_config(2)).eval()  # 2 in the file means: the highest id of the row
    legacy.load_state_dict(model.state_dict())
    golden["outputs/text_embeds_highest_id"] = run(legacy, mask=False).text_embeds.detach().numpy()
    return golden


def of_open_clip() -> dict[str, np.ndarray]:
    torch.manual_seed(1)
    head_width = VISION["width"] // VISION["heads"]
    vision = CLIPVisionCfg(
        layers=VISION["layers"], width=VISION["width"], head_width=head_width, image_size=IMAGE, patch_size=PATCH
    )
    text = CLIPTextCfg(LENGTH, VOCABULARY, width=TEXT["width"], heads=TEXT["heads"], layers=TEXT["layers"])
    model = open_clip.CLIP(EMBED, vision, text, quick_gelu=True).eval()
    randomise(model)
    batch = inputs(VOCABULARY - 1)
    image_embeds, text_embeds, scale = model(batch["images"], batch["input_ids"])
    loss = open_clip.ClipLoss()(image_embeds, text_embeds, scale)
    outputs = {"image_embeds": image_embeds, "text_embeds": text_embeds, "logit_scale": scale, "loss": loss}
    golden = arrays("weights", model.state_dict().items()) | arrays("inputs", batch.items())
    return golden | arrays("outputs", outputs.items()) | gradients(model, loss)


if __name__ == "__main__":
    np.savez_compressed(HERE / "clip_hf.npz", **hf())
    np.savez_compressed(HERE / "clip_open_clip.npz", **of_open_clip())
