"""Weight files as {name: array}: safetensors, whole or in shards, and PyTorch's own; written in safetensors only."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from mmjax.weights import torch_file

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder in the layout of the hub."""
    whole, index, old = (
        folder / name for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if whole.exists():
        return read(whole)
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f'{index} must hold {{"weight_map": {{tensor: file}}}}')
        tensors = {}
        for name in sorted(set(shards.values()), key=str):
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{index} must name files of its own folder, got {name!r}")
            if not (folder / name).exists():
                raise FileNotFoundError(f"{index} names {name}, which is not in the folder; copy that file too")
            tensors |= read(folder / name)
        return tensors
    if old.exists():
        return read(old)
    raise FileNotFoundError(f"no weights in {folder}: expected {whole.name}, {index.name} or {old.name}")


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file; of a safetensors file as memory maps, which read what is looked at."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix != ".safetensors":
        return torch_file.read(path)
    try:
        with safetensors.safe_open(path, framework="np"):  # checks the header against the file's size
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}); copy it again") from error
    with path.open("rb") as file:
        start = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + start) if any(_bytes(entry) for entry in header.values()) else b""
    return {name: _view(path, name, data, entry) for name, entry in header.items()}


def _bytes(entry: dict) -> int:
    begin, end = entry["data_offsets"]
    return end - begin


def _view(path: Path, name: str, data: np.ndarray, entry: dict) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{path}: {name} holds {entry['dtype']}, supported are {', '.join(DTYPES)}")
    begin, end = entry["data_offsets"]
    return np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Either the whole file or, where writing fails, what was there before."""
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(dict(tensors), half, metadata={"format": "pt"})  # transformers refuses files without it
        os.replace(half, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        half.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of UTF-8 or of JSON
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping) -> None:
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        half.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
