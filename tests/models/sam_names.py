"""The weights of SAM's goldens as our tree, name by name (shares no code with mmjax.weights)."""

import jax
import numpy as np
from clip_names import linear, norm

OFFICIAL = {
    "vision": "image_encoder", "patch": "patch_embed.proj", "layers": "blocks", "norm": "norm",
    "neck": ("neck.0", "neck.1", "neck.2", "neck.3"),
    "frequencies": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "points": "point_embeddings",
    "mask": tuple(f"mask_downscaling.{n}" for n in (0, 1, 3, 4, 6)),
    "final": "norm_final_attn", "up": ("output_upscaling.0", "output_upscaling.1", "output_upscaling.3"),
    "head": ("layers.0", "layers.1", "layers.2"),
}  # fmt: skip
HF = {
    "vision": "vision_encoder", "patch": "patch_embed.projection", "layers": "layers", "norm": "layer_norm",
    "neck": ("neck.conv1", "neck.layer_norm1", "neck.conv2", "neck.layer_norm2"),
    "frequencies": "shared_image_embedding.positional_embedding", "points": "point_embed",
    "mask": tuple(f"mask_embed.{name}" for name in ("conv1", "layer_norm1", "conv2", "layer_norm2", "conv3")),
    "final": "layer_norm_final_attn", "up": ("upscale_conv1", "upscale_layer_norm", "upscale_conv2"),
    "head": ("proj_in", "layers.0", "proj_out"),
}  # fmt: skip


def conv(flat: dict, name: str, axes: tuple[int, ...] = (2, 3, 1, 0)) -> dict:
    """Of Conv2d; (2, 3, 0, 1) of ConvTranspose2d."""
    return {"kernel": flat[f"{name}.weight"].transpose(axes), "bias": flat[f"{name}.bias"]}


def stacked(trees: list) -> dict:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def vision(flat: dict, runs: list[list[int]], names: dict) -> dict:
    """runs: the numbers of the layers of each stack."""
    where = names["vision"]

    def layer(i: int) -> dict:
        name = f"{where}.{names['layers']}.{i}"
        kernels, biases = (np.split(flat[f"{name}.attn.qkv.{kind}"], 3) for kind in ("weight", "bias"))
        qkv = zip(("query", "key", "value"), kernels, biases, strict=True)
        return {
            "norm1": norm(flat, f"{name}.{names['norm']}1"),
            "attention": {
                **{our: {"kernel": k.T, "bias": b} for our, k, b in qkv},
                "out": linear(flat, f"{name}.attn.proj"),
                "rel_pos_h": flat[f"{name}.attn.rel_pos_h"],
                "rel_pos_w": flat[f"{name}.attn.rel_pos_w"],
            },
            "norm2": norm(flat, f"{name}.{names['norm']}2"),
            "mlp": {"up": linear(flat, f"{name}.mlp.lin1"), "down": linear(flat, f"{name}.mlp.lin2")},
        }

    first, norm1, second, norm2 = (f"{where}.{part}" for part in names["neck"])
    return {
        "patch_embed": conv(flat, f"{where}.{names['patch']}"),
        "pos_embed": flat[f"{where}.pos_embed"][0],
        **{f"run{i}": {"layers": stacked([layer(n) for n in run])} for i, run in enumerate(runs)},
        "neck1": {"kernel": flat[f"{first}.weight"][:, :, 0, 0].T},
        "neck_norm1": norm(flat, norm1),
        "neck_conv2": {"kernel": flat[f"{second}.weight"].transpose(2, 3, 1, 0)},
        "neck_norm2": norm(flat, norm2),
    }


def prompt(flat: dict, names: dict) -> dict:
    where = "prompt_encoder"
    conv1, norm1, conv2, norm2, conv3 = (f"{where}.{part}" for part in names["mask"])
    return {
        "frequencies": flat.get(names["frequencies"], np.zeros((2, 8), np.float32)),  # of gradients there are none
        "point_embed": np.concatenate([flat[f"{where}.{names['points']}.{i}.weight"] for i in range(4)]),
        "not_a_point": flat[f"{where}.not_a_point_embed.weight"][0],
        "no_mask": flat[f"{where}.no_mask_embed.weight"][0],
        "mask_embed": {
            "conv1": conv(flat, conv1), "norm1": norm(flat, norm1), "conv2": conv(flat, conv2),
            "norm2": norm(flat, norm2),
            "conv3": {"kernel": flat[f"{conv3}.weight"][:, :, 0, 0].T, "bias": flat[f"{conv3}.bias"]},
        },
    }  # fmt: skip


def decoder(flat: dict, names: dict) -> dict:
    where = "mask_decoder"

    def attention(name: str) -> dict:
        ours = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        return {our: linear(flat, f"{where}.transformer.{name}.{their}") for our, their in ours.items()}

    def block(i: int) -> dict:
        name = f"{where}.transformer.layers.{i}"
        return {
            "self_attention": attention(f"layers.{i}.self_attn"),
            "token_to_image": attention(f"layers.{i}.cross_attn_token_to_image"),
            "image_to_token": attention(f"layers.{i}.cross_attn_image_to_token"),
            **{f"norm{n}": norm(flat, f"{name}.{names['norm']}{n}") for n in range(1, 5)},
            "mlp": {"up": linear(flat, f"{name}.mlp.lin1"), "down": linear(flat, f"{name}.mlp.lin2")},
        }

    def head(name: str) -> dict:
        ours = ("in_projection", "middle", "out_projection")
        return {our: linear(flat, f"{where}.{name}.{part}") for our, part in zip(ours, names["head"], strict=True)}

    up1, up_norm, up2 = (f"{where}.{part}" for part in names["up"])
    return {
        "iou_token": flat[f"{where}.iou_token.weight"],
        "mask_tokens": flat[f"{where}.mask_tokens.weight"],
        "block0": block(0),
        "block1": block(1),
        "final_attention": attention("final_attn_token_to_image"),
        "norm": norm(flat, f"{where}.transformer.{names['final']}"),
        "up1": conv(flat, up1, (2, 3, 0, 1)),
        "up_norm": norm(flat, up_norm),
        "up2": conv(flat, up2, (2, 3, 0, 1)),
        "mask_heads": stacked([head(f"output_hypernetworks_mlps.{j}") for j in range(4)]),
        "iou_head": head("iou_prediction_head"),
    }


def tree(flat: dict, runs: list[list[int]], names: dict) -> dict:
    return {"vision": vision(flat, runs, names), "prompt": prompt(flat, names), "decoder": decoder(flat, names)}
