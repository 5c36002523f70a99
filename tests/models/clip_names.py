"""The weights of the CLIP goldens as our tree, name by name (shares no code with mmjax.weights)."""

import re

import jax
import numpy as np
from closeness import close, close_trees

__all__ = ["close", "close_trees", "from_hf", "from_open_clip", "group", "linear", "norm", "stack"]


def group(golden, prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{prefix}/"): golden[key] for key in golden if key.startswith(f"{prefix}/")}


def linear(flat: dict, name: str) -> dict:
    return {"kernel": flat[f"{name}.weight"].T, "bias": flat[f"{name}.bias"]}


def norm(flat: dict, name: str) -> dict:
    return {"scale": flat[f"{name}.weight"], "bias": flat[f"{name}.bias"]}


def stack(flat: dict, prefix: str, layer) -> dict:
    depth = 1 + max(int(found[1]) for name in flat if (found := re.match(re.escape(prefix) + r"\.(\d+)\.", name)))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[layer(flat, f"{prefix}.{i}") for i in range(depth)])


def _hf_layer(flat: dict, name: str) -> dict:
    ours = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return {
        "norm1": norm(flat, f"{name}.layer_norm1"),
        "attention": {our: linear(flat, f"{name}.self_attn.{their}") for our, their in ours.items()},
        "norm2": norm(flat, f"{name}.layer_norm2"),
        "mlp": {"up": linear(flat, f"{name}.mlp.fc1"), "down": linear(flat, f"{name}.mlp.fc2")},
    }


def hf_tower(flat: dict, prefix: str) -> dict:
    return {
        "patch_embed": {"kernel": flat[f"{prefix}.embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)},
        "class_embed": flat[f"{prefix}.embeddings.class_embedding"],
        "pos_embed": flat[f"{prefix}.embeddings.position_embedding.weight"],
        "norm_pre": norm(flat, f"{prefix}.pre_layrnorm"),
        "layers": stack(flat, f"{prefix}.encoder.layers", _hf_layer),
        "norm": norm(flat, f"{prefix}.post_layernorm"),
    }


def from_hf(flat: dict) -> dict:
    text = "text_model.embeddings"
    return {
        "vision": hf_tower(flat, "vision_model"),
        "text": {
            "embed": {"embedding": flat[f"{text}.token_embedding.weight"]},
            "pos_embed": flat[f"{text}.position_embedding.weight"],
            "layers": stack(flat, "text_model.encoder.layers", _hf_layer),
            "norm": norm(flat, "text_model.final_layer_norm"),
        },
        "vision_projection": {"kernel": flat["visual_projection.weight"].T},
        "text_projection": {"kernel": flat["text_projection.weight"].T},
        "logit_scale": flat["logit_scale"],
    }


def _open_clip_layer(flat: dict, name: str) -> dict:
    kernels = np.split(flat[f"{name}.attn.in_proj_weight"], 3)
    biases = np.split(flat[f"{name}.attn.in_proj_bias"], 3)
    names = ("query", "key", "value")
    inner = {our: {"kernel": k.T, "bias": b} for our, k, b in zip(names, kernels, biases, strict=True)}
    return {
        "norm1": norm(flat, f"{name}.ln_1"),
        "attention": inner | {"out": linear(flat, f"{name}.attn.out_proj")},
        "norm2": norm(flat, f"{name}.ln_2"),
        "mlp": {"up": linear(flat, f"{name}.mlp.c_fc"), "down": linear(flat, f"{name}.mlp.c_proj")},
    }


def from_open_clip(flat: dict) -> dict:
    return {
        "vision": {
            "patch_embed": {"kernel": flat["visual.conv1.weight"].transpose(2, 3, 1, 0)},
            "class_embed": flat["visual.class_embedding"],
            "pos_embed": flat["visual.positional_embedding"],
            "norm_pre": norm(flat, "visual.ln_pre"),
            "layers": stack(flat, "visual.transformer.resblocks", _open_clip_layer),
            "norm": norm(flat, "visual.ln_post"),
        },
        "text": {
            "embed": {"embedding": flat["token_embedding.weight"]},
            "pos_embed": flat["positional_embedding"],
            "layers": stack(flat, "transformer.resblocks", _open_clip_layer),
            "norm": norm(flat, "ln_final"),
        },
        "vision_projection": {"kernel": flat["visual.proj"]},
        "text_projection": {"kernel": flat["text_projection"]},
        "logit_scale": flat["logit_scale"],
    }
