"""Folders in the layout of the Hugging Face hub: config.json beside the weights. Local only; nothing is downloaded.

Each family of models is a module of this package, found by `model_type` in config.json. It holds

    MODEL      the Linen class, or a tuple of classes where one family has several heads
    FORMAT     what messages call it
    RULES      the table of rules, or a function from the model to it
    IGNORED    patterns of tensors that are no weights, or a function from the model to them
    from_config(config) -> model, to_config(model) -> dict, abstract(model) -> the variables' shapes

and, only where it applies,

    renamed(model, tensors) -> tensors     the current names for those of older files
    fitted(model, tensors) -> model        what only the tensors tell, by their current names
    written(model, tensors) -> tensors     what files have, where it is more than the rules make
    COLLECTIONS                            names of what is written besides "params"; rules begin with the name
    to_preprocessor(model), resize(...)    families with images; their from_config takes the preprocessor's fields too
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.weights import (
    bert,
    blip2,
    clip,
    dinov2,
    encodec,
    engine,
    files,
    gguf,
    gpt2,
    llama,
    llava,
    mamba,
    mamba2,
    marian,
    mimi,
    open_clip,
    sam,
    siglip,
    vit,
)
from mmjax.weights.fields import Fields

FAMILIES: dict[str, ModuleType] = {
    "clip": clip,
    "siglip": siglip,
    "vit": vit,
    "dinov2": dinov2,
    "dinov2_with_registers": dinov2,
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "mistral": llama,
    "marian": marian,
    "mamba": mamba,
    "mamba2": mamba2,
    "sam": sam,
    "encodec": encodec,
    "mimi": mimi,
    "llava": llava,
    "blip-2": blip2,
    "blip_2_qformer": blip2,
}  # model_type of config.json
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
    family = config.one_of("model_type", FAMILIES, mamba.kind_of(config.values))
    model = family.from_config(config, *_preprocessor(family, folder))
    if image_size is not None and not _has_images(family):
        raise ValueError(f"{folder} holds {family.FORMAT}, which reads no images; leave image_size out")
    tensors = files.read_folder(folder)
    tensors = family.renamed(model, tensors) if hasattr(family, "renamed") else tensors
    model = family.fitted(model, tensors) if hasattr(family, "fitted") else model
    return engine.load_model(
        model, family.abstract, _of(family.RULES, model), tensors,
        format=f"{family.FORMAT} of its {CONFIG}", source=folder, dtype=dtype, shardings=shardings,
        ignored=_of(family.IGNORED, model),
        resize=None if image_size is None else lambda *loaded: family.resize(*loaded, image_size, antialias=False),
    )  # fmt: skip


def _has_images(family: ModuleType) -> bool:
    return hasattr(family, "to_preprocessor")


def _preprocessor(family: ModuleType, folder: Path) -> tuple[Fields, ...]:
    """What from_config takes besides config.json."""
    path = folder / PREPROCESSOR
    return (Fields(files.read_json(path) if path.exists() else {}, str(path)),) if _has_images(family) else ()


def _of(table: Any, model: nn.Module) -> Any:
    return table(model) if callable(table) else table


def _models(family: ModuleType) -> tuple[type, ...]:
    return family.MODEL if isinstance(family.MODEL, tuple) else (family.MODEL,)


def save_hf(folder: str | Path, model: nn.Module, variables: Mapping) -> None:
    """What the original library's from_pretrained reads. Parameters keep their dtype; each file is replaced whole."""
    family = next((family for family in FAMILIES.values() if type(model) in _models(family)), None)
    if family is None:
        known = ", ".join(one.__name__ for family in FAMILIES.values() for one in _models(family))
        raise ValueError(f"save_hf cannot write a {type(model).__name__}; it writes {known}")
    folder = Path(folder)
    rules = _of(family.RULES, model)
    kept = {name: variables[name] for name in ("params", *getattr(family, "COLLECTIONS", ()))}
    config, tensors = family.to_config(model), engine.save(rules, engine.joined(kept), format=family.FORMAT)
    tensors = family.written(model, tensors) if hasattr(family, "written") else tensors
    dtype = jnp.result_type(*{tensor.dtype for tensor in tensors.values()})
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, tensors)
    if _has_images(family):
        files.write_json(folder / PREPROCESSOR, family.to_preprocessor(model))
    files.write_json(folder / CONFIG, {**config, "dtype": np.dtype(dtype).name})


def convert(source: str | Path, target: str | Path, *, to: str = "transformers") -> None:
    """Writes the checkpoint `source` as folder `target`, in the format `to`: transformers or open_clip.

    source: a folder with config.json, openai/CLIP's or open_clip's file or folder, or a GGUF file. Every number keeps
    its bits; quantised ones become the float32 that they stand for.
    """
    writers = {"transformers": save_hf, "open_clip": open_clip.save_openai}
    if to not in writers:
        raise ValueError(f"cannot convert to {to!r}, only to {' or '.join(writers)}")
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if source.suffix == ".gguf":
        model, variables = gguf.load_gguf(source)
    elif (source / CONFIG).exists():
        model, variables = load_hf(source, dtype=None)
    elif source.is_dir() and not (source / open_clip.WEIGHTS).exists():
        raise FileNotFoundError(f"{source} holds neither {CONFIG} nor {open_clip.WEIGHTS}")
    else:
        model, variables = open_clip.load_openai(source, dtype=None)
    if to == "open_clip" and not isinstance(model, clip.MODEL):
        raise ValueError(f"only a CLIP has a form of open_clip; {source} holds a {type(model).__name__}")
    writers[to](target, model, variables)
