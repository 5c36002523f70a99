"""How close pictures that went through a tokenizer are to what they were.

    psnr    10 log10(peak^2 / mean squared error), picture by picture
    ssim    Wang et al. 2004, doi 10.1109/TIP.2003.819861: 11 x 11 Gaussian of sigma 1.5, K1 .01, K2 .03

Both are paired and know nothing of realism: a blurred picture scores well. The mean of PSNRs is not the PSNR of the
mean error; the former is what is reported.

N pictures, H W pixels. Pictures are uint8, as they are shown.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.evals import features, generation
from mmjax.evals.judges import Both, committed, look, sha256s
from mmjax.nn.outputs import Result
from mmjax.ops import quantize
from mmjax.report import pictures

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03
CHUNK = 128  # pictures that are filtered at once


def psnr(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """uint8 [N H W C] twice -> [N] in dB; infinite where two are equal."""
    _check(images, others)
    error = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(images, others, strict=True)]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / np.array(error))


def ssim(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """uint8 [N H W C] twice, sides of 11 and more -> [N], the mean over channels and over windows that lie inside."""
    _check(images, others)
    if min(images.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM looks through windows of {WINDOW} pixels, got pictures of {list(images.shape[1:3])}")
    parts = [_ssim(images[i : i + CHUNK], others[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    return np.concatenate(parts)


def _ssim(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    x, y = images.astype(np.float64), others.astype(np.float64)
    rows, columns = (_gaussian(side) for side in x.shape[1:3])

    def mean(z: np.ndarray) -> np.ndarray:  # [n H W C] -> [n H-10 W-10 C]
        return np.einsum("ih,nhwc,jw->nijc", rows, z, columns, optimize=True)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return np.mean(light * (2 * cov + c2) / (var_x + var_y + c2), axis=(1, 2, 3))


def _gaussian(side: int) -> np.ndarray:
    """[side-10 side]: each row a window that lies inside, of sum 1."""
    at = np.arange(side)[None] - np.arange(side - WINDOW + 1)[:, None] - WINDOW // 2
    weights = np.where(abs(at) <= WINDOW // 2, np.exp(-0.5 * (at / SIGMA) ** 2), 0.0)
    return weights / weights.sum(1, keepdims=True)


def _check(images: np.ndarray, others: np.ndarray) -> None:
    for one in (images, others):
        if one.dtype != np.uint8 or one.ndim != 4 or one.shape != images.shape:
            raise ValueError(
                "pictures must be uint8 [N H W C], two lots of one shape, got "
                f"{images.dtype} {list(images.shape)} and {others.dtype} {list(others.shape)}"
            )


def bits(nats: float, tokens: int, values: int) -> float:
    """Nats a token, tokens a picture, values a picture (H W for bits a pixel, 3 H W for bits a dimension) -> bits.

    Of the tokens, not of the picture: numbers of different tokenizers do not compare. Uniform ids of V codes: nats
    log(V)."""
    return nats * tokens / (values * np.log(2))


def beside(lots: Mapping[str, np.ndarray], groups: int = 5, rows: int = 8) -> np.ndarray:
    """Title -> pictures [N H W 3], row n of each about one thing -> a sheet of `groups` x `rows` of them, spread evenly
    over all: nobody picks them."""
    shown = features.spread(len(next(iter(lots.values()))), groups * rows)
    shown = shown[: max(len(shown) // groups, 1) * groups]
    groups = min(groups, len(shown))
    sheet = [[one[n] for n in row for one in lots.values()] for row in shown.reshape(-1, groups)]
    return pictures.contact_sheet(sheet, list(lots) * groups, size=64)


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """A tokenizer's pictures of a split beside the real ones: SPLIT/psnr and ssim, the judges' Frechet distances
    (`frechet_a`, `frechet_b`: no generator on these tokens can do better but by luck), and of the codes `codes_used`,
    the share that is used at all, and `perplexity`, both over the whole split.

    rebuild: (model, variables, images uint8 [B H W 3]) -> images uint8 [B H W 3], ids [B ...] or None. Under jit.
    """

    rebuild: Callable
    split: str
    num_codes: int = 0  # K; 0 where there are no codes
    count: int = 1_500  # pictures at most, spread evenly over the split
    judges: Both = committed
    batch: int = 100

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused. Reads data.pairs."""
        images = data.pairs(self.split).images
        images = images[features.spread(len(images), self.count)]
        made, ids = self._through(model, variables, images)
        metrics = {"psnr": float(np.mean(psnr(images, made))), "ssim": float(np.mean(ssim(images, made)))}
        for name, judge in zip("ab", self.judges(), strict=True):
            sides = (generation.moments(look(judge, one)) for one in (images, made))
            metrics[f"frechet_{name}"] = generation.frechet(*sides)
        if self.num_codes:
            metrics |= {name: float(x) for name, x in quantize.usage(ids, self.num_codes).items()}
        prefixed = {f"{self.split}/{name}": value for name, value in metrics.items()}
        return Result(prefixed, {f"{self.split} rebuilt": beside({"real": images, "rebuilt": made})})

    def judge(self) -> str:
        """What is recorded beside the numbers."""
        return sha256s(self.judges)

    def _through(self, model: Any, variables: dict, images: np.ndarray) -> tuple[np.ndarray, Any]:
        rebuild = jax.jit(lambda variables, images: self.rebuild(model, variables, images))
        order = np.arange(-(-len(images) // self.batch) * self.batch) % len(images)  # the last batch is filled up
        parts = [rebuild(variables, images[rows]) for rows in order.reshape(-1, self.batch)]
        made, ids = zip(*parts, strict=True)
        keep = len(images)
        return np.concatenate(made)[:keep], np.concatenate(ids)[:keep] if self.num_codes else None
