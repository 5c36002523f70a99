"""What a codebook is made of, next to an orthonormal basis: how alike its codes are, how many directions they fill, and
what a picture costs in bits at which error.

    coherence, welch_bound      0 for an orthonormal basis; no K codes of D numbers are less alike than the bound
    effective_rank              D for an orthonormal basis, 1 where all codes lie on a line
    coding_bits                 bits by the entropy of codes, of any tokenizer
    rate                        bits and PSNR of rounded frequencies (models/frequency_tokenizer.py) at one step

K codes of D numbers. All is NumPy in float64, on the host. An entropy that is counted from few codes is too small.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evals import reconstruction
from mmjax.models import frequency_tokenizer
from mmjax.models.frequency_tokenizer import Statistics, TokenizerConfig
from mmjax.ops import images as image_ops

ROWS = 1024  # codes that are compared with all others at a time


def _cosines(codebook: np.ndarray) -> Iterator[np.ndarray]:
    """Absolute cosines of some codes with all, [rows K], 0 with itself."""
    codebook = np.asarray(codebook, np.float64)
    lengths = np.linalg.norm(codebook, axis=1)
    if codebook.ndim != 2 or len(codebook) < 2 or not (lengths > 0).all():
        raise ValueError(
            f"a codebook is [K D] with at least 2 codes, none of them 0, got {codebook.shape} with "
            f"{int((lengths == 0).sum())} codes of length 0"
        )
    unit = codebook / lengths[:, None]
    for start in range(0, len(unit), ROWS):
        found = np.abs(np.einsum("kd,jd->kj", unit[start : start + ROWS], unit))
        found[np.arange(len(found)), start + np.arange(len(found))] = 0
        yield found


def coherence(codebook: np.ndarray) -> float:
    """[K D] -> the largest absolute cosine of two codes, in [0, 1]: Donoho and Huo 2001, "Uncertainty principles and
    ideal atomic decomposition"."""
    return float(max(found.max() for found in _cosines(codebook)))


def mean_coherence(codebook: np.ndarray) -> float:
    """[K D] -> the mean over all pairs of two codes."""
    count = len(codebook)
    return float(sum(found.sum() for found in _cosines(codebook)) / (count * (count - 1)))


def welch_bound(codes: int, dim: int) -> float:
    """The least coherence that K codes of D numbers can have, 0 where K is no more than D: Welch 1974, "Lower bounds on
    the maximum cross correlation of signals"."""
    return 0.0 if codes <= dim else math.sqrt((codes - dim) / (dim * (codes - 1)))


def effective_rank(codebook: np.ndarray) -> float:
    """[K D] -> the exponential of the entropy of its singular values, divided by their sum: Roy and Vetterli 2007,
    "The effective rank". Codes that share a mean count it as a direction."""
    values = np.linalg.svd(np.asarray(codebook, np.float64), compute_uv=False)
    if not values.sum() > 0:
        raise ValueError(f"a codebook of zeros or NaN has no rank, got {np.shape(codebook)}")
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def entropy(codes: np.ndarray) -> float:
    """Bits of one code, by how often each occurs."""
    _, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def coding_bits(codes: np.ndarray, groups: np.ndarray | None = None) -> float:
    """codes int [B N] of B pictures, groups int [N] of codes that share one table; None: all do -> bits of a picture,
    with the best code for each table that reads one number at a time."""
    codes = np.asarray(codes)
    groups = np.zeros(codes.shape[1], int) if groups is None else np.asarray(groups)
    if codes.ndim != 2 or groups.shape != codes.shape[1:]:
        raise ValueError(f"codes must be [B N] and groups [N], got {codes.shape} and {groups.shape}")
    return sum(entropy(codes[:, groups == group]) * int((groups == group).sum()) for group in np.unique(groups))


class Rate(NamedTuple):
    step: float
    bits_per_pixel: float  # all channels together; a table for each band and channel
    psnr: float  # mean of pictures as they are shown, as of evals/reconstruction.py
    error: float  # mean square of a channel of decoded pixels in [-1, 1]; step**2 / 12 where few codes are 0
    zeros: float  # share of codes that are 0


def rate(c: TokenizerConfig, statistics: Statistics, images: np.ndarray, step: float) -> Rate:
    """images uint8 [B H W 3], rounded at one step for all coefficients; no code is cut off."""
    known = {**statistics, "step": np.full(c.block_numbers, step, np.float32)}

    @jax.jit
    def run(images: jax.Array) -> tuple:
        grain = frequency_tokenizer.grain(c, known)
        codes = frequency_tokenizer.rounded(frequency_tokenizer.values(c, known, images), grain, 2**24)
        decoded = frequency_tokenizer.pictures(c, known, codes * grain)
        error = jnp.mean((decoded - image_ops.to_float(images, 0.5, 0.5)) ** 2)
        return codes, image_ops.to_uint8(decoded, 0.5, 0.5), error

    codes, decoded, error = jax.device_get(run(images))
    bands = np.where(c.layout.numbers < 0, -1, c.bands[c.layout.numbers % c.block_numbers])  # [L g]
    tables = (bands[..., None] * c.channels + np.arange(c.channels)).reshape(-1)
    live = c.live.reshape(-1)
    codes = codes.reshape(len(images), -1)[:, live]
    bits = coding_bits(codes, tables[live]) / math.prod(c.size)
    return Rate(
        step, bits, float(reconstruction.psnr(images, decoded).mean()), float(error), float((codes == 0).mean())
    )
