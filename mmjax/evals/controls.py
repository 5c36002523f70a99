"""What must score badly, and where: pictures made of real ones, on which a set of metrics is tried.

    (images uint8 [N H W 3], labels, rng) -> images uint8 [N H W 3]      row n has the labels of row n

A set of metrics is worth something if it puts these in order. `blurred` and `noisy` grow worse by degrees; `patches`
and `means` have the right colours; `few` lacks all variety, and of `shuffled` nothing is wrong but the labels. Real
drawings themselves are what a network gives that has learned them by heart.
"""

import functools
from collections.abc import Callable

import numpy as np
from einops import rearrange

from mmjax.data.emoji_drawings import Labels

Control = Callable[[np.ndarray, Labels, np.random.Generator], np.ndarray]


def blurred(times: int) -> Control:
    """By a binomial filter of 3 x 3, over and over; edges are continued."""
    return functools.partial(_blurred, times)


def _blurred(times: int, images: np.ndarray, labels: Labels, rng: np.random.Generator) -> np.ndarray:
    x = images.astype(np.float32)
    for _ in range(times):
        for axis in (1, 2):
            x = np.moveaxis(x, axis, 0)
            before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
            x = np.moveaxis((before + 2 * x + after) / 4, 0, axis)
    return _bytes(x)


def noisy(sigma: float) -> Control:
    """Gaussian noise of deviation `sigma`, in values of [0, 1]."""
    return functools.partial(_noisy, sigma)


def _noisy(sigma: float, images: np.ndarray, labels: Labels, rng: np.random.Generator) -> np.ndarray:
    return _bytes(images + 255 * sigma * rng.standard_normal(images.shape, dtype=np.float32))


def patches(images: np.ndarray, labels: Labels, rng: np.random.Generator, side: int = 8) -> np.ndarray:
    """Each square of `side` pixels is another picture's."""
    cells = rearrange(images, "n (h p) (w q) c -> (h w) n p q c", p=side, q=side)
    mixed = np.stack([cell[rng.permutation(len(cell))] for cell in cells])
    return rearrange(mixed, "(h w) n p q c -> n (h p) (w q) c", h=images.shape[1] // side)


def means(images: np.ndarray, labels: Labels, rng: np.random.Generator) -> np.ndarray:
    """The mean picture of a subgroup: what a network gives that learned nothing else."""
    found = np.empty_like(images)
    for one in np.unique(labels.subgroup):
        mine = labels.subgroup == one
        found[mine] = _bytes(images[mine].mean(0))
    return found


def few(images: np.ndarray, labels: Labels, rng: np.random.Generator) -> np.ndarray:
    """One picture for each subgroup, again and again."""
    _, first, which = np.unique(labels.subgroup, return_index=True, return_inverse=True)
    return images[first[which]]


def shuffled(images: np.ndarray, labels: Labels, rng: np.random.Generator) -> np.ndarray:
    """The same pictures with labels of others."""
    return images[rng.permutation(len(images))]


def noise(images: np.ndarray, labels: Labels, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, images.shape, np.uint8)


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
