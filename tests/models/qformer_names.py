"""The weights of LAVIS's Blip2Qformer as our tree, name by name (shares no code with mmjax.weights)."""

import jax
import numpy as np
from clip_names import linear, norm, stack


def _vision_layer(flat: dict, name: str) -> dict:
    kernels = np.split(flat[f"{name}.self_attn.qkv.weight"], 3)
    biases = np.split(flat[f"{name}.self_attn.qkv.bias"], 3)
    names = ("query", "key", "value")
    inner = {our: {"kernel": k.T, "bias": b} for our, k, b in zip(names, kernels, biases, strict=True)}
    return {
        "norm1": norm(flat, f"{name}.layer_norm1"),
        "attention": inner | {"out": linear(flat, f"{name}.self_attn.projection")},
        "norm2": norm(flat, f"{name}.layer_norm2"),
        "mlp": {"up": linear(flat, f"{name}.mlp.fc1"), "down": linear(flat, f"{name}.mlp.fc2")},
    }


def vision(flat: dict, prefix: str, last: str) -> dict:
    return {
        "patch_embed": {
            "kernel": flat[f"{prefix}embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0),
            "bias": flat[f"{prefix}embeddings.patch_embedding.bias"],
        },
        "class_embed": flat[f"{prefix}embeddings.class_embedding"][0, 0],
        "pos_embed": flat[f"{prefix}embeddings.position_embedding"][0],
        "layers": stack(flat, f"{prefix}encoder.layers", _vision_layer),
        "norm": norm(flat, last),
    }


def _attention(flat: dict, name: str, inner: str) -> dict:
    parts = {part: linear(flat, f"{name}.{inner}.{part}") for part in ("query", "key", "value")}
    return parts | {"out": linear(flat, f"{name}.output.dense")}


def block(flat: dict, name: str, inner: str) -> dict:
    """inner: what holds query, key and value: "self" in LAVIS, "attention" in transformers."""
    mlp = lambda up, down: {"up": linear(flat, f"{name}.{up}.dense"), "down": linear(flat, f"{name}.{down}.dense")}  # noqa: E731
    out = {
        "attention": _attention(flat, f"{name}.attention", inner),
        "norm1": norm(flat, f"{name}.attention.output.LayerNorm"),
        "query_mlp": mlp("intermediate_query", "output_query"),
        "query_norm": norm(flat, f"{name}.output_query.LayerNorm"),
    }
    if f"{name}.intermediate.dense.weight" in flat:
        out |= {"text_mlp": mlp("intermediate", "output"), "text_norm": norm(flat, f"{name}.output.LayerNorm")}
    if f"{name}.crossattention.output.dense.weight" in flat:
        cross = f"{name}.crossattention"
        out |= {"cross": _attention(flat, cross, inner), "cross_norm": norm(flat, f"{cross}.output.LayerNorm")}
    return out


def blocks(flat: dict, prefix: str, inner: str, depth: int, every: int) -> dict:
    """Periods of `every` blocks, and the blocks after the last whole one."""
    made = [block(flat, f"{prefix}.{i}", inner) for i in range(depth)]
    whole = depth - depth % every
    stacked = lambda i: jax.tree.map(lambda *x: np.stack(x), *made[i:whole:every])  # noqa: E731
    out = {"layers": {f"block{i}": stacked(i) for i in range(every)}}
    return out | ({"rest": {f"block{i}": x for i, x in enumerate(made[whole:])}} if depth > whole else {})


def from_lavis(flat: dict, depth: int, every: int) -> dict:
    """All but the tower's own weights where there are none, as among gradients."""
    bert, head = "Qformer.bert", "Qformer.cls.predictions"
    embeddings = f"{bert}.embeddings"
    tower = vision(flat, "visual_encoder.", "ln_vision") if "visual_encoder.embeddings.class_embedding" in flat else {}
    return {
        "vision": {**tower, "norm": norm(flat, "ln_vision")},
        "query_tokens": flat["query_tokens"][0],
        "embed": {"embedding": flat[f"{embeddings}.word_embeddings.weight"]},
        "pos_embed": flat[f"{embeddings}.position_embeddings.weight"],
        "qformer": {
            "norm": norm(flat, f"{embeddings}.LayerNorm"),
            **blocks(flat, f"{bert}.encoder.layer", "self", depth, every),
        },
        "vision_projection": linear(flat, "vision_proj"),
        "text_projection": linear(flat, "text_proj"),
        "itm_head": linear(flat, "itm_head"),
        "temperature": flat["temp"],
        "captioner": {
            "transform": linear(flat, f"{head}.transform.dense"),
            "norm": norm(flat, f"{head}.transform.LayerNorm"),
            "bias": flat[f"{head}.bias"],
        },
    }
