"""Weights in facebookresearch/dino's and dinov2's names as our tree (shares no code with mmjax.weights)."""

import re

import jax
import numpy as np
from closeness import close, close_trees

__all__ = ["backbone", "close", "close_trees", "group", "head"]


def group(golden, prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{prefix}/"): golden[key] for key in golden if key.startswith(f"{prefix}/")}


def linear(flat: dict, name: str) -> dict:
    return {"kernel": flat[f"{name}.weight"].T, "bias": flat[f"{name}.bias"]}


def norm(flat: dict, name: str) -> dict:
    return {"scale": flat[f"{name}.weight"], "bias": flat[f"{name}.bias"]}


def layer(flat: dict, name: str) -> dict:
    kernels = np.split(flat[f"{name}.attn.qkv.weight"], 3)
    biases = np.split(flat[f"{name}.attn.qkv.bias"], 3)
    ours = zip(("query", "key", "value"), kernels, biases, strict=True)
    attention = {our: {"kernel": kernel.T, "bias": bias} for our, kernel, bias in ours}
    tree = {
        "norm1": norm(flat, f"{name}.norm1"),
        "attention": attention | {"out": linear(flat, f"{name}.attn.proj")},
        "norm2": norm(flat, f"{name}.norm2"),
    }
    if f"{name}.mlp.w12.weight" in flat:
        (gate, up), (gate_bias, up_bias) = (np.split(flat[f"{name}.mlp.w12.{kind}"], 2) for kind in ("weight", "bias"))
        tree["mlp"] = {"gate": {"kernel": gate.T, "bias": gate_bias}, "up": {"kernel": up.T, "bias": up_bias}}
        tree["mlp"]["down"] = linear(flat, f"{name}.mlp.w3")
    else:
        tree["mlp"] = {"up": linear(flat, f"{name}.mlp.fc1"), "down": linear(flat, f"{name}.mlp.fc2")}
    scales = {f"layer_scale{i}": flat[f"{name}.ls{i}.gamma"] for i in (1, 2) if f"{name}.ls{i}.gamma" in flat}
    return tree | scales


def backbone(flat: dict, prefix: str = "backbone.") -> dict:
    flat = {name.removeprefix(prefix): x for name, x in flat.items() if name.startswith(prefix)}
    depth = 1 + max(int(found[1]) for name in flat if (found := re.match(r"blocks\.(\d+)\.", name)))
    optional = {"mask_embed": "mask_token", "register_embed": "register_tokens"}
    return {
        "patch_embed": {
            "kernel": flat["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
            "bias": flat["patch_embed.proj.bias"],
        },
        "class_embed": flat["cls_token"][0, 0],
        "pos_embed": flat["pos_embed"][0],
        "layers": jax.tree.map(lambda *x: np.stack(x), *[layer(flat, f"blocks.{i}") for i in range(depth)]),
        "norm": norm(flat, "norm"),
    } | {
        our: flat[their][0] if our == "register_embed" else flat[their].reshape(-1)
        for our, their in optional.items()
        if their in flat
    }


def head(flat: dict, prefix: str = "head.") -> dict:
    return {
        "up": linear(flat, f"{prefix}mlp.0"),
        "transform": linear(flat, f"{prefix}mlp.2"),
        "down": linear(flat, f"{prefix}mlp.4"),
        "prototypes": {
            "kernel": flat[f"{prefix}last_layer.weight_v"].T,
            "gain": flat[f"{prefix}last_layer.weight_g"][:, 0],
        },
    }
