"""Scenes and captions of a Q-Former: which belongs to which, and what it says of a picture.

Metrics of a split "twemoji", chance beside each as "..._chance":
    twemoji/caption_R@1, R@5       share of pictures whose caption is among the nearest of all captions of the split
    twemoji/picture_R@1, R@5       share of captions with one of their pictures among the nearest
    twemoji/itm_caption_R@1 ...    the same after the match has looked at the nearest `looked` (evals/rerank.py)
    twemoji/pictures, captions     how many there were; scenes that look alike share a caption
What it says is counted by SceneAnswers, as other models' answers are.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from mmjax.data import scene_text
from mmjax.data.scene_captions import SceneCaptions
from mmjax.data.scene_questions import Example
from mmjax.data.scene_turns import Conversation
from mmjax.evals import features, rerank
from mmjax.evals.scene_answers import Reply, words
from mmjax.evals.search import square
from mmjax.models import qformer
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.nn.sampling import Sampling, generate
from mmjax.report import annotate

SHOWN, BEST = 8, 3  # pictures of a sheet, and captions beside each
WITHIN = (1, 5)


def captions(model: qformer.Stage1, variables: dict, images: np.ndarray, tokens: int) -> list[str]:
    """images [N s s 3] -> the likeliest words, one by one, at most so many tokens."""
    sampling, texts = Sampling(stop_ids=(scene_text.id_of(scene_text.END),)), []
    size = min(len(images), features.BATCH_SIZE)
    rows = np.arange(-(-len(images) // size) * size) % len(images)  # as many in each batch: one program
    for n in range(0, len(rows), size):
        first = np.full((size, 1), model.config.qformer.start_id, np.int32)
        inputs = {"images": images[rows[n : n + size]]}
        said = generate(model, variables, first, max_new_tokens=tokens, sampling=sampling, inputs=inputs).tokens
        texts += [words(ids) for ids in np.asarray(said)]
    return texts[: len(images)]


def captioned(
    model: qformer.Stage1, variables: dict, data: SceneCaptions, examples: Sequence[Example],
    conversations: Sequence[Conversation], tokens: int,
) -> list[Reply]:  # fmt: skip
    """For SceneAnswers: whatever is asked, the answer is a caption."""
    images = np.stack([example.image for example in examples])
    return [Reply(text, []) for text in captions(model, variables, images, min(tokens, data.length - 1))]


@dataclasses.dataclass(frozen=True)
class CaptionRetrieval:
    split: str
    count: int = 500  # scenes, of which some have no caption
    looked: int = 16  # candidates that the match looks at

    def __call__(self, model: qformer.Stage1, variables: dict, data: SceneCaptions, rng: jax.Array) -> Result:
        """`rng` is unused."""
        pairs = data.pairs(self.split, self.count)
        right = features.one_hot(pairs.labels, len(pairs.names))  # [I C]
        texts = data.tokenize(pairs.names)
        cosines = np.asarray(
            qformer.strongest(
                features.encode_images(model, variables, pairs.images),
                features.encode_texts(model, variables, data.tokenize, pairs.names),
            )
        )
        looked = rerank.scores(model, variables, pairs.images, *texts.values(), count=self.looked)
        to_captions, to_pictures = map(np.asarray, looked)
        metrics = {f"{self.split}/pictures": float(len(right)), f"{self.split}/captions": float(len(pairs.names))}
        for name, scores, wanted in (
            ("caption_", cosines, right), ("picture_", cosines.T, right.T),
            ("itm_caption_", to_captions, right), ("itm_picture_", to_pictures, right.T),
        ):  # fmt: skip
            metrics |= features.ranking_metrics(f"{self.split}/{name}", scores, wanted, WITHIN)
        shown = features.spread(len(right), SHOWN)
        sheet = best_captions(pairs.images[shown], pairs.names, right[shown], cosines[shown], to_captions[shown])
        return Result(metrics, {f"{self.split} captions": sheet})


def best_captions(
    images: np.ndarray, names: Sequence[str], right: np.ndarray, cosines: np.ndarray, looked: np.ndarray
) -> np.ndarray:
    """Pictures [I s s 3] beside the first captions by cosine and those after a second look; right, cosines and looked
    [I C]."""
    items = []
    for image, true, *ways in zip(images, right, cosines, looked, strict=True):
        lines = []
        for name, scores in zip(("by cosine", "after the match has looked"), ways, strict=True):
            best = np.argsort(-scores, kind="stable")[:BEST]
            lines += [annotate.Line(name), *(annotate.Line(names[n], bool(true[n])) for n in best)]
        items.append(annotate.Card(image, lines))
    return annotate.cards(items)


@dataclasses.dataclass(frozen=True)
class Describe:
    """An Experiment's `sample`: what is in a person's pictures, or in scenes of a split."""

    split: str

    def __call__(
        self, model: qformer.Stage1, variables: dict, request: Request, data: SceneCaptions, rng: jax.Array
    ) -> Answer:
        """`rng` is unused."""
        if request.texts:
            raise ValueError("this model answers no questions, it describes: give --image FILE, or nothing for scenes")
        images = [square(image, data.composer.size) for image in request.images]
        images = images or [example.image for example in data.examples(self.split, SHOWN)]
        texts = captions(model, variables, np.stack(images), data.length - 1)
        cards = [
            annotate.Card(image, [annotate.Line(text)]) for image, text in zip(images, texts, strict=True)
        ]  # fmt: skip
        return Answer("\n".join(texts), {"captions": annotate.cards(cards)})
