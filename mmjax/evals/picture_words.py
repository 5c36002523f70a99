"""A language model whose words are also pictures: what it says of them, and what it draws.

    drawings of a split -ids-> <img> ids </img> -> a name: right or wrong        (PictureNames, an eval)
    a person's words -> pictures; a person's picture -> words                    (WriteOrDraw, an Experiment's `sample`)

Both are handed `how`: what turns pictures into ids and ids into pictures (experiments/seed_words_emoji.py's Words).
"""

import dataclasses
import difflib
from typing import Any

import jax
import numpy as np

from mmjax.data import emoji
from mmjax.evals import features
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.nn.sampling import Sampling, generate
from mmjax.report import pictures
from mmjax.text.image_tokens import picture_to_caption

LONGEST = 16  # tokens of a name


def said(how: Any, model: Any, variables: dict, images: np.ndarray) -> list[str]:
    """uint8 [B s s 3] -> a name for each, the likeliest words."""
    ids = np.asarray(how.read(variables, images))
    start = emoji.tokenizer().start
    row = picture_to_caption(how.tokens, ids, np.full((len(ids), 1), start, np.int32), None)
    sampling = Sampling(stop_ids=(emoji.tokenizer().end,))
    out = generate(
        model, {"params": variables["params"]}, row["input_ids"], row["attention_mask"], max_new_tokens=LONGEST,
        sampling=sampling,
    )  # fmt: skip
    words = emoji.tokenizer().vocab_size
    return [emoji.tokenizer().decode([i for i in ids if i < words]) for ids in np.asarray(out.tokens)]


@dataclasses.dataclass(frozen=True)
class PictureNames:
    """SPLIT/name: the share of drawings whose name is said to the letter, and SPLIT/name_chance, one of all names.
    SPLIT/subgroup: of those whose subgroup the name that is said has. Reads data.drawings."""

    how: Any
    split: str
    count: int = 500  # drawings at most, spread evenly over the split
    batch: int = 100

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        images, labels = data.drawings(self.split)
        rows = features.spread(len(images), min(self.count, len(images)))
        order = np.arange(-(-len(rows) // self.batch) * self.batch) % len(rows)  # the last batch is filled up
        found = [
            name
            for some in order.reshape(-1, self.batch)
            for name in said(self.how, model, variables, images[rows[some]])
        ]
        found, concepts = found[: len(rows)], labels.concept[rows]
        pack = emoji.pack()
        names = [name.lower() for name in pack.names]  # the vocabulary knows no capitals
        subgroup = {name: concept.subgroup for name, concept in zip(names, pack.concepts, strict=True)}
        right = [name == names[n] for name, n in zip(found, concepts, strict=True)]
        near = [subgroup.get(name) == pack.concepts[n].subgroup for name, n in zip(found, concepts, strict=True)]
        metrics = {f"{self.split}/name": np.mean(right), f"{self.split}/name_chance": 1 / len(pack.names)}
        return Result({**metrics, f"{self.split}/subgroup": float(np.mean(near))})


@dataclasses.dataclass(frozen=True)
class WriteOrDraw:
    how: Any
    count: int = 8  # pictures of each text

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        lines, found = [], {}
        if request.images:
            images = np.stack([np.asarray(pictures.thumbnail(image, data.image_size)) for image in request.images])
            names = said(self.how, model, variables, images)
            lines += [f"picture {n + 1}: {name}" for n, name in enumerate(names)]
        if request.texts:
            concepts = np.repeat([_concept(text) for text in request.texts], self.count)
            label = np.stack([concepts, np.full(len(concepts), -1)], 1).astype(np.int32)
            made = jax.jit(lambda variables, rng, label: self.how.draw(model, variables, rng, label))(
                variables, rng, label
            )
            rows = np.asarray(made).reshape(len(request.texts), self.count, *made.shape[1:])
            found["drawn"] = pictures.contact_sheet(rows, [""] * self.count, 64)
            lines += [f"row {n + 1}: {text}" for n, text in enumerate(request.texts)]
        if not lines:
            raise ValueError("give the name of something to draw, or --image FILE to be named")
        return Answer("\n".join(lines), found)


def _concept(text: str) -> int:
    names = emoji.pack().names
    if text not in names:
        near = difflib.get_close_matches(text, names, n=5, cutoff=0.4) or names[:5]
        raise ValueError(f"no emoji is called {text!r}; near it are {', '.join(near)}")
    return names.index(text)
