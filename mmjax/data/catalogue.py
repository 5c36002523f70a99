"""Any TFDS data set by name, without TensorFlow: `TFDSData("cifar10")`, `--set data.name=oxford_flowers102`.

The data set must have been prepared in a format with random access, once, outside of training:

    tfds.builder("cifar10", data_dir=DIR, file_format="array_record").download_and_prepare()

Captions are a text feature (`text_key`) or, without one, the label's name put into a sentence. Pictures are decoded
batch by batch, so the set may be larger than memory.
"""

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data import augment, folder, pipeline
from mmjax.ops import images as image_ops
from mmjax.text import bpe, prompts

MOST_CAPTIONS = 50_000  # that a vocabulary is trained on


@dataclasses.dataclass(frozen=True)
class TFDSData:
    """Pictures with captions or class names (see `pipeline.Data`)."""

    name: str = ""  # "cifar10", or "name/config:version"
    data_dir: str = ""  # where it was prepared; "" = TFDS's default
    image_key: str = "image"
    text_key: str = ""  # a text feature; "" = captions are made from label_key
    label_key: str = "label"
    template: str = "a photo of {}"  # for class names
    splits: tuple[str, str] = ("train[:90%]", "train[90%:]")  # train, validation; TFDS's slices
    image_size: int = 32
    text_length: int = 32
    most_pairs: int = 2000  # rows that an eval reads of a split
    tokenizer: str = ""  # as in FolderData
    augmentation: augment.Augment = augment.PHOTOGRAPHS

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        source = self._source("train")

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            draws = augment.take(augment.draw(self.augmentation, len(indices), rng), rows)
            chosen = indices[rows]
            examples = [source[int(i)] for i in chosen]
            texts, label = self._captions(examples, chosen)
            may_flip = np.array([not folder.ONE_WAY.search(text) for text in texts])
            images = augment.render(
                self._pictures(examples, self.image_size * 5 // 4), draws, self.image_size, may_flip
            )
            return {"images": images, **self.tokenize(texts), "label": label}

        return pipeline.Batches(len(source), batch_size, seed, rows, make)

    def pairs(self, split: str) -> pipeline.Pairs:
        """`train` or `validation`: its first `most_pairs` rows. A label's name is the class, or else the caption."""
        source = self._source(split)
        rows = np.arange(min(len(source), self.most_pairs))
        examples = [source[int(i)] for i in rows]
        texts, label = self._captions(examples, rows)
        return pipeline.Pairs(self._pictures(examples, self.image_size), texts, label, self._names() or tuple(texts))

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        return self.vocabulary().rows(texts, self.text_length)

    def vocabulary(self) -> bpe.Tokenizer:
        """The tokenizer: read from `tokenizer`, or trained on captions or class names."""
        return folder.read_tokenizer(self.tokenizer) if self.tokenizer else trained_vocabulary(self)

    def _names(self) -> tuple[str, ...]:
        """Class names as words; none if captions are texts."""
        if self.text_key:
            return ()
        return tuple(name.replace("_", " ") for name in self._feature(self.label_key).names)

    def _captions(self, examples: list[dict], rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        if self.text_key:
            return [as_text(example[self.text_key]) for example in examples], rows.astype(np.int32)
        label = np.array([example[self.label_key] for example in examples], np.int32)
        sentences = prompts.fill(self._names(), (self.template,))
        return [sentences[i] for i in label], label

    def _pictures(self, examples: list[dict], side: int) -> np.ndarray:
        pictures = (np.asarray(example[self.image_key]) for example in examples)
        pictures = (picture[..., 0] if picture.shape[-1] == 1 else picture for picture in pictures)
        return np.stack([np.asarray(image_ops.cover(picture, side)) for picture in pictures])

    def _source(self, split: str, **options: Any) -> Any:
        if split not in ("train", "validation"):
            raise ValueError(
                f"no split {split!r}; there are train and validation, which read {' and '.join(self.splits)}"
            )
        return open_source(self, dict(zip(("train", "validation"), self.splits, strict=True))[split], **options)

    def _feature(self, key: str) -> Any:
        return feature(open_builder(self.name, self.data_dir), key)


@functools.lru_cache(maxsize=4)
def open_builder(name: str, data_dir: str) -> Any:
    """The TFDS builder of a prepared data set."""
    import tensorflow_datasets as tfds  # seconds; TensorFlow itself is never needed

    if not name:
        raise ValueError("data.name is empty; give the name of a TFDS data set: --set data.name=cifar10")
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "tfds.list_builders() lists all"
        raise ValueError(f"TFDS has no data set {name!r} in {data_dir or 'its default folder'}; {hint}") from error
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the TFDS data set {name!r} needs the package {error.name} even to be opened; "
            "prepare it elsewhere and copy its folder, which then opens by its files alone"
        ) from error


def open_source(data: TFDSData, split: str, **options: Any) -> Any:
    """Random access to a split: `len(source)` and `source[i]` -> dict of arrays."""
    builder = open_builder(data.name, data.data_dir)
    for key in (data.image_key, data.text_key or data.label_key):
        feature(builder, key)
    try:
        return builder.as_data_source(split=split, **options)
    except NotImplementedError as error:
        prepare = f'tfds.builder({data.name!r}, data_dir=DIR, file_format="array_record").download_and_prepare()'
        if not builder.is_prepared():
            raise FileNotFoundError(
                f"{data.name} isn't prepared in {builder.data_path}; run once: {prepare}"
            ) from error
        raise ValueError(
            f"{data.name} in {builder.data_path} is stored as {builder.info.file_format.value}, which has no random "
            f"access; prepare it again in a new DIR: {prepare}"
        ) from error


def feature(builder: Any, key: str) -> Any:
    """A feature of the data set, or an error that lists them."""
    features = builder.info.features
    if key not in features:
        near = difflib.get_close_matches(key, list(features), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{builder.name} has no feature {key!r}; it has {', '.join(sorted(features))}{hint} "
            "Set data.image_key, and data.text_key or data.label_key"
        )
    return features[key]


def as_text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


@functools.lru_cache(maxsize=4)
def trained_vocabulary(data: TFDSData) -> bpe.Tokenizer:
    if not data.text_key:
        return bpe.train(prompts.fill(data._names(), (data.template,)), folder.TRAINED_VOCABULARY)
    import tensorflow_datasets as tfds

    source = data._source("train", decoders={data.image_key: tfds.decode.SkipDecoding()})
    count = min(len(source), MOST_CAPTIONS)
    return bpe.train([as_text(source[i][data.text_key]) for i in range(count)], folder.TRAINED_VOCABULARY)
