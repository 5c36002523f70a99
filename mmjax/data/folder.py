"""Your own pictures: a folder with image files and one file of captions, CSV or JSON lines.

    my_pictures/captions.jsonl   {"image": "cats/tom.jpg", "text": "a cat on a mat"}
    my_pictures/cats/tom.jpg     or captions.csv with the header image,text

    mmjax train experiments/clip_folder.py --set data.path=my_pictures

All pictures are read once, when training starts: a broken one ends the run in its first minute, not in its third hour.
They are kept in memory at 1.25 times `image_size` (64 px: 19 KB each); for more than fits, prepare a TFDS data set and
use `catalogue.TFDSData`. A tenth of the pictures, chosen by a hash of their names, is for validation.
"""

import concurrent.futures
import csv
import dataclasses
import difflib
import functools
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmjax.data import augment, pipeline
from mmjax.ops import images as image_ops
from mmjax.text import bpe, clip_bpe

ONE_WAY = re.compile(r"\b(left|right)\b", re.IGNORECASE)  # a caption that the mirrored picture would contradict
TRAINED_VOCABULARY = 4096


@dataclasses.dataclass(frozen=True)
class FolderData:
    """Captioned pictures of one folder (see `pipeline.Data`). Rows that share picture or caption share their label."""

    path: str = ""  # the folder
    captions: str = "captions.jsonl"  # in the folder: .jsonl, or .csv / .tsv with a header
    image_column: str = "image"  # holds file names, relative to the folder
    text_column: str = "text"
    image_size: int = 64  # pixels; shorter side resized, middle cut out
    text_length: int = 32  # T, ids in a row with start and end
    tokenizer: str = ""  # saved by text.bpe, or CLIP's (a .gz or a HF folder); "" = trained on the captions
    validation: float = 0.1  # share of the pictures
    augmentation: augment.Augment = augment.PHOTOGRAPHS

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        contents = self._contents()
        train = np.flatnonzero(~contents.validation)
        tokens = self.tokenize(contents.texts)
        may_flip = np.array([not ONE_WAY.search(text) for text in contents.texts])

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            draws = augment.take(augment.draw(self.augmentation, len(indices), rng), rows)
            chosen = train[indices[rows]]
            images = augment.render(
                contents.pictures[contents.picture[chosen]], draws, self.image_size, may_flip[chosen]
            )
            return {"images": images, **{k: v[chosen] for k, v in tokens.items()}, "label": contents.label[chosen]}

        return pipeline.Batches(len(train), batch_size, seed, rows, make)

    def pairs(self, split: str) -> pipeline.Pairs:
        """`train` or `validation`; a label's name is its first caption."""
        if split not in ("train", "validation"):
            raise ValueError(f"no split {split!r} of a folder; there are train and validation")
        contents = self._contents()
        chosen = np.flatnonzero(contents.validation == (split == "validation"))
        images = augment.plain(contents.pictures[contents.picture[chosen]], self.image_size)
        first = np.unique(contents.label, return_index=True)[1]
        names = tuple(contents.texts[row] for row in first)
        return pipeline.Pairs(images, [contents.texts[row] for row in chosen], contents.label[chosen], names)

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return self.vocabulary().rows(texts, self.text_length)

    def vocabulary(self) -> bpe.Tokenizer:
        """The tokenizer; its `vocab_size` is what a text tower needs to know."""
        if self.tokenizer:
            return read_tokenizer(self.tokenizer)
        return trained(tuple(self._contents().texts))

    def _contents(self) -> "Contents":
        columns = (self.image_column, self.text_column)
        return read_folder(self.path, self.captions, columns, self.image_size * 5 // 4, self.validation)


class Contents(NamedTuple):
    """A folder in memory: R rows of the caption file, N different pictures, S their side."""

    texts: list[str]  # R
    picture: np.ndarray  # [R] row of `pictures`
    label: np.ndarray  # [R] int32
    validation: np.ndarray  # [R] bool
    pictures: np.ndarray  # [N S S 3] uint8


@functools.lru_cache(maxsize=4)
def read_folder(path: str, captions: str, columns: tuple[str, str], side: int, validation: float) -> Contents:
    """Everything in a folder, checked."""
    folder = Path(path)
    if not path or not folder.is_dir():
        raise FileNotFoundError(
            f"data.path is {path!r}, which is no folder; give one with pictures and {captions}: --set data.path=FOLDER"
        )
    rows = read_captions(folder / captions, *columns)
    names = list(dict.fromkeys(name for _, name, _ in rows))
    if len(names) < 2:
        raise ValueError(
            f"{folder / captions} names {len(names)} pictures; at least 2 are needed, to train and to validate"
        )
    first = {name: number for number, name, _ in reversed(rows)}
    with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        pictures = np.stack(list(pool.map(lambda name: read_picture(folder, name, captions, first[name], side), names)))
    texts = [text for _, _, text in rows]
    place = {name: i for i, name in enumerate(names)}
    picture = np.array([place[name] for _, name, _ in rows])
    return Contents(texts, picture, shared_labels(picture, texts), by_hash(names, validation)[picture], pictures)


COLUMNS = "Set data.image_column and data.text_column"


def read_captions(path: Path, image_column: str, text_column: str, wanted: str = COLUMNS) -> list[tuple[int, str, str]]:
    """(line, picture's file name, caption) of each row of a .jsonl, .csv or .tsv file; errors add `wanted`."""
    text = read_utf8(path)
    records = jsonl_rows(path, text) if path.suffix in (".jsonl", ".json", ".ndjson") else csv_rows(path, text)
    rows = []
    for line, record in records:
        values = [field(path, line, record, column, wanted) for column in (image_column, text_column)]
        rows.append((line, *values))
    if not rows:
        raise ValueError(f"{path} holds no captions; one row per file is expected")
    return rows


def read_utf8(path: Path) -> str:
    """The text of a file, or where exactly it stops being UTF-8."""
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".jsonl", ".csv", ".tsv", ".json"))
        found = f"the folder has {', '.join(there)}: --set data.captions={there[0]}" if there else "the folder has none"
        raise FileNotFoundError(f"no captions at {path}; {found}")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}, byte {column} of the line: 0x{data[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8 (for Latin-1: iconv -f latin1 -t utf8)"
        ) from error


def jsonl_rows(
    path: Path, text: str, wanted: str = 'an object like {"image": ..., "text": ...}'
) -> list[tuple[int, dict[str, Any]]]:
    """Line number and object of each line; `wanted` is what an error says that lines are."""
    rows = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {line}, column {error.colno}: not JSON ({error.msg})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {line}: expected {wanted}, got {content!r}")
        rows.append((line, record))
    return rows


def csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [(reader.line_num, record) for record in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def field(path: Path, line: int, record: dict[str, Any], column: str, wanted: str = COLUMNS) -> str:
    """One value of a row: there, a string, and not empty."""
    if column not in record:
        columns = [name for name in record if name is not None]
        near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{path}, line {line}: no column {column!r}, the columns are {', '.join(map(repr, columns))}{hint} "
            + wanted
        )
    value = record[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}, line {line}: column {column!r} should hold a text, got {value!r}")
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{path}, line {line}: column {column!r} holds half of a surrogate pair (\\uD800 to \\uDFFF)")
    return value.strip()


def read_picture(folder: Path, name: str, captions: str, line: int, side: int) -> np.ndarray:
    """uint8 [side side 3], as ops/images.py's `shown` and `cover` say."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{folder / captions}, line {line}, names the picture {name}, but there is no {path}")
    try:
        with Image.open(path) as image:
            return np.asarray(image_ops.cover(image_ops.shown(image), side))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(
            f"{path} ({captions}, line {line}) can't be read as a picture: {error}; replace the file or delete the line"
        ) from error


def shared_labels(picture: np.ndarray, texts: list[str]) -> np.ndarray:
    """[R] int32: rows with the same picture or the same caption get the same label, and so do chains of such rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    caption = np.unique([text.lower() for text in texts], return_inverse=True)[1]
    count = picture.max() + 1
    # Pictures and captions are the nodes of a graph, rows its edges.
    edges = coo_array((np.ones(len(texts)), (picture, count + caption)), shape=(count + len(texts),) * 2)
    component = connected_components(edges, directed=False)[1][picture]
    return np.unique(component, return_inverse=True)[1].astype(np.int32)


def by_hash(names: list[str], share: float) -> np.ndarray:
    """[N] bool: the `share` of names with the lowest hashes, but at least one and not all."""
    order = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in names])
    chosen = np.zeros(len(names), bool)
    chosen[order[: min(max(1, round(share * len(names))), len(names) - 1)]] = True
    return chosen


@functools.lru_cache(maxsize=4)
def trained(texts: tuple[str, ...]) -> bpe.Tokenizer:
    return bpe.train(texts, TRAINED_VOCABULARY)


@functools.lru_cache(maxsize=4)
def read_tokenizer(path: str) -> bpe.Tokenizer:
    """A file that `text.bpe` saved, or CLIP's vocabulary: its .gz file, or a folder of transformers."""
    is_clip = path.endswith(".gz") or Path(path).is_dir()
    return clip_bpe.load(path) if is_clip else bpe.load(path)
