"""Scenes and their captions, for models that learn which belongs to which.

A caption names all things from left to right (`scene_turns.caption`): "fox, key and red heart". Scenes that have none,
where two things stand one above the other, are left out. Texts are <start> words <end> padding.

Of 32 scenes about two show the same things in the same order. Their captions are equal, so neither is a wrong answer:
they share an `image_id`, as in LAVIS pictures with several captions do.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from mmjax.data import pipeline, scene_text
from mmjax.data.scene_questions import Example, SceneQuestions


@dataclasses.dataclass(frozen=True)
class SceneCaptions(SceneQuestions):
    image_tokens: int = 0
    length: int = 16  # T, with the marks of both ends; what is longer is cut
    kinds: tuple[str, ...] = ("caption",)
    answered: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.kinds != ("caption",) or not self.answered:
            raise ValueError(f"pairs need captions, got kinds={self.kinds}, answered={self.answered}")

    def batch(self, examples: Sequence[Example], seeds: Sequence[int]) -> pipeline.Batch:
        """images uint8 [B s s 3]; input_ids int32 and attention_mask bool [B T]; image_id int32 [B]."""
        captions = [caption_of(example) for example in examples]
        ids = np.array([zlib.crc32(caption.encode()) >> 1 for caption in captions], np.int32)
        images = np.stack([example.image for example in examples])
        return {"images": images, **self.tokenize(captions), "image_id": ids}

    def pairs(self, split: str, count: int = 500) -> pipeline.Pairs:
        """Of `count` scenes those that have a caption; the names are all captions, each once."""
        examples = [example for example in self.examples(split, count) if example.conversations]
        captions = [caption_of(example) for example in examples]
        names, labels = np.unique(captions, return_inverse=True)
        images = np.stack([example.image for example in examples])
        return pipeline.Pairs(images, captions, labels.astype(np.int32), tuple(map(str, names)))

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        start, end = scene_text.id_of(scene_text.START), scene_text.id_of(scene_text.END)
        encoded = scene_text.tokenizer().encode_batch(list(texts), add_special_tokens=False)
        ids = np.zeros((len(encoded), self.length), np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, one in enumerate(encoded):
            words = [start, *one.ids[: self.length - 2], end]
            ids[row, : len(words)], mask[row, : len(words)] = words, True
        return {"input_ids": ids, "attention_mask": mask}


def caption_of(example: Example) -> str:
    return example.conversations[0][-1].answer
