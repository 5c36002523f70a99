"""Questions about how a drawing looks: which way up, what colour, how many, on which side, which face;
and what it shows.

    direction("twemoji", 32).images [M s s 3], .labels [M], .answers

Answers of the first four are put in by the way in which drawings are shown, as often as chance has it, so that they
say nothing of what is drawn. A class is a word in `answers`. M pictures, s side, S side of a drawing. Splits are those
of `emoji`; the same question has the same pictures at every call.
"""

from typing import NamedTuple

import numpy as np
from einops import repeat

from mmjax.data import augment, emoji, scenes

TURNS = ("upright", "a quarter to the left", "upside down", "a quarter to the right")
HUES = 24  # around the circle, red first
COUNTS = 6
SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}  # x, y
INK = 0.47  # side, in canvas sides, of a square as large as all copies of a scene together
LARGE, SMALL, APART = 0.44, 0.22, 0.36  # sides of two copies and what is between their centres, in canvas sides
WHITE = (1, 0, 0, 0)  # of scenes.Composer's backgrounds
LEAST_CHROMA = 0.25  # of a drawing whose hue can be seen: mean over what is drawn, of 1


class Asked(NamedTuple):
    images: np.ndarray  # [M s s 3] uint8
    labels: np.ndarray  # [M] int32, rows of `answers`
    answers: tuple[str, ...]


def direction(split: str, size: int, most: int | None = None) -> Asked:
    """Drawings turned by quarters. `most`: pictures at most, spread over the split."""
    cutouts, _, rng = _drawn(split, most)
    labels = rng.integers(len(TURNS), size=len(cutouts))
    turned = np.stack([np.rot90(one, turns) for one, turns in zip(cutouts, labels, strict=True)])
    return Asked(_plain(turned, size), labels.astype(np.int32), TURNS)


def colour(split: str, size: int, most: int | None = None) -> Asked:
    """Drawings in one hue each; how light and how strong every colour is stays. Grey drawings are left out."""
    cutouts, _, rng = _drawn(split, most)
    cutouts = cutouts[chroma(cutouts) >= LEAST_CHROMA]
    labels = rng.integers(HUES, size=len(cutouts))
    answers = tuple(f"{round(360 * step / HUES)} degrees" for step in range(HUES))
    return Asked(_plain(painted(cutouts, labels / HUES), size), labels.astype(np.int32), answers)


def count(split: str, size: int, most: int | None = None) -> Asked:
    """One to six copies of a drawing that together are as large however many they are, so that ink does not tell."""
    cutouts, _, rng = _drawn(split, most)
    composer = scenes.Composer(size, (1, COUNTS), scale=(1.0, 1.0), rotation=0.0, backgrounds=WHITE)
    layouts = scenes.draw(composer, len(cutouts), rng)  # of scale 1, so that each centre is that of its cell
    side = INK * rng.uniform(0.85, 1.0, (len(cutouts), 1)) / layouts.count[:, None] ** 0.5  # of each copy
    inside = (1 - side[..., None]) / 2
    layouts = layouts._replace(
        scale=repeat(side, "m 1 -> m n", n=COUNTS).astype(np.float32),
        shift=np.clip(layouts.shift, -inside, inside).astype(np.float32),
    )
    return Asked(
        _copies(cutouts, layouts, size), (layouts.count - 1).astype(np.int32), tuple(str(n + 1) for n in range(COUNTS))
    )


def relation(split: str, size: int, most: int | None = None) -> Asked:
    """A small and a large copy of a drawing: on which side of the large one is the small one?"""
    cutouts, _, rng = _drawn(split, most)
    composer = scenes.Composer(size, (2, 2), rotation=0.0, backgrounds=WHITE)
    layouts = scenes.draw(composer, len(cutouts), rng)
    labels = rng.integers(len(SIDES), size=len(cutouts))
    towards = APART * np.array(list(SIDES.values()))[labels]  # [M 2]
    # As far from the middle as both copies fit into the picture.
    low = np.maximum(LARGE / 2, SMALL / 2 - towards) - 0.5
    high = 0.5 - np.maximum(LARGE / 2, SMALL / 2 + towards)
    centre = rng.uniform(low, high)
    layouts = layouts._replace(
        scale=np.tile(np.float32([LARGE, SMALL]), (len(cutouts), 1)),
        shift=np.stack([centre, centre + towards], 1).astype(np.float32),
    )
    return Asked(_copies(cutouts, layouts, size), labels.astype(np.int32), tuple(SIDES))


def expression(split: str, size: int, most: int | None = None) -> Asked:
    """Which subgroup of faces: smiling, concerned, unwell ..."""
    concepts = emoji.pack().concepts
    faces = tuple(name for name in emoji.pack().subgroups if name.startswith("face-"))
    artists, rows = emoji.pack().split(split)
    is_face = np.array([concepts[n].subgroup in faces for n in rows])
    chosen = _spread(np.flatnonzero(is_face), most)
    labels = np.array([faces.index(concepts[n].subgroup) for n in rows[chosen]], np.int32)
    return Asked(_plain(emoji.cutouts(artists[chosen], rows[chosen]), size), labels, faces)


def kind(split: str, size: int, most: int | None = None) -> Asked:
    """Not how it looks but what it shows, for comparison: one of 95 subgroups."""
    cutouts, rows, _ = _drawn(split, most)
    names = emoji.pack().subgroups
    labels = np.array([names.index(emoji.pack().concepts[n].subgroup) for n in rows], np.int32)
    return Asked(_plain(cutouts, size), labels, names)


QUESTIONS = (direction, colour, count, relation, expression, kind)


def painted(cutouts: np.ndarray, hues: np.ndarray) -> np.ndarray:
    """[M S S 4] uint8, [M] in turns of the colour circle -> [M S S 4]: HSV's hue is set, saturation and value stay."""
    colours = cutouts[..., :3].astype(np.float32)
    low, high = colours.min(-1, keepdims=True), colours.max(-1, keepdims=True)
    pure = np.clip(np.abs((6 * np.asarray(hues)[:, None] + [0, 4, 2]) % 6 - 3) - 1, 0, 1)[:, None, None]  # [M 1 1 3]
    rgb = (low + (high - low) * pure).round().astype(np.uint8)
    return np.concatenate([rgb, cutouts[..., 3:]], -1)


def chroma(cutouts: np.ndarray) -> np.ndarray:
    """[M S S 4] uint8 -> [M] in [0, 1]: how far from grey, as the mean over what is drawn."""
    alpha = cutouts[..., 3].astype(np.float32)
    spread = np.ptp(cutouts[..., :3], axis=-1) / np.float32(255)
    return (alpha * spread).sum((1, 2)) / np.maximum(alpha.sum((1, 2)), 1)


def _drawn(split: str, most: int | None) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Drawings [M S S 4], their concepts [M] and random numbers of the split."""
    artists, concepts = emoji.pack().split(split)
    chosen = _spread(np.arange(len(concepts)), most)
    rng = np.random.default_rng((0xDE7A11, emoji.SPLITS.index(split)))
    return emoji.cutouts(artists[chosen], concepts[chosen]), concepts[chosen], rng


def _copies(cutouts: np.ndarray, layouts: scenes.Layout, size: int) -> np.ndarray:
    """Each drawing as often as its layout has it: [M S S 4] -> [M s s 3]."""
    copies = repeat(emoji.resize(cutouts, 32), "m h w c -> m n h w c", n=layouts.scale.shape[1])
    return scenes.compose(copies, layouts, size, may_flip=False).images


def _spread(rows: np.ndarray, most: int | None) -> np.ndarray:
    if most is None or most >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _plain(cutouts: np.ndarray, size: int) -> np.ndarray:
    return augment.plain(emoji.resize(cutouts, size), size)
