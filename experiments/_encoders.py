"""Frozen encoders side by side, on an artist that none of them saw: python -m experiments._encoders [--record]

    raw pixels, and DINO's network before its first step    what there is without any training
    dino_emoji, dinov2_emoji                                 from drawings alone
    clip_emoji, siglip_emoji                                 from drawings and their names

Each by its class token ("DINO") and, as pixels are, by all of its patches in their places ("DINO, patches").

What is asked: the subgroup of Twemoji's drawings by k-NN and by a linear probe fitted on the training artists, the
concept by the nearest of their drawings, and where objects are in scenes of Twemoji's, by the class token's attention
and by a linear probe of patches. The runs cost about the same (minutes: README).
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax
from einops import rearrange
from flax import linen as nn

from experiments import _study
from mmjax.evals.knn import KNN, Nearest
from mmjax.evals.probe import LinearProbe
from mmjax.evals.segmentation import Attention, PatchProbe
from mmjax.nn.outputs import Result
from mmjax.ops import images as image_ops

SPLIT = "twemoji"
WHOLE = (KNN(SPLIT), LinearProbe(SPLIT), Nearest(SPLIT))
PLACES = (Attention(SPLIT), PatchProbe(SPLIT))


class Pixels(nn.Module):
    """No encoder: colours in [-1, 1], one after the other."""

    def encode_image(self, images: jax.Array) -> jax.Array:  # [B H W 3] uint8 -> [B H W 3 as one]
        return rearrange(image_ops.to_float(images, 0.5, 0.5), "b h w c -> b (h w c)")


class Patches(nn.Module):
    """Of a model with `encode_patches`, all of them as one embedding, as the raw pixels are."""

    inner: nn.Module

    def encode_image(self, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B N * D]
        return rearrange(self.inner.encode_patches(images), "b n d -> b (n d)")


def patches(trained: _study.Trained) -> _study.Trained:
    inside = {name: {"inner": tree} for name, tree in trained.variables.items()}
    return trained._replace(model=Patches(trained.model), variables=inside)


def measured(trained: _study.Trained, evals: Iterable) -> Result:
    found = [one(*trained, jax.random.key(0)) for one in evals]
    metrics = {name: value for one in found for name, value in one.metrics.items()}
    return Result(metrics, {title: picture for one in found for title, picture in one.pictures.items()})


def larger_scenes(trained: _study.Trained, data: object) -> _study.Trained:
    """CLIP sees the scenes that DINO sees, twice as large as what it learned from."""
    config = trained.model.config
    vision = dataclasses.replace(config.vision, resize=image_ops.resize_cubic)
    return trained._replace(model=type(trained.model)(dataclasses.replace(config, vision=vision)), data=data)


def measure(runs: Path, size: str) -> dict[str, Result]:
    folder = {stem: runs / f"{stem}_emoji-{size}" for stem in ("dino", "dinov2", "clip", "siglip")}
    dino = _study.load(folder["dino"])
    encoders = {
        "untrained": _study.untrained(folder["dino"]),
        "DINO": dino,
        "DINOv2": _study.load(folder["dinov2"]),
        "CLIP": larger_scenes(_study.load(folder["clip"]), dino.data),
    }
    found = {"raw pixels": measured(_study.Trained(Pixels(), {}, dino.data), WHOLE)}
    found |= {name: measured(one, WHOLE + PLACES) for name, one in encoders.items()}
    found["SigLIP"] = measured(_study.load(folder["siglip"]), WHOLE)
    return found | {f"{name}, patches": measured(patches(one), WHOLE) for name, one in encoders.items()}


if __name__ == "__main__":
    _study.main("encoders", __doc__, measure)
