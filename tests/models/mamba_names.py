"""Weights of the Mamba goldens as our trees, name by name (shares no code with mmjax.weights)."""

import clip_names
import numpy as np


def _layer(flat: dict, name: str) -> dict:
    mixer = f"{name}.mixer"
    up, gate = np.split(flat[f"{mixer}.in_proj.weight"], 2)
    return {
        "norm": {"scale": flat[f"{name}.norm.weight"]},
        "mixer": {
            "up": {"kernel": up.T},
            "gate": {"kernel": gate.T},
            "conv": {"kernel": flat[f"{mixer}.conv1d.weight"][:, 0].T, "bias": flat[f"{mixer}.conv1d.bias"]},
            "select": {"kernel": flat[f"{mixer}.x_proj.weight"].T},
            "delta": {"kernel": flat[f"{mixer}.dt_proj.weight"].T, "bias": flat[f"{mixer}.dt_proj.bias"]},
            "A_log": flat[f"{mixer}.A_log"].T,
            "D": flat[f"{mixer}.D"],
            "down": {"kernel": flat[f"{mixer}.out_proj.weight"].T},
        },
    }


def _layer2(flat: dict, name: str) -> dict:
    mixer = f"{name}.mixer"
    inner, heads = len(flat[f"{mixer}.norm.weight"]), len(flat[f"{mixer}.D"])
    kernel = flat[f"{mixer}.in_proj.weight"].T
    taps, bias = flat[f"{mixer}.conv1d.weight"][:, 0].T, flat[f"{mixer}.conv1d.bias"]
    assert kernel.shape[1] == inner + len(bias) + heads
    return {
        "norm": {"scale": flat[f"{name}.norm.weight"]},
        "mixer": {
            "gate": {"kernel": kernel[:, :inner]},
            "up": {"kernel": kernel[:, inner : 2 * inner]},
            "select": {"kernel": kernel[:, 2 * inner :]},
            "conv": {"kernel": taps[:, :inner], "bias": bias[:inner]},
            "conv_select": {"kernel": taps[:, inner:], "bias": bias[inner:]},
            "delta_bias": flat[f"{mixer}.dt_bias"],
            "A_log": flat[f"{mixer}.A_log"],
            "D": flat[f"{mixer}.D"],
            "norm": {"scale": flat[f"{mixer}.norm.weight"]},
            "down": {"kernel": flat[f"{mixer}.out_proj.weight"].T},
        },
    }


def _tree(flat: dict, layer) -> dict:
    head = {"head": {"kernel": flat["lm_head.weight"].T}} if "lm_head.weight" in flat else {}
    return {
        "embed": {"embedding": flat["backbone.embeddings.weight"]},
        "layers": clip_names.stack(flat, "backbone.layers", layer),
        "norm": {"scale": flat["backbone.norm_f.weight"]},
        **head,
    }


def mamba(flat: dict) -> dict:
    return _tree(flat, _layer)


def mamba2(flat: dict) -> dict:
    return _tree(flat, _layer2)
