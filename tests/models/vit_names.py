"""The weights of the goldens of ViT and SigLIP as our trees, name by name (shares no code with mmjax.weights)."""

import numpy as np
from clip_names import linear, norm, stack


def _embeddings(flat: dict, name: str = "embeddings") -> dict:
    patch = f"{name}.patch_embeddings.projection"
    tree = {
        "patch_embed": {"kernel": flat[f"{patch}.weight"].transpose(2, 3, 1, 0), "bias": flat[f"{patch}.bias"]},
        "class_embed": flat[f"{name}.cls_token"][0, 0],
        "pos_embed": flat[f"{name}.position_embeddings"][0],
    }
    if f"{name}.register_tokens" in flat:
        tree["register_embed"] = flat[f"{name}.register_tokens"][0]
    if f"{name}.mask_token" in flat:
        tree["mask_embed"] = flat[f"{name}.mask_token"].reshape(-1)
    return tree


ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}


def from_vit(flat: dict) -> dict:
    """ViTModel, and ViTForImageClassification, by their names in memory."""
    if "classifier.weight" in flat:
        inner = {name.removeprefix("vit."): x for name, x in flat.items() if name.startswith("vit.")}
        return {"vit": from_vit(inner), "head": linear(flat, "classifier")}

    def layer(flat: dict, name: str) -> dict:
        return {
            "norm1": norm(flat, f"{name}.layernorm_before"),
            "attention": {our: linear(flat, f"{name}.attention.{their}") for our, their in ATTENTION.items()},
            "norm2": norm(flat, f"{name}.layernorm_after"),
            "mlp": {"up": linear(flat, f"{name}.mlp.fc1"), "down": linear(flat, f"{name}.mlp.fc2")},
        }

    pooler = {"pooler": linear(flat, "pooler.dense")} if "pooler.dense.weight" in flat else {}
    return {**_embeddings(flat), "layers": stack(flat, "layers", layer), "norm": norm(flat, "layernorm"), **pooler}


def from_dinov2(flat: dict) -> dict:
    """Dinov2WithRegistersModel with SwiGLU, by its names in memory."""

    def layer(flat: dict, name: str) -> dict:
        gated = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
        return {
            "norm1": norm(flat, f"{name}.norm1"),
            "attention": {our: linear(flat, f"{name}.attention.{their}") for our, their in ATTENTION.items()},
            "layer_scale1": flat[f"{name}.layer_scale1.lambda1"],
            "norm2": norm(flat, f"{name}.norm2"),
            "mlp": {our: linear(flat, f"{name}.mlp.{their}") for our, their in gated.items()},
            "layer_scale2": flat[f"{name}.layer_scale2.lambda1"],
        }

    layers = next(name for name in flat if name.endswith(".0.norm1.weight")).removesuffix(".0.norm1.weight")
    return {**_embeddings(flat), "layers": stack(flat, layers, layer), "norm": norm(flat, "layernorm")}


def _siglip_layer(flat: dict, name: str) -> dict:
    attention = ATTENTION | {"out": "out_proj"}
    return {
        "norm1": norm(flat, f"{name}.layer_norm1"),
        "attention": {our: linear(flat, f"{name}.self_attn.{their}") for our, their in attention.items()},
        "norm2": norm(flat, f"{name}.layer_norm2"),
        "mlp": {"up": linear(flat, f"{name}.mlp.fc1"), "down": linear(flat, f"{name}.mlp.fc2")},
    }


def from_siglip(flat: dict) -> dict:
    vision, text, head = "vision_model.embeddings", "text_model.embeddings", "vision_model.head"
    kernels = np.split(flat[f"{head}.attention.in_proj_weight"], 3)
    biases = np.split(flat[f"{head}.attention.in_proj_bias"], 3)
    names = ("query", "key", "value")
    attention = {our: {"kernel": k.T, "bias": b} for our, k, b in zip(names, kernels, biases, strict=True)}
    patch = f"{vision}.patch_embedding"
    return {
        "vision": {
            "patch_embed": {"kernel": flat[f"{patch}.weight"].transpose(2, 3, 1, 0), "bias": flat[f"{patch}.bias"]},
            "pos_embed": flat[f"{vision}.position_embedding.weight"],
            "layers": stack(flat, "vision_model.encoder.layers", _siglip_layer),
            "norm": norm(flat, "vision_model.post_layernorm"),
            "map": {
                "probe": flat[f"{head}.probe"][0],
                "attention": attention | {"out": linear(flat, f"{head}.attention.out_proj")},
                "norm": norm(flat, f"{head}.layernorm"),
                "mlp": {"up": linear(flat, f"{head}.mlp.fc1"), "down": linear(flat, f"{head}.mlp.fc2")},
            },
        },
        "text": {
            "embed": {"embedding": flat[f"{text}.token_embedding.weight"]},
            "pos_embed": flat[f"{text}.position_embedding.weight"],
            "layers": stack(flat, "text_model.encoder.layers", _siglip_layer),
            "norm": norm(flat, "text_model.final_layer_norm"),
            "head": linear(flat, "text_model.head"),
        },
        "logit_scale": flat["logit_scale"][0],
        "logit_bias": flat["logit_bias"][0],
    }
