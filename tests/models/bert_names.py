"""The weights of BERT's goldens as our tree, name by name (shares no code with mmjax.weights)."""

from clip_names import linear, norm, stack


def _layer(flat: dict, name: str) -> dict:
    self, output = f"{name}.attention.self", f"{name}.attention.output"
    attention = {part: linear(flat, f"{self}.{part}") for part in ("query", "key", "value")}
    return {
        "attention": {**attention, "out": linear(flat, f"{output}.dense")},
        "norm1": norm(flat, f"{output}.LayerNorm"),
        "mlp": {"up": linear(flat, f"{name}.intermediate.dense"), "down": linear(flat, f"{name}.output.dense")},
        "norm2": norm(flat, f"{name}.output.LayerNorm"),
    }


def from_hf(flat: dict) -> dict:
    """BertForPreTraining."""
    embeddings, head = "bert.embeddings", "cls.predictions"
    return {
        "bert": {
            "embed": {"embedding": flat[f"{embeddings}.word_embeddings.weight"]},
            "pos_embed": flat[f"{embeddings}.position_embeddings.weight"],
            "type_embed": flat[f"{embeddings}.token_type_embeddings.weight"],
            "norm": norm(flat, f"{embeddings}.LayerNorm"),
            "layers": stack(flat, "bert.encoder.layer", _layer),
            "pooler": linear(flat, "bert.pooler.dense"),
        },
        "mlm": {
            "transform": linear(flat, f"{head}.transform.dense"),
            "norm": norm(flat, f"{head}.transform.LayerNorm"),
            "bias": flat[f"{head}.bias"],
        },
        "nsp": linear(flat, "cls.seq_relationship"),
    }
