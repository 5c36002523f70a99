"""The container GGUF: named values, then named tensors of numbers in blocks. Format: ggml's docs/gguf.md, version 3.

    "GGUF" version, counts | name, type, value ... | name, shape, type, offset ... | padding | blocks ...

The header is read here, in a fifth of a second where the package takes six (a vocabulary has 150,000 strings); what the
blocks mean is the business of the package (extra [gguf]).
"""

import dataclasses
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # for struct
STRING, ARRAY = 8, 9
ALIGNMENT = 32  # of the blocks, where the file names none


@dataclasses.dataclass(frozen=True)
class Tensor:
    """As the engine takes it: rows leave their blocks when they are asked for."""

    blocks: np.ndarray  # [... bytes] uint8, a memory map
    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    dtype = np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        from gguf import quants

        if self.ndim == 1:  # its only axis runs through the blocks
            return quants.dequantize(self.blocks, self.kind)[rows]
        return quants.dequantize(self.blocks[rows], self.kind)


@dataclasses.dataclass(frozen=True)
class File:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read(path: str | Path) -> File:
    """Everything but the numbers, which stay on disk until they are asked for."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is a folder; a GGUF is one local file")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
        header = _Header(path, file, path.stat().st_size)
        version = header.number("I")
        if version not in VERSIONS:
            order = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise ValueError(
                f"{path} is a GGUF in {order}, supported are versions 2 and 3, little-endian; convert it again"
            )
        tensor_count, value_count = header.number("Q"), header.number("Q")
        metadata = {header.string(): header.value(header.number("I")) for _ in range(value_count)}
        entries = [header.entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"{path} is damaged: its general.alignment is {alignment!r}, expected a positive number")
        start = -(-file.tell() // alignment) * alignment
    return File(path, metadata, {entry.name: _tensor(path, entry, start) for entry in entries})


@dataclasses.dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class _Header:
    """Reads front to back, and never past the end."""

    path: Path
    file: BinaryIO
    size: int

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError(
                f"{self.path} is cut short or damaged: its header does not end by {self.size} bytes; copy it again"
            )
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind in NUMBERS:
                kind = np.dtype(NUMBERS[kind]).newbyteorder("<")
                return np.frombuffer(self.take(count * kind.itemsize), kind).tolist()
            return [self.value(kind) for _ in range(count)]
        if kind not in NUMBERS:
            raise ValueError(f"{self.path} is damaged: its header holds a value of type {kind}, the last known is 12")
        return self.number(NUMBERS[kind])

    def entry(self) -> _Entry:
        name, rank = self.string(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(rank))[::-1]  # the file says the fastest axis first
        return _Entry(name, shape, self.number("I"), self.number("Q"))


def _tensor(path: Path, entry: _Entry, start: int) -> Tensor:
    """Its blocks as a memory map, after all that can be wrong with them."""
    kind, elements, count = _blocks(path, entry)
    if 0 in (entry.shape or (0,)) or entry.shape[-1] % elements:
        raise ValueError(f"{path}: {entry.name} has shape {entry.shape}, but {kind.name} packs {elements} at a time")
    shape = (*entry.shape[:-1], entry.shape[-1] // elements * count)
    begin = start + entry.offset
    end, size = begin + math.prod(shape), path.stat().st_size
    if end > size:
        raise ValueError(f"{path} is cut short: {entry.name} ends at byte {end}, but the file at {size}; copy it again")
    return Tensor(np.memmap(path, np.uint8, "r", begin, shape), kind, entry.shape)


def _blocks(path: Path, entry: _Entry) -> tuple[Any, int, int]:
    """Type of a tensor's blocks, and how many elements and bytes one has."""
    try:
        import gguf
    except ImportError as error:
        raise ValueError(f"{path} needs the gguf package to be read: pip install 'mmjax[gguf]'") from error
    known = {kind.value: kind for kind in gguf.GGMLQuantizationType}
    kind = known.get(entry.kind)
    name = kind.name if kind else f"number {entry.kind}"
    try:
        elements, count = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, count), np.uint8), kind)
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: {entry.name} is stored as type {name}, which this gguf package cannot read"
        ) from error
    return kind, elements, count
