"""What a generator of the emoji pack's pictures draws when asked, and what real drawings cost it.

"cat-face by noto"  -> label -draw-> a sheet of pictures          (Ask, an Experiment's `sample`)
drawings of a split -> SPLIT/loss and what else the loss measures  (HeldOut, an eval)
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mmjax.data import emoji
from mmjax.evals import features
from mmjax.nn.outputs import Answer, Request, Result
from mmjax.report import pictures

BY = " by "


@dataclasses.dataclass(frozen=True)
class Ask:
    """Draws `count` pictures of each text: "SUBJECT by ARTIST", either of them alone, or "" for anything.

    A subject is a concept's name, a subgroup or a group, whichever of these data.kinds (data/emoji_pictures.py) knows.
    draw: (model, variables, rng, label [B K]) -> uint8 [B s s 3], under jit.
    """

    draw: Callable
    count: int = 8

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        texts = request.texts or ("",)
        label = np.stack([asked(text, data.kinds) for text in texts for _ in range(self.count)])
        made = jax.jit(lambda variables, rng, label: self.draw(model, variables, rng, label))(variables, rng, label)
        rows = np.asarray(made).reshape(len(texts), self.count, *made.shape[1:])
        sheet = pictures.contact_sheet(rows, [""] * self.count, 64)
        return Answer("\n".join(f"row {n + 1}: {text or 'anything'}" for n, text in enumerate(texts)), {"drawn": sheet})


def asked(text: str, kinds: Sequence[str]) -> np.ndarray:
    """ "fox by noto" -> int32 [K], a label of each kind, -1 where the text says nothing."""
    subject, _, artist = f" {text.strip()}".rpartition(BY) if BY in f" {text}" else (text, "", "")
    subject = subject.strip()
    found = dict.fromkeys(kinds, -1)
    if artist:
        found["artist"] = _number(artist.strip(), emoji.TRAINING_ARTISTS, "artist")
    if subject:
        found |= _subject(subject, kinds)
    return np.array([found[kind] for kind in kinds], np.int32)


def _subject(subject: str, kinds: Sequence[str]) -> dict[str, int]:
    pack = emoji.pack()
    names = {"concept": pack.names, "subgroup": pack.subgroups, "group": pack.groups}
    known = [kind for kind in names if kind in kinds]
    for kind in known:
        if subject in names[kind]:
            number = names[kind].index(subject)
            if kind != "subgroup" or "group" not in kinds:
                return {kind: number}
            group = next(concept.group for concept in pack.concepts if concept.subgroup == subject)
            return {kind: number, "group": pack.groups.index(group)}
    if "concept" not in kinds and subject in pack.names:  # a name, where only its subgroup is known
        concept = pack.concepts[pack.names.index(subject)]
        return _subject(concept.subgroup, kinds)
    return {known[0]: _number(subject, names[known[0]], known[0])}


def _number(word: str, words: Sequence[str], kind: str) -> int:
    if word not in words:
        near = difflib.get_close_matches(word, words, n=5, cutoff=0.4) or words[:5]
        raise ValueError(
            f"no {kind} {word!r}; near it are {', '.join(near)}. Ask for SUBJECT, SUBJECT by ARTIST, or ''"
        )
    return list(words).index(word)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The loss of drawings of a split, and its other metrics: split/loss ... The random numbers are the same each time.

    loss: a Task's. Reads data.drawings and data.label.
    """

    loss: Callable
    split: str
    count: int = 1_000  # drawings at most, spread evenly over the split
    batch: int = 50

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        images, labels = data.drawings(self.split)
        rows = features.spread(len(images), min(self.count, len(images) // self.batch * self.batch))
        rows = rows[: max(len(rows) // self.batch, 1) * self.batch].reshape(-1, min(self.batch, len(rows)))
        label, key = data.label(labels), jax.random.key(0)
        measure = jax.jit(lambda *args: self.loss(model, *args, 0)[1].metrics)
        found = [
            measure(variables, {"images": images[some], "label": label[some]}, jax.random.fold_in(key, n))
            for n, some in enumerate(rows)
        ]
        mean = jax.tree.map(lambda *x: float(np.mean(x)), *found)
        return Result({f"{self.split}/{name}": value for name, value in mean.items()})
