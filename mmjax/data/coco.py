"""Your own pictures with boxes and masks, in COCO's or RefCOCO's way of writing, as conversations about places.

    annotations.json   {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
                        "annotations": [{"image_id", "category_id", "bbox": [x, y, width, height],
                                         "segmentation": polygons or run lengths, "iscrowd": 0}]}
    or .jsonl          {"image": "cats/tom.jpg", "expression": "the cat on the mat", "box": [x0, y0, x1, y1]}
                       with "sentences": [...] for several, "bbox": [x, y, width, height], and "mask" as above

    file --read--> pictures with boxes and names --scene_turns.ask--> conversations --SceneQuestions.batch--> rows

    mmjax train experiments/shikra_coco.py --set data.path=my_pictures
    data=CocoData(path="my_pictures", annotations="annotations.json", form=scene_text.Numbers())

Boxes are in pixels of the picture, from the top left corner. A picture is put on a white square (Shikra's way), and
places are parts of that square. Segmentations and "mask" may be missing, or []; then, and where one fills no pixel, as
a thin polygon may, the mask is the box. The file and the headers of the pictures are checked when training starts, and
pixels read batch by batch: the set may be larger than memory.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmjax.data import coco_masks, folder, pipeline, scene_text, scene_turns
from mmjax.data.scene_questions import Example, SceneQuestions
from mmjax.data.scene_turns import Thing
from mmjax.ops import boxes as box_ops
from mmjax.ops import images as image_ops

SPLITS = ("train", "validation")
SLACK = 1.0  # pixels by which a box may be drawn over the edge; it is cut there
ARTICLES = ("the ", "a ", "an ")  # questions say "where is the {}?"
RESERVED = (*scene_text.SPECIAL, "<points>")


class Labelled(NamedTuple):
    """Something in a picture."""

    names: tuple[str, ...]  # a category; or the expressions that refer to it
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    segmentation: coco_masks.Segmentation | None
    crowd: bool  # many of them in one: nothing is asked about it
    where: str  # in the file, for errors

    def mask(self, width: int, height: int) -> np.ndarray:
        """bool [H W]; the box, without a segmentation and where it fills no pixel."""
        if self.segmentation is not None:
            try:
                mask = coco_masks.decode(self.segmentation, height, width)
            except ValueError as error:
                raise ValueError(f"{self.where}, its mask: {error}") from error
            if mask.any():
                return mask
        x0, y0, x1, y1 = self.box
        columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
        return ((rows > y0) & (rows < y1))[:, None] & (columns > x0) & (columns < x1)


class Picture(NamedTuple):
    file: str  # relative to the folder
    size: tuple[int, int] | None  # width, height, where the file of annotations says it
    things: tuple[Labelled, ...]
    where: str


@dataclasses.dataclass(frozen=True)
class CocoData(SceneQuestions):
    """Rows as SceneQuestions makes them, with its fields, but without cells; the composer gives only the size, and
    `vocabulary` and `twins` mean nothing. Splits are train and validation. An answer is right among the annotated
    things: `is`, and kinds that are not below (see scene_turns), suit pictures in which everything is annotated. Where
    expressions speak of some things only, ask ("what", "where").
    """

    path: str = ""  # the folder of the pictures
    annotations: str = "annotations.json"  # in the folder, or a path of its own
    validation: float = 0.1  # share of the pictures, by a hash of their names
    kinds: tuple[str, ...] = ("what", "where", "is")

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """See `SceneQuestions.batch`; each training picture once per epoch."""
        pictures = self._pictures("train")

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            seeds = rng.integers(2**63, size=len(indices))
            return self.batch(self._read([pictures[i] for i in indices[rows]], seeds[rows]), seeds[rows])

        return pipeline.Batches(len(pictures), batch_size, seed, rows, make)

    def examples(self, split: str, count: int, kinds: Sequence[str] | None = None) -> list[Example]:
        """The first `count` pictures of a split, or as many as there are, each with one conversation of each kind."""
        pictures = self._pictures(split)[:count]
        seeds = np.random.default_rng((0xC0C0, SPLITS.index(split))).integers(2**63, size=len(pictures))
        return self._read(pictures, seeds, self.kinds if kinds is None else kinds)

    def _pictures(self, split: str) -> list[Picture]:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r} of annotated pictures; there are train and validation")
        pictures, _ = read(self.path, self.annotations)
        held = folder.by_hash([picture.file for picture in pictures], self.validation)
        return [picture for picture, out in zip(pictures, held, strict=True) if out == (split == "validation")]

    def _read(self, pictures: Sequence[Picture], seeds: Sequence[int], kinds=None) -> list[Example]:
        with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
            return list(pool.map(lambda picture, seed: self._example(picture, seed, kinds), pictures, seeds))

    def _example(self, picture: Picture, seed: int, kinds: Sequence[str] | None) -> Example:
        rng, side = np.random.default_rng(seed), self.composer.size
        image = open_picture(Path(self.path), picture)
        places = [image_ops.in_square(_inside(one, *image.size), *image.size) for one in picture.things]
        things = tuple(
            # What is hardly seen is not asked about, and is not counted either.
            Thing(name, tuple(box.tolist()), 0.0 if one.crowd else 1.0)
            for one, name, box in zip(picture.things, called(picture.things, rng), places, strict=True)
        )
        masks = [
            in_square(one.mask(*image.size), box, side) for one, box in zip(picture.things, places, strict=True)
        ]  # fmt: skip
        _, known = read(self.path, self.annotations)
        here = {name for one in picture.things for name in one.names}
        drawn = [known[n] for n in rng.integers(len(known), size=1_000)]  # of what may be very many
        # Where nothing is absent, the names of what is there, which are not asked about as absent.
        absent = [name for name in drawn if name not in here] or sorted(here)
        if kinds is None:
            chances = np.array([scene_turns.MIX[kind] for kind in self.kinds])
            kinds = rng.choice(self.kinds, size=self.length // 9, p=chances / chances.sum())
        asked = [scene_turns.ask(str(kind), things, absent, rng) for kind in kinds]
        pixels = np.asarray(image_ops.expand_to_square(image).resize((side, side), Image.Resampling.BICUBIC))
        conversations = tuple(dict.fromkeys(one for one in asked if one is not None))
        return Example(pixels, things, np.array(masks, bool).reshape(-1, side, side), conversations)

    def _cells(self, example: Example) -> pipeline.Batch:
        return {}  # names are not those of the vocabulary of scenes


def called(things: Sequence[Labelled], rng: np.random.Generator) -> list[str]:
    """A name for each, at random of those that no other bears; where one has none such, all that bear its name are
    called so, or it would seem to be one's alone."""
    bearers = collections.Counter(name for one in things for name in one.names)
    own = [[name for name in one.names if bearers[name] == 1] for one in things]
    shared = {name for one, alone in zip(things, own, strict=True) if not alone for name in one.names}
    choices = [
        [name for name in one.names if name in shared] or alone for one, alone in zip(things, own, strict=True)
    ]  # fmt: skip
    return [names[rng.integers(len(names))] for names in choices]


def in_square(mask: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """A mask of the picture [H W] -> of its square [side side]; one too small for a pixel becomes those of its box,
    (x0, y0, x1, y1) in [0, 1] of the square."""
    height, width = mask.shape
    at = image_ops.frame(width, height)
    whole = np.zeros((at.side, at.side), bool)
    whole[at.top : at.top + height, at.left : at.left + width] = mask
    middles = ((np.arange(side) + 0.5) * at.side / side).astype(int)
    small = whole[np.ix_(middles, middles)]
    if not small.any():
        x0, y0 = np.minimum(np.floor(box[:2] * side), side - 1).astype(int)
        x1, y1 = np.maximum(np.ceil(box[2:] * side).astype(int), [x0 + 1, y0 + 1])
        small[y0:y1, x0:x1] = True
    return small


def open_picture(path: Path, picture: Picture) -> Image.Image:
    """RGB, upright."""
    image = _opened(path, picture, image_ops.shown)
    _same_size(path, picture, image.size)
    return image


def size_of(path: Path, picture: Picture) -> tuple[int, int]:
    """(width, height) when it is upright, read off the head of the file."""
    if not (path / picture.file).is_file():
        raise FileNotFoundError(
            f"{picture.where} names the picture {picture.file}, but there is no {path / picture.file}"
        )
    size = _opened(path, picture, image_ops.shown_size)
    _same_size(path, picture, size)
    return size


def _opened(path: Path, picture: Picture, read: Callable[[Image.Image], Any]) -> Any:
    try:
        with Image.open(path / picture.file) as image:
            return read(image)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(
            f"{path / picture.file} ({picture.where}) can't be read as a picture: {error}; replace the file or delete "
            "what names it"
        ) from error


def _same_size(path: Path, picture: Picture, size: tuple[int, int]) -> None:
    if picture.size is not None and size != picture.size:
        raise ValueError(
            f"{path / picture.file} has {size[0]} x {size[1]} pixels, but {picture.where} says "
            f"{picture.size[0]} x {picture.size[1]}; boxes would lie elsewhere"
        )


def _inside(one: Labelled, width: int, height: int) -> np.ndarray:
    """Its box, cut at the edges of the picture; ValueError where it lies beyond them."""
    try:
        box_ops.check(np.array(one.box) + [SLACK, SLACK, SLACK, SLACK], "box", width + 2 * SLACK, height + 2 * SLACK)
    except ValueError:
        box_ops.check(one.box, f"{one.where}: box", width, height)  # says what is wrong, without the slack
        raise
    return box_ops.clip(np.array(one.box, np.float64), width, height)


# Files


@functools.lru_cache(maxsize=4)
def read(path: str, annotations: str) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Pictures, and all names that occur in the file."""
    directory = Path(path)
    if not path or not directory.is_dir():
        raise FileNotFoundError(
            f"data.path is {path!r}, which is no folder; give the one with the pictures: --set data.path=FOLDER"
        )
    file = directory / annotations
    if not file.is_file():
        there = ", ".join(sorted(p.name for p in directory.iterdir() if p.suffix in (".json", ".jsonl"))) or "none"
        raise FileNotFoundError(f"no annotations at {file}; the folder has {there}: --set data.annotations=FILE")
    text = folder.read_utf8(file)
    pictures = read_referring(file, text) if file.suffix in (".jsonl", ".ndjson") else read_instances(file, text)
    if len(pictures) < 2:
        raise ValueError(f"{file} has {len(pictures)} pictures; at least 2 are needed, to train and to validate")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sizes = pool.map(lambda picture: size_of(directory, picture), pictures)
        for picture, size in zip(pictures, sizes, strict=True):
            for one in picture.things:
                _check(one, *size)
    names = dict.fromkeys(name for picture in pictures for one in picture.things for name in one.names)
    if not names:
        raise ValueError(f"{file} annotates nothing, so there is nothing to ask about; it needs annotations")
    return tuple(pictures), tuple(names)


def read_instances(file: Path, text: str) -> list[Picture]:
    """COCO's JSON; pictures without annotations are kept."""
    try:
        contents = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(contents, dict) or not isinstance(contents.get(key), list):
            raise ValueError(f"{file} is not in COCO's format: it must be an object with a list {key!r}")
    categories = {}
    for i, record in enumerate(contents["categories"]):
        where = f"{file}, categories[{i}]"
        categories[_key(record, "id", where)] = _name(_get(record, "name", where), f"{where}.name")
    images = {}
    for i, record in enumerate(contents["images"]):
        where = f"{file}, images[{i}]"
        if (number := _key(record, "id", where)) in images:
            raise ValueError(f"{where}.id: {number!r} is the id of an image before")
        size = tuple(_get(record, side, where) for side in ("width", "height"))
        if not all(isinstance(n, int) and n > 0 for n in size):
            raise ValueError(
                f"{where}: width and height must be whole numbers above 0, got {size[0]!r} and {size[1]!r}"
            )
        images[number] = Picture(_file(_get(record, "file_name", where), f"{where}.file_name"), size, (), where)
    found = {number: [] for number in images}
    for i, record in enumerate(contents["annotations"]):
        where = f"{file}, annotations[{i}]"
        number, category = _key(record, "image_id", where), _key(record, "category_id", where)
        for key, value, known in (("image_id", number, images), ("category_id", category, categories)):
            if value not in known:
                raise ValueError(f"{where}.{key}: {value!r} is the id of none of the {key.removesuffix('_id')} entries")
        one = _labelled((categories[category],), record, "segmentation", where)
        found[number].append(one._replace(crowd=bool(record.get("iscrowd", 0))))
    return [picture._replace(things=tuple(found[number])) for number, picture in images.items()]


def read_referring(file: Path, text: str) -> list[Picture]:
    """JSON lines, an expression or several and its box each; lines of one picture are put together."""
    pictures: dict[str, list] = {}
    first = {}
    for line, record in folder.jsonl_rows(file, text, 'an object like {"image": ..., "expression": ..., "box": ...}'):
        where = f"{file}, line {line}"
        name = _file(_get(record, "image", where), f"{where}.image")
        if ("expression" in record) == ("sentences" in record):
            raise ValueError(f"{where}: give either an expression or a list of sentences, got {', '.join(record)}")
        said = record.get("sentences", [record.get("expression")])
        if not isinstance(said, list) or not said:
            raise ValueError(f"{where}.sentences must be a list of texts, got {said!r}")
        names = tuple(dict.fromkeys(_name(one, f"{where}, sentence {i}") for i, one in enumerate(said)))
        first.setdefault(name, where)
        pictures.setdefault(name, []).append(_labelled(names, record, "mask", where))
    return [Picture(name, None, tuple(things), first[name]) for name, things in pictures.items()]


def _labelled(names: tuple[str, ...], record: Mapping[str, Any], masks: str, where: str) -> Labelled:
    if ("box" in record) == ("bbox" in record):
        raise ValueError(f"{where}: give either box, [x0, y0, x1, y1], or bbox, [x, y, width, height]")
    key = "box" if "box" in record else "bbox"
    try:
        box = np.array(record[key], np.float64).reshape(4)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}.{key} must be four numbers, got {record[key]!r:.60}") from None
    box = box if key == "box" else box_ops.from_xywh(box)
    if not np.isfinite(box).all() or not box_ops.valid(box):
        what = "is (x0, y0, x1, y1)" if key == "box" else "is (x, y, width, height) with no side below 0"
        raise ValueError(f"{where}.{key} {record[key]!r} is reversed or not finite; it {what}")
    mask = record.get(masks)
    return Labelled(names, tuple(box.tolist()), None if mask in ([], [[]]) else mask, False, where)


def _check(one: Labelled, width: int, height: int) -> None:
    """What can be checked of an annotation without drawing it."""
    _inside(one, width, height)
    if one.segmentation is None:
        return
    try:
        if isinstance(one.segmentation, Mapping):
            coco_masks.check_runs(one.segmentation, height, width)
        else:
            coco_masks.check_polygons(one.segmentation)
    except ValueError as error:
        raise ValueError(f"{one.where}, its mask: {error}") from error


def _get(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, Mapping) or key not in record:
        has = ", ".join(record) if isinstance(record, Mapping) else repr(record)
        raise ValueError(f"{where} must be an object with {key!r}, it has {has}")
    return record[key]


def _key(record: Any, key: str, where: str) -> int | str:
    value = _get(record, key, where)
    if not isinstance(value, int | str):
        raise ValueError(f"{where}.{key} must be a number or a text, got {value!r}")
    return value


def _file(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} must be the name of a file, got {name!r}")
    return name


def _name(text: Any, where: str) -> str:
    """In lower case, as the vocabulary reads it, without an article in front."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} must be a text, got {text!r}")
    if marks := [mark for mark in RESERVED if mark in text]:
        raise ValueError(f"{where}: {text!r} holds {marks[0]}, which stands for something else in a row; rename it")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{where}: {text!r} holds half of a surrogate pair (\\uD800 to \\uDFFF)")
    name = " ".join(text.lower().split())
    article = next((a for a in ARTICLES if name.startswith(a) and name != a.strip()), "")
    return name.removeprefix(article)
