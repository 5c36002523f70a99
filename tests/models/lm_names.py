"""Weights of the GPT-2, GPT-1 and LLaMA goldens as our trees, name by name (shares no code with mmjax.weights)."""

import clip_names
import numpy as np


def _gpt_layer(flat: dict, name: str) -> dict:
    def linear(name: str) -> dict:  # [in, out], as ours
        return {"kernel": flat[f"{name}.weight"], "bias": flat[f"{name}.bias"]}

    fused = linear(f"{name}.attn.c_attn")
    kernels, biases = np.split(fused["kernel"], 3, axis=1), np.split(fused["bias"], 3)
    parts = {n: {"kernel": k, "bias": b} for n, k, b in zip(("query", "key", "value"), kernels, biases, strict=True)}
    return {
        "norm1": clip_names.norm(flat, f"{name}.ln_1"),
        "attention": {**parts, "out": linear(f"{name}.attn.c_proj")},
        "norm2": clip_names.norm(flat, f"{name}.ln_2"),
        "mlp": {"up": linear(f"{name}.mlp.c_fc"), "down": linear(f"{name}.mlp.c_proj")},
    }


def gpt2(flat: dict) -> dict:
    return {
        "embed": {"embedding": flat["transformer.wte.weight"]},
        "pos_embed": flat["transformer.wpe.weight"],
        "layers": clip_names.stack(flat, "transformer.h", _gpt_layer),
        "norm": clip_names.norm(flat, "transformer.ln_f"),
    }


def gpt1(flat: dict) -> dict:
    return {
        "embed": {"embedding": flat["transformer.tokens_embed.weight"]},
        "pos_embed": flat["transformer.positions_embed.weight"],
        "layers": clip_names.stack(flat, "transformer.h", _gpt_layer),
    }


def _llama_layer(flat: dict, name: str) -> dict:
    kernel = lambda part: {"kernel": flat[f"{name}.{part}_proj.weight"].T}  # noqa: E731
    attention = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {
        "norm1": {"scale": flat[f"{name}.input_layernorm.weight"]},
        "attention": {our: kernel(f"self_attn.{their}") for our, their in attention.items()},
        "norm2": {"scale": flat[f"{name}.post_attention_layernorm.weight"]},
        "mlp": {part: kernel(f"mlp.{part}") for part in ("gate", "up", "down")},
    }


def llama(flat: dict) -> dict:
    head = {"head": {"kernel": flat["lm_head.weight"].T}} if "lm_head.weight" in flat else {}
    return {
        "embed": {"embedding": flat["model.embed_tokens.weight"]},
        "layers": clip_names.stack(flat, "model.layers", _llama_layer),
        "norm": {"scale": flat["model.norm.weight"]},
        **head,
    }
