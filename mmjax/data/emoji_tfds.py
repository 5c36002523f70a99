"""The emoji pack as a TFDS data set, written and read without TensorFlow.

    builder = EmojiBuilder(data_dir="...", file_format="array_record")
    builder.download_and_prepare()                    # nothing is downloaded: the pack ships with mmjax
    train = builder.as_data_source(split="train")     # random access, as grain wants it

Splits: train, validation, concepts, twemoji, as `emoji.py` defines them.
"""

import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mmjax.data import emoji


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    limit: int | None = None  # only the first drawings of each split, for a quick look


class EmojiBuilder(tfds.core.GeneratorBasedBuilder):
    """Drawings of 1,555 emoji by eight artists, with Unicode's names and keywords."""

    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Unicode 15.1 concepts, CLDR 48.2 words."}
    BUILDER_CONFIGS = [Config(name="full", description="Every drawing.")]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    # RGBA, not premultiplied
                    "image": tfds.features.Image(shape=(emoji.SIZE, emoji.SIZE, 4), encoding_format="png"),
                    "name": text(),
                    "keywords": tfds.features.Sequence(text()),
                    "group": tfds.features.ClassLabel(names=emoji.pack().groups),
                    "subgroup": tfds.features.ClassLabel(names=emoji.pack().subgroups),
                    "artist": tfds.features.ClassLabel(names=emoji.ARTISTS),
                    "code": text(),  # code points in hexadecimal, "1f469-200d-1f692"
                    "concept": tfds.features.Scalar(np.int32),  # row of the pack
                }
            ),
            homepage="https://cldr.unicode.org",
            license="per artist, see mmjax/data/assets/NOTICE.md",
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in ("train", "validation", "concepts", "twemoji")}

    def _generate_examples(self, split):
        for artist, row in list(zip(*emoji.pack().split(split), strict=True))[: self.builder_config.limit]:
            concept = emoji.pack().concepts[row]
            png = io.BytesIO()
            Image.fromarray(emoji.pack().drawings(emoji.ARTISTS[artist])[row]).save(png, "PNG")
            png.seek(0)
            yield (
                f"{concept.code}/{emoji.ARTISTS[artist]}",
                {
                    "image": png,
                    "name": concept.name,
                    "keywords": list(concept.keywords),
                    "group": concept.group,
                    "subgroup": concept.subgroup,
                    "artist": emoji.ARTISTS[artist],
                    "code": concept.code,
                    "concept": int(row),
                },
            )
