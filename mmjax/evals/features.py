"""Embeddings of a whole split, and places in a ranking: what the evals of image-text models share.

A model is used through `encode_image` and `encode_text` only, data through `pairs`, `groups` and `tokenize`.

N images, C candidates (names or classes), Q queries, E width of the shared space.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.ops import sharding
from mmjax.report.page import CHANCE

BATCH_SIZE = 256  # rows that are encoded at once


@partial(jax.jit, static_argnames=("model", "method"))
def _apply(model: Any, variables: dict, inputs: dict, method: str) -> jax.Array:
    """{name: [B ...]} -> [B E]. On a mesh each device encodes its rows, and every process gets all of them."""
    inputs = {name: sharding.constrain(x, sharding.BATCH) for name, x in inputs.items()}
    return sharding.constrain(model.apply(variables, **inputs, method=method).astype(jnp.float32), None)


def encode(model: Any, variables: dict, inputs: dict, method: str) -> np.ndarray:
    """{name: [N ...]} -> [N ...] float32: what `method` of the model gives for each row."""
    count = len(next(iter(inputs.values())))
    if not count:
        raise ValueError(f"there is nothing to {method.replace('_', ' ')}: the split or the list is empty")
    shards = sharding.shards(*sharding.BATCH)
    size = -(-min(count, BATCH_SIZE) // shards) * shards  # each device has as many rows
    rows = np.arange(-(-count // size) * size) % count  # the last batch is filled up from the start: one compile
    batches = ({name: x[rows[i : i + size]] for name, x in inputs.items()} for i in range(0, len(rows), size))
    return np.concatenate([np.asarray(_apply(model, variables, batch, method)) for batch in batches])[:count]


def unit(x: np.ndarray) -> np.ndarray:  # [... E] -> [... E] of length 1
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encode_images(model: Any, variables: dict, images: np.ndarray) -> np.ndarray:
    """[N H W 3] uint8, or float already normalised -> [N E] float32 of length 1."""
    return unit(encode(model, variables, {"images": images}, "encode_image"))


def encode_texts(model: Any, variables: dict, tokenize: Callable, texts: Sequence[str]) -> np.ndarray:
    """N texts -> [N E] float32 of length 1. `tokenize` pads to a fixed length."""
    return unit(encode(model, variables, dict(tokenize(texts)), "encode_text"))


def encode_names(
    model: Any, variables: dict, tokenize: Callable, names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """C names -> [C E] of length 1: each name's mean over the templates ("a drawing of {}") it is put into.

    Radford et al. 2021, section 3.1.4: normalise, mean, normalise.
    """
    embeds = [encode_texts(model, variables, tokenize, [t.replace("{}", name) for name in names]) for t in templates]
    return unit(np.mean(embeds, axis=0))


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """scores [Q C], right [Q C] bool -> [Q] place of each query's best right candidate, 1 = first.

    Ties are lost: a wrong candidate with the same score stands before. A score that is not a number ranks a right
    candidate last and a wrong one first, so a model that has diverged or collapsed never looks good.
    """
    if not right.any(axis=1).all():
        raise ValueError(f"{int((~right.any(axis=1)).sum())} of {len(right)} queries have no right candidate to rank")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + (~(scores < best) & ~right).sum(axis=1)


def chance_within(right: np.ndarray) -> np.ndarray:
    """right [Q C] bool -> [C]: how often a random order has a right candidate among its first 1, 2, ... C."""
    total = right.shape[1]
    counts, queries = np.unique(right.sum(axis=1), return_counts=True)
    drawn = np.arange(total)
    missed = np.cumprod(np.clip(total - counts[:, None] - drawn, 0, None) / (total - drawn), axis=1)
    return 1 - np.average(missed, axis=0, weights=queries)


def ranking_metrics(prefix: str, scores: np.ndarray, right: np.ndarray, within: Sequence[int]) -> dict[str, float]:
    """Share of queries with a right candidate in the first `within`, and the median place; chance beside each."""
    places, chance = ranks(scores, right), chance_within(right)
    metrics = {
        f"{prefix}median_rank": float(np.median(places)),
        f"{prefix}median_rank{CHANCE}": float(1 + np.searchsorted(chance, 0.5 - 1e-9)),
    }
    for k in within:
        metrics[f"{prefix}R@{k}"] = float(np.mean(places <= k))
        metrics[f"{prefix}R@{k}{CHANCE}"] = float(chance[min(k, len(chance)) - 1])
    return metrics


def accuracy_metrics(name: str, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """scores [N C], labels [N] -> share of rows whose own class scores highest, beside a blind guess among C."""
    classes = scores.shape[1]
    places = ranks(scores, one_hot(labels, classes))
    return {name: float(np.mean(places == 1)), f"{name}{CHANCE}": 1 / classes}


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:  # [N] -> [N C] bool
    return labels[:, None] == np.arange(classes)


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of `range(count)`, evenly spaced: what pictures show, so that nobody picks them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def grouped_images(
    model: Any, variables: dict, data: Any, splits: Sequence[str]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """(embeddings [N E], group [N]) of each split, and the groups' labels, which all splits must share."""
    groups = [data.groups(split) for split in splits]
    labels = tuple(groups[0][1])
    for split, (_, other) in zip(splits, groups, strict=True):
        if tuple(other) != labels:
            raise ValueError(
                f"the groups of {splits[0]!r} and {split!r} differ ({len(labels)} and {len(other)} labels)"
            )
    embeds = [encode_images(model, variables, data.pairs(split).images) for split in splits]
    return [(x, np.asarray(group)) for x, (group, _) in zip(embeds, groups, strict=True)], labels
