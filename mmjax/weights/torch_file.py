"""Tensors of a file that torch.save or torch.jit.save wrote, without torch.

Both are zip archives: data.pkl is a pickle whose tensors point at storages, which lie as raw bytes in data/<key>. The
pickle may name any Python object; here it gets those below and nothing else, so a file from a stranger runs no code.
"""

import collections
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip

DAMAGE = (  # what bytes that are no pickle of tensors can raise
    ValueError, TypeError, AttributeError, LookupError, StopIteration, EOFError, pickle.UnpicklingError,
    zipfile.BadZipFile, zlib.error, NotImplementedError,
)  # fmt: skip


class ScriptModule:
    """Any class of a TorchScript archive, or argparse's; the unpickler sets its attributes."""


def read(path: Path) -> dict[str, np.ndarray]:
    """{"visual.proj": array, ...}; attributes of TorchScript modules joined by dots."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip archive of PyTorch (>= 1.6); save its tensors as .safetensors instead")
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("it was saved on a big-endian machine")
            with archive.open(f"{root}data.pkl") as file:
                value = _Unpickler(file, archive, root).load()
    except DAMAGE as error:
        message = f"{path} is damaged, or holds more than tensors ({type(error).__name__}: {error})"
        raise ValueError(f"{message}; save its tensors as .safetensors instead") from error
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):  # a training checkpoint of open_clip
        value = {name.removeprefix("module."): tensor for name, tensor in value["state_dict"].items()}
    return dict(_tensors(value, ""))


def _tensors(value: Any, prefix: str):
    if isinstance(value, np.ndarray):
        yield prefix.removesuffix("."), value
    elif isinstance(value, ScriptModule | dict):
        for name, part in (value if isinstance(value, dict) else vars(value)).items():
            yield from _tensors(part, f"{prefix}{name}.")


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, last, *size, *stride)) < 0 or last >= max(len(storage), 1):
        raise ValueError("a tensor reaches out of its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.archive, self.root = archive, root

    def persistent_load(self, pid: tuple) -> np.ndarray:  # ("storage", type, key, device, number of elements)
        return np.frombuffer(self.archive.read(f"{self.root}data/{pid[2]}"), pid[1])

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.startswith("__torch__"):
            return ScriptModule
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): ScriptModule,  # the settings of a training, kept beside its weights
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")
        return known[module, name]
