"""Weights of the Transformer's goldens as our tree, name by name (shares no code with mmjax.weights)."""

import numpy as np
from clip_names import linear, norm, stack


def _torch_attention(flat: dict, name: str) -> dict:
    kernels, biases = np.split(flat[f"{name}.in_proj_weight"], 3), np.split(flat[f"{name}.in_proj_bias"], 3)
    parts = zip(("query", "key", "value"), kernels, biases, strict=True)
    return {n: {"kernel": k.T, "bias": b} for n, k, b in parts} | {"out": linear(flat, f"{name}.out_proj")}


def _torch_layer(flat: dict, name: str) -> dict:
    decoder = f"{name}.norm3.weight" in flat
    return {
        "attention": _torch_attention(flat, f"{name}.self_attn"),
        **({"cross": _torch_attention(flat, f"{name}.multihead_attn")} if decoder else {}),
        "mlp": {"up": linear(flat, f"{name}.linear1"), "down": linear(flat, f"{name}.linear2")},
        **{f"norm{i}": norm(flat, f"{name}.norm{i}") for i in (1, 2, 3)[: 2 + decoder]},
    }


def from_torch(flat: dict) -> dict:
    """The module `Whole` of make_transformer.py."""

    def side(name: str) -> dict:
        last = {"norm": norm(flat, f"{name}.norm")} if f"{name}.norm.weight" in flat else {}
        return {"layers": stack(flat, f"{name}.layers", _torch_layer), **last}

    return {"embed": {"embedding": flat["table"]}, "encoder": side("encoder"), "decoder": side("decoder")}


def _marian_layer(flat: dict, name: str) -> dict:
    names = {"query": "q", "key": "k", "value": "v", "out": "out"}
    attention = lambda part: {our: linear(flat, f"{name}.{part}.{their}_proj") for our, their in names.items()}  # noqa: E731
    norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    norms = [one for one in norms if f"{name}.{one}.weight" in flat]
    return {
        "attention": attention("self_attn"),
        **({"cross": attention("encoder_attn")} if len(norms) == 3 else {}),
        "mlp": {"up": linear(flat, f"{name}.fc1"), "down": linear(flat, f"{name}.fc2")},
        **{f"norm{i}": norm(flat, f"{name}.{one}") for i, one in enumerate(norms, start=1)},
    }


def from_marian(flat: dict) -> dict:
    """MarianMTModel, without the bias of its logits, which is no parameter there."""
    return {
        "embed": {"embedding": flat["model.shared.weight"]},
        "encoder": {"layers": stack(flat, "model.encoder.layers", _marian_layer)},
        "decoder": {"layers": stack(flat, "model.decoder.layers", _marian_layer)},
    }
