"""The weights of the goldens of DiT and MAR as our trees, name by name (shares no code with mmjax.weights)."""

import numpy as np
from clip_names import linear, norm, stack


def qkv(flat: dict, name: str) -> dict:
    kernels, biases = (np.split(flat[f"{name}.qkv.{kind}"], 3) for kind in ("weight", "bias"))
    three = zip(("query", "key", "value"), kernels, biases, strict=True)
    return {**{our: {"kernel": k.T, "bias": b} for our, k, b in three}, "out": linear(flat, f"{name}.proj")}


def modulation(flat: dict, name: str) -> dict:
    return {"linear": linear(flat, f"{name}.adaLN_modulation.1")}


def final(flat: dict, name: str) -> dict:
    return {"modulation": modulation(flat, name), "linear": linear(flat, f"{name}.linear")}


def time(flat: dict, name: str) -> dict:
    return {"up": linear(flat, f"{name}.mlp.0"), "down": linear(flat, f"{name}.mlp.2")}


def dit(flat: dict) -> dict:
    def block(flat: dict, name: str) -> dict:
        mlp = {"up": linear(flat, f"{name}.mlp.fc1"), "down": linear(flat, f"{name}.mlp.fc2")}
        return {"modulation": modulation(flat, name), "attention": qkv(flat, f"{name}.attn"), "mlp": mlp}

    patch = flat["x_embedder.proj.weight"].transpose(2, 3, 1, 0)
    return {
        "patch_embed": {"kernel": patch, "bias": flat["x_embedder.proj.bias"]},
        "time": time(flat, "t_embedder"),
        "condition": {"embedding": flat["y_embedder.embedding_table.weight"]},
        "layers": stack(flat, "blocks", block),
        "final": final(flat, "final_layer"),
    }


def mar(flat: dict) -> dict:
    def block(flat: dict, name: str) -> dict:
        return {
            "norm1": norm(flat, f"{name}.norm1"), "attention": qkv(flat, f"{name}.attn"),
            "norm2": norm(flat, f"{name}.norm2"), "up": linear(flat, f"{name}.mlp.fc1"),
            "down": linear(flat, f"{name}.mlp.fc2"),
        }  # fmt: skip

    def head_block(flat: dict, name: str) -> dict:
        mlp = {"up": linear(flat, f"{name}.mlp.0"), "down": linear(flat, f"{name}.mlp.2")}
        return {"norm": norm(flat, f"{name}.in_ln"), "modulation": modulation(flat, name), **mlp}

    def trunk(name: str) -> dict:
        return {"layers": stack(flat, f"{name}_blocks", block), "norm": norm(flat, f"{name}_norm")}

    head = "diffloss.net"
    return {
        "class_embed": flat["class_emb.weight"],
        "no_class": flat["fake_latent"],
        "embed": linear(flat, "z_proj"),
        "embed_norm": norm(flat, "z_proj_ln"),
        "encoder_pos": flat["encoder_pos_embed_learned"][0],
        "encoder": trunk("encoder"),
        "decoder_embed": linear(flat, "decoder_embed"),
        "mask_embed": flat["mask_token"][0],
        "decoder_pos": flat["decoder_pos_embed_learned"][0],
        "decoder": trunk("decoder"),
        "head_pos": flat["diffusion_pos_embed_learned"][0],
        "head": {
            "time": time(flat, f"{head}.time_embed"),
            "condition": linear(flat, f"{head}.cond_embed"),
            "embed": linear(flat, f"{head}.input_proj"),
            "layers": stack(flat, f"{head}.res_blocks", head_block),
            "final": final(flat, f"{head}.final_layer"),
        },
    }
