"""Scenes and questions about them as a TFDS data set, written and read without TensorFlow.

    builder = ScenesBuilder(data_dir="...", file_format="array_record")
    builder.download_and_prepare()                    # nothing is downloaded: scenes are composed of the emoji pack
    train = builder.as_data_source(split="train")     # random access, as grain wants it

Splits: train, validation, twemoji, combinations, concepts, as `scene_questions.py` defines them. Each scene has one
conversation of each kind that it has an answer to; `turns` holds them all, those with one number in `conversation`
belong together. Texts keep their marks, <boxes> and <points>; `marks` holds turn and thing of each, in the order of the
text, question first. (A list of their own: lists in lists can't be written without TensorFlow.)
"""

import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mmjax.data import scene_questions
from mmjax.data.scene_questions import Example, SceneQuestions


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    scenes: int = 10_000  # of the training split; the others have a tenth
    vocabulary: int = 64  # concepts

    @property
    def data(self) -> SceneQuestions:
        return SceneQuestions(vocabulary=self.vocabulary)


class ScenesBuilder(tfds.core.GeneratorBasedBuilder):
    """Composed scenes of one to four drawings, with boxes, masks, names, questions and exact answers."""

    name = "scenes"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Layouts are composed, pixels are those of the emoji pack's artists."}
    BUILDER_CONFIGS = [
        Config(name="64", description="64 names."),
        Config(name="200", description="200 names.", vocabulary=200),
        Config(name="600", description="All 600 names.", vocabulary=scene_questions.MOST),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features, side = tfds.features, self.builder_config.data.composer.size
        thing = {
            "name": features.Text(),
            "box": features.Tensor(shape=(4,), dtype=np.float32),  # x0, y0, x1, y1 in [0, 1], of what is visible
            "mask": features.Image(shape=(side, side, 1), encoding_format="png"),  # 255 where it is seen
            "visible": features.Scalar(np.float32),  # share that no other hides
        }
        turn = {
            "conversation": features.Scalar(np.int32),
            "kind": features.ClassLabel(names=scene_questions.KINDS),
            "question": features.Text(),
            "answer": features.Text(),
        }
        mark = {"turn": features.Scalar(np.int32), "thing": features.Scalar(np.int32)}
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(side, side, 3), encoding_format="png"),
                    "things": features.Sequence(thing),  # later ones lie on top
                    "turns": features.Sequence(turn),
                    "marks": features.Sequence(mark),
                }
            ),
            license="of the drawings: per artist, see mmjax/data/assets/NOTICE.md",
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in scene_questions.SPLITS}

    def _generate_examples(self, split):
        count = self.builder_config.scenes if split == "train" else max(1, self.builder_config.scenes // 10)
        for n, example in enumerate(self.builder_config.data.examples(split, count)):
            yield n, record(example)


def record(example: Example) -> dict:
    """One scene as the features above have it."""
    turns = [(n, turn) for n, conversation in enumerate(example.conversations) for turn in conversation]
    return {
        "image": png(example.image),
        "things": [
            {"name": thing.name, "box": np.float32(thing.box), "mask": png(mask), "visible": thing.visible}
            for thing, mask in zip(example.things, example.masks, strict=True)
        ],
        "turns": [
            {"conversation": n, "kind": turn.kind, "question": turn.question, "answer": turn.answer}
            for n, turn in turns
        ],
        "marks": [
            {"turn": k, "thing": thing}
            for k, (_, turn) in enumerate(turns)
            for thing, _ in scene_questions.marks_of(turn)
        ],
    }


def png(picture: np.ndarray) -> io.BytesIO:
    """uint8 [s s 3], or a mask [s s] bool, in one channel."""
    file = io.BytesIO()
    Image.fromarray(picture if picture.ndim == 3 else 255 * picture.astype(np.uint8)).save(file, "PNG")
    file.seek(0)
    return file
