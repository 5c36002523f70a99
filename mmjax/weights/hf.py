"""Folders in the layout of the Hugging Face hub: config.json beside the weights. Local only; nothing is downloaded."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.weights import clip, engine, files, open_clip
from mmjax.weights.fields import Fields

FAMILIES: dict[str, ModuleType] = {"clip": clip}  # model_type of config.json
CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"


def load_hf(
    folder: str | Path, *, dtype: Any = jnp.float32, image_size: int | None = None,
    shardings: engine.Shardings | None = None,
) -> tuple[nn.Module, dict]:  # fmt: skip
    """The model of a local folder and its variables.

    dtype: of all parameters; None keeps the file's. image_size: resizes the positions, as transformers does with
    interpolate_pos_encoding=True. shardings: from the variables' shapes, where each lies; each device is given its
    part as it is read, and no process holds more than its own:

        load_hf(folder, shardings=functools.partial(rules.shardings, mesh, rules.DEFAULT))
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; load_hf reads a local folder with {CONFIG} and {WEIGHTS}")
    config = Fields(files.read_json(folder / CONFIG), str(folder / CONFIG))
    family = config.one_of("model_type", FAMILIES, "missing")
    preprocessor = folder / PREPROCESSOR
    values = files.read_json(preprocessor) if preprocessor.exists() else {}
    model = family.from_config(config, Fields(values, str(preprocessor)))
    return engine.load_model(
        model, family.abstract, family.RULES, files.read_folder(folder), format=f"{family.FORMAT} of its {CONFIG}",
        source=folder, dtype=dtype, shardings=shardings, ignored=family.IGNORED,
        resize=None if image_size is None else lambda *loaded: family.resize(*loaded, image_size, antialias=False),
    )  # fmt: skip


def save_hf(folder: str | Path, model: nn.Module, variables: Mapping) -> None:
    """What the original library's from_pretrained reads. Parameters keep their dtype; each file is replaced whole."""
    family = next((family for family in FAMILIES.values() if isinstance(model, family.MODEL)), None)
    if family is None:
        known = ", ".join(family.MODEL.__name__ for family in FAMILIES.values())
        raise ValueError(f"save_hf cannot write a {type(model).__name__}; it writes {known}")
    folder = Path(folder)
    config, tensors = family.to_config(model), engine.save(family.RULES, variables["params"], format=family.FORMAT)
    dtype = jnp.result_type(*{tensor.dtype for tensor in tensors.values()})
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, tensors)
    files.write_json(folder / PREPROCESSOR, family.to_preprocessor(model))
    files.write_json(folder / CONFIG, {**config, "dtype": np.dtype(dtype).name})


def convert(source: str | Path, target: str | Path, *, to: str = "transformers") -> None:
    """Writes the checkpoint `source` as folder `target`, in the format `to`: transformers or open_clip.

    source: a folder with config.json, or openai/CLIP's or open_clip's file or folder. Every number keeps its bits.
    """
    writers = {"transformers": save_hf, "open_clip": open_clip.save_openai}
    if to not in writers:
        raise ValueError(f"cannot convert to {to!r}, only to {' or '.join(writers)}")
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    load = load_hf if (source / CONFIG).exists() else open_clip.load_openai
    if source.is_dir() and load is not load_hf and not (source / open_clip.WEIGHTS).exists():
        raise FileNotFoundError(f"{source} holds neither {CONFIG} nor {open_clip.WEIGHTS}")
    writers[to](target, *load(source, dtype=None))
