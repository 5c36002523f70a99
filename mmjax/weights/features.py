"""Adapters of a LLaVA with Mixture of Features, as tsb0601/MMVP keeps them: model.mm_projector and dino_mm_projector.

They lie in the file of the whole model, or in a file of adapters alone. Such an mm_projector.bin holds both, since it
was chosen by what names contain; who reads it by "all after mm_projector." puts DINO's adapter in CLIP's place. Here a
name has to begin right.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import features
from mmjax.nn.linear import Linear
from mmjax.weights import engine, files
from mmjax.weights.engine import Rule, linear

FORMAT = "MMVP's LLaVA with two projectors"
PREFIXES = {"clip_adapter": "model.mm_projector", "dino_adapter": "model.dino_mm_projector"}
IGNORED = (r"^(?!model\.(dino_)?mm_projector\.)",)  # the language model, CLIP


def rules(model: features.Interleaved) -> list[Rule]:
    adapter = model.adapter(name=None)
    found = []
    for ours, theirs in PREFIXES.items():
        if isinstance(adapter, features.MLPAdapter):  # 1 is the GELU
            found += linear(f"{ours}/up", f"{theirs}.0") + linear(f"{ours}/down", f"{theirs}.2")
        elif isinstance(adapter, Linear):
            found += linear(ours, theirs)
    return found


def load_mof(path: str | Path, *, dtype: Any = jnp.float32) -> tuple[features.Interleaved, dict]:
    """Both adapters from a folder of the hub or from one file (.safetensors, .bin, .pt); `linear` or `mlp2x_gelu`.

    dtype: of all parameters; None keeps the file's.
    """
    path = Path(path)
    tensors = files.read_folder(path) if path.is_dir() else files.read(path)
    model, width = _model(tensors, path)
    target = jax.eval_shape(
        model.init, jax.random.key(0), *[jax.ShapeDtypeStruct((1, 1, w), jnp.float32) for w in width]
    )
    params = engine.load(
        rules(model), tensors, target["params"], format=FORMAT, source=path, ignored=IGNORED, dtype=dtype
    )
    return model, {"params": params}


def save_mof(path: str | Path, model: features.Interleaved, variables: dict) -> None:
    """One .safetensors file of both adapters. Parameters keep their dtype."""
    files.write(Path(path), engine.save(rules(model), variables["params"], format=FORMAT))


def _model(tensors: dict[str, np.ndarray], path: Path) -> tuple[features.Interleaved, tuple[int, int]]:
    """The module, and the widths of both towers, by the adapters' shapes."""
    for kind, last in ((features.MLPAdapter, ".0"), (Linear, "")):
        names = [f"{prefix}{last}.weight" for prefix in PREFIXES.values()]
        if all(name in tensors and tensors[name].ndim == 2 for name in names):
            (width, clip), (_, dino) = (tensors[name].shape for name in names)
            return features.Interleaved(partial(kind, width)), (clip, dino)
    near = [name for name in tensors if "mm_projector" in name]
    raise ValueError(
        f"{path} is no {FORMAT}: expected model.mm_projector and model.dino_mm_projector, both with 0.weight or "
        f"weight, got {', '.join(near[: engine.SHOWN]) or 'neither'}"
    )
