"""Makes hf_clip/, hf_clip_legacy/ and open_clip/: tiny CLIPs with what the original libraries compute from them.

Needs torch, torchvision, transformers and open_clip; run as python tests/goldens/make_hf_clip.py
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers
from open_clip import model as oc
from safetensors.torch import save_file

HERE = Path(__file__).parent
# Odd sizes: no two axes of a tensor are equal by chance, but where the architecture makes them.
TEXT = {
    "vocab_size": 23, "max_position_embeddings": 7, "hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 2, "bos_token_id": 21, "eos_token_id": 22, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 12,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
IDS = np.array([[21, 4, 5, 9, 22, 0, 0], [21, 7, 22, 22, 22, 22, 22], [21, 1, 2, 3, 4, 5, 22]])


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Biases and norms too, which a fresh model has at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=generator)


def images(size: int, seed: int = 1) -> np.ndarray:  # [B H W 3], normalised
    return np.random.default_rng(seed).normal(size=(2, size, size, 3)).astype(np.float32)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def hf_outputs(model: transformers.CLIPModel, **inputs: np.ndarray) -> dict:
    out = model(input_ids=torch.from_numpy(inputs["input_ids"]), pixel_values=channels_first(inputs["images"]))
    outputs = {name: out[name].numpy() for name in ("image_embeds", "text_embeds", "logits_per_image")}
    return {**inputs, **outputs, "logit_scale": model.logit_scale.exp().numpy()}


def hf_clip() -> None:
    config = transformers.CLIPConfig(
        text_config={**TEXT, "hidden_act": "quick_gelu", "projection_dim": 6, "layer_norm_eps": 1e-4},
        vision_config={**VISION, "hidden_act": "gelu", "projection_dim": 6},
        projection_dim=6,
    )
    model = transformers.CLIPModel._from_config(config, attn_implementation="eager").eval()
    randomise(model, 0)
    model.save_pretrained(HERE / "hf_clip")
    outputs = hf_outputs(model, images=images(8), input_ids=IDS)
    with torch.no_grad():
        larger = model.get_image_features(channels_first(images(12)), interpolate_pos_encoding=True).pooler_output
    larger = torch.nn.functional.normalize(larger, dim=-1).numpy()
    np.savez_compressed(HERE / "hf_clip" / "outputs.npz", **outputs, images_12=images(12), image_embeds_12=larger)


def hf_clip_legacy() -> None:
    """As in files of 2022: only what isn't default, eos_token_id 2, position_ids; half precision, shards."""
    text = {**TEXT, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=6)
    model = transformers.CLIPModel._from_config(config, attn_implementation="eager").eval()
    randomise(model, 2)
    model.half().save_pretrained(HERE / "hf_clip_legacy", max_shard_size="5KB")
    (HERE / "hf_clip_legacy" / "config.json").write_text(
        json.dumps({"model_type": "clip", "projection_dim": 6, "text_config": text, "vision_config": VISION}, indent=1)
    )
    where = HERE / "hf_clip_legacy" / "model.safetensors.index.json"
    index = json.loads(where.read_text())
    extra = {
        "text_model.embeddings.position_ids": torch.arange(7)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    save_file(extra, where.with_name("model-buffers.safetensors"), metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(extra, "model-buffers.safetensors")
    where.write_text(json.dumps(index, indent=1))
    ids = np.array([[21, 2, 5, 9, 22, 0, 0], [21, 7, 2, 22, 2, 2, 2]])  # an id 2 that is not the end
    np.savez_compressed(
        HERE / "hf_clip_legacy" / "outputs.npz", **hf_outputs(model.float(), images=images(8), input_ids=ids)
    )


def open_clip_folder() -> None:
    config = {
        "embed_dim": 6,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 12, "layers": 2, "head_width": 4, "mlp_ratio": 2.5},
        "text_cfg": {"context_length": 7, "vocab_size": 23, "width": 8, "heads": 2, "layers": 3},
    }
    model = open_clip.CLIP(**config).eval()
    randomise(model, 3)
    folder = HERE / "open_clip"
    folder.mkdir(exist_ok=True)
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.25, 0.27]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1)
    )
    larger = open_clip.CLIP(**{**config, "vision_cfg": {**config["vision_cfg"], "image_size": 16}}).eval()
    state = dict(model.state_dict())
    oc.resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    with torch.no_grad():
        image, text, scale = model(channels_first(images(8)), torch.from_numpy(IDS))
        image_16 = larger.encode_image(channels_first(images(16)), normalize=True)
    np.savez_compressed(
        folder / "outputs.npz", images=images(8), input_ids=IDS, image_embeds=image.numpy(), text_embeds=text.numpy(),
        logit_scale=scale.numpy(), images_16=images(16), image_embeds_16=image_16.numpy(),
    )  # fmt: skip
    trained = {f"module.{name}": x for name, x in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": trained}, folder / "epoch_1.pt")
    torchscript(model, folder / "openai.pt")


def torchscript(model: open_clip.CLIP, path: Path) -> None:
    """As OpenAI's files: traced, weights in half precision, sizes as buffers."""
    oc.convert_weights_to_fp16(model)
    for name, value in {"input_resolution": 8, "context_length": 7, "vocab_size": 23}.items():
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    images_ = channels_first(images(8)).half()
    traced = torch.jit.trace_module(model, {"encode_image": (images_,), "encode_text": (torch.from_numpy(IDS),)})
    torch.jit.save(traced, path)
    # The traced code holds paths of this machine.
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if "/code/" not in name}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


if __name__ == "__main__":
    torch.manual_seed(0)
    hf_clip()
    hf_clip_legacy()
    open_clip_folder()
