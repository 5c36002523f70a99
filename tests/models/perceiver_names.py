"""The weights of open_flamingo's helpers.py and of query2labels as our trees."""

import jax
import numpy as np
from clip_names import linear, norm


def bare(flat: dict, name: str) -> dict:
    return {"kernel": flat[f"{name}.weight"].T}


def feed_forward(flat: dict, name: str) -> dict:
    return {"norm": norm(flat, f"{name}.0"), "up": bare(flat, f"{name}.1"), "down": bare(flat, f"{name}.3")}


def attention(flat: dict, name: str) -> dict:
    key, value = np.split(flat[f"{name}.to_kv.weight"], 2)
    inner = {"query": bare(flat, f"{name}.to_q"), "out": bare(flat, f"{name}.to_out")}
    return inner | {"key": {"kernel": key.T}, "value": {"kernel": value.T}}


def stacked(layers: list) -> dict:
    return jax.tree.map(lambda *x: np.stack(x), *layers)


def resampler(flat: dict, depth: int) -> dict:
    def layer(i: int) -> dict:
        return {
            "media_norm": norm(flat, f"layers.{i}.0.norm_media"),
            "latent_norm": norm(flat, f"layers.{i}.0.norm_latents"),
            "attention": attention(flat, f"layers.{i}.0"),
            "mlp": feed_forward(flat, f"layers.{i}.1"),
        }

    return {
        "latents": flat["latents"],
        "frame_embed": flat["frame_embs"],
        "media_embed": flat["media_time_embs"][:, 0],
        "layers": stacked([layer(i) for i in range(depth)]),
        "norm": norm(flat, "norm"),
    }


def gated(flat: dict) -> dict:
    return {
        "norm": norm(flat, "attn.norm"),
        "attention": attention(flat, "attn"),
        "attention_gate": flat["attn_gate"][0],
        "mlp": feed_forward(flat, "ff"),
        "mlp_gate": flat["ff_gate"][0],
    }


def labels(flat: dict) -> dict:
    def layer(name: str, inner: str, first: str, second: str) -> dict:
        kernels = np.split(flat[f"{name}.{inner}.in_proj_weight"], 3)
        biases = np.split(flat[f"{name}.{inner}.in_proj_bias"], 3)
        parts = zip(("query", "key", "value"), kernels, biases, strict=True)
        look = {our: {"kernel": kernel.T, "bias": bias} for our, kernel, bias in parts}
        return {
            "attention": look | {"out": linear(flat, f"{name}.{inner}.out_proj")},
            "norm1": norm(flat, f"{name}.{first}"),
            "mlp": {"up": linear(flat, f"{name}.linear1"), "down": linear(flat, f"{name}.linear2")},
            "norm2": norm(flat, f"{name}.{second}"),
        }

    encoder, decoder = "transformer.encoder.layers", "transformer.decoder.layers"
    return {
        "projection": {"kernel": flat["input_proj.weight"][:, :, 0, 0].T, "bias": flat["input_proj.bias"]},
        "labels": flat["query_embed.weight"],
        "encoder": {"layers": stacked([layer(f"{encoder}.0", "self_attn", "norm1", "norm2")])},
        "decoder": {"layers": stacked([layer(f"{decoder}.{i}", "multihead_attn", "norm2", "norm3") for i in range(2)])},
        "norm": norm(flat, "transformer.decoder.norm"),
        "kernel": flat["fc.W"][0],
        "bias": flat["fc.b"][0],
    }
