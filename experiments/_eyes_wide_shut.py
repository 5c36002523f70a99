"""What CLIP does not see, and whether DINO's features help: python -m experiments._eyes_wide_shut [--record]

    clip_emoji, dino_emoji, dinov2_emoji

Linear probes, fitted on the training artists' drawings, are read at Twemoji's: which way up a drawing is, what colour,
how many copies, on which side of a large copy a small one lies, which subgroup of faces; and, for comparison, what it
shows (data/emoji_details.py). Of each encoder they get the mean of the patch tokens (CLIP's layer before the last,
DINO's last without its norm, each in its own colours), every column scaled to mean 0 and deviation 1. Additive: half of
CLIP's and half of DINO's columns. Interleaved: both side by side, which is what a linear readout of interleaved tokens
with linear adapters can see, and twice as wide. "embedding" rows read CLIP's projected embedding and DINO's class token
instead. First versions of colour, count and relation were answered nearly always, by Twemoji's drawings too; how hard
they are now was chosen on the validation drawings of the training artists.

CLIP-blind pairs are Twemoji's drawings of different concepts: cosine above all but 1 in 1,000 in one encoder, and below
the median of the other; chance is what independent encoders would give.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import _study
from mmjax.data import emoji, emoji_details
from mmjax.data.emoji_details import Asked
from mmjax.evals import clip_blind, encoder, features, probe
from mmjax.models import features as mof
from mmjax.nn.outputs import Result
from mmjax.report import pictures
from mmjax.report.page import CHANCE

SPLIT, SHOWN = emoji.HELD_OUT, 12
NEAR, FAR = 0.999, 0.5  # quantiles of the cosines of all pairs
LARGEST = {"tiny": 200}  # pictures of a question; others have 4,000 at most
Parts = dict[str, np.ndarray]  # what is read of an encoder -> [M D]


def read_clip(model: nn.Module, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B D+E]
    return jnp.concatenate([mof.patches(model, images, mof.before_last).mean(1), model.encode_image(images)], -1)


def read_dino(model: nn.Module, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B D+E]
    return jnp.concatenate([mof.patches(model, images, mof.last_block).mean(1), model.encode_image(images)], -1)


def read(name: str, trained: _study.Trained, images: np.ndarray) -> Parts:
    both = features.encode(
        trained.model, trained.variables, {"images": images}, read_clip if name == "CLIP" else read_dino
    )
    width = trained.model.config.vision.width
    return {name: both[:, :width], f"{name} embedding": both[:, width:]}


def scaled(train: Parts, test: Parts) -> tuple[Parts, Parts]:
    """Columns of mean 0 and deviation 1 on the training artists, so that no branch is louder than the other."""
    moments = {name: (x.mean(0), x.std(0) + 1e-6) for name, x in train.items()}
    return tuple({name: (x - moments[name][0]) / moments[name][1] for name, x in one.items()} for one in (train, test))


def mixed(parts: Parts, partner: str) -> Parts:
    """Means of the mixed tokens; the mean of a sum is the sum of the means."""
    clip, dino = parts["CLIP"], parts[partner]
    return {
        f"CLIP + {partner}, additive": np.asarray(mof.additive(clip[:, None], dino[:, None], 0.5))[:, 0],
        f"CLIP + {partner}, interleaved": np.concatenate([clip, dino], 1),
    }


def accuracies(encoders: Mapping[str, _study.Trained], train: Asked, test: Asked) -> dict[str, float]:
    sides = [{}, {}]
    for name, trained in encoders.items():
        for side, asked in zip(sides, (train, test), strict=True):
            side |= read(name, trained, asked.images)
    sides = scaled(*sides)
    for partner in [name for name in encoders if name != "CLIP"]:
        for side in sides:
            side |= mixed(side, partner)
    found = {}
    for row in sides[0]:
        scores = probe.scores(sides[0][row], train.labels, sides[1][row], len(train.answers))
        found[row] = float(np.mean(scores.argmax(1) == test.labels))
    return found


def blind(encoders: Mapping[str, _study.Trained], partner: str) -> Result:
    """Pairs that CLIP takes for the same and the partner does not, and the other way round."""
    pairs = encoders["CLIP"].data.pairs(SPLIT)
    vectors = {
        name: clip_blind.vectors_of(*encoders[name][:2], pairs.images, clip_blind.embedding)
        for name in ("CLIP", partner)
    }
    metrics, shown = {}, {}
    for one, other in (("CLIP", partner), (partner, "CLIP")):
        sides, said = (vectors[one], vectors[other]), (f"{one}'s embedding", f"{other}'s embedding")
        thresholds = clip_blind.quantiles(*sides, NEAR, FAR)
        found = clip_blind.mine(*sides, thresholds, limit=clip_blind.SHOWN, vectors=said)
        name = f"held_out/{one.lower()}_blind_pairs"
        metrics |= {
            name: found.found,
            f"{name}{CHANCE}": round((1 - NEAR) * FAR * found.compared),
            f"{name}_above": found.thresholds.above,
            f"{name}_below": found.thresholds.below,
            f"{name}_pictures": found.pictures,
            f"{name}_published": clip_blind.mine(*sides, limit=1).found,
        }
        shown[f"{one}-blind"] = clip_blind.gallery(found, pairs.images)
        print(found)
    return Result(metrics, shown)


def sheet(asked: list[Asked]) -> np.ndarray:
    """A row of pictures for each question."""
    rows = [[one.images[n] for n in np.linspace(0, len(one.images) - 1, SHOWN).round().astype(int)] for one in asked]
    names = ", ".join(question.__name__ for question in emoji_details.QUESTIONS)
    return pictures.captioned(pictures.contact_sheet(rows, [""] * SHOWN), f"Questions, from above: {names}.")


def measure(runs: Path, size: str) -> dict[str, Result]:
    folders = {name: runs / f"{name.lower()}_emoji-{size}" for name in ("CLIP", "DINO", "DINOv2")}
    encoders = {name: _study.load(path) for name, path in folders.items()}
    pixels, metrics, seen = encoders["CLIP"].model.config.vision.image_size, {}, []
    for question in emoji_details.QUESTIONS:
        train, test = (question(split, pixels, LARGEST.get(size, 4_000)) for split in ("train", SPLIT))
        seen.append(test)
        for row, value in accuracies(encoders, train, test).items():
            name = f"held_out/{question.__name__}_accuracy"
            metrics.setdefault(row, {}).update({name: value, f"{name}{CHANCE}": encoder.most_frequent(test.labels)})
    rows = {row: Result(numbers) for row, numbers in metrics.items()}
    rows["CLIP"] = rows["CLIP"]._replace(pictures={"questions": sheet(seen)})
    partners = [name for name in encoders if name != "CLIP"]
    return rows | {f"CLIP-blind beside {partner}": blind(encoders, partner) for partner in partners}


if __name__ == "__main__":
    _study.main("eyes_wide_shut", __doc__, measure)
