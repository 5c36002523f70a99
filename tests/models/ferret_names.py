"""The weights of apple/ml-ferret's samplers as our trees, name by name (shares no code with mmjax.weights)."""

import numpy as np
from clip_names import linear


def sampler(flat: dict, blocks: int = 2) -> dict:
    tree = {"flatten": linear(flat, "flatten_projector"), "out": linear(flat, "dim_projector")}
    for i in range(blocks):
        conv = f"agg_projector_list.{i}.net.0"
        tree[f"block{i}"] = {
            "difference": linear(flat, f"diff_projector_list.{i}"),
            "aggregate": {"kernel": np.asarray(flat[f"{conv}.weight"])[..., 0].T, "bias": flat[f"{conv}.bias"]},
            "norm": {
                "scale": flat[f"agg_projector_list.{i}.norm.weight"],
                "bias": flat[f"agg_projector_list.{i}.norm.bias"],
            },
        }
    return tree
