"""What codebooks are made of: against cases that are known by hand, and NumPy's own words for entropy and rank."""

import math

import numpy as np
import pytest

from mmjax.evals import codebooks
from mmjax.models import frequency_tokenizer
from mmjax.models.frequency_tokenizer import TokenizerConfig
from mmjax.ops import fourier


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def test_an_orthonormal_basis_has_no_coherence_and_full_rank_and_copies_have_the_opposite():
    basis = fourier.dct_matrix(12)
    assert codebooks.coherence(basis) < 1e-12
    assert codebooks.mean_coherence(basis) < 1e-12
    assert codebooks.effective_rank(basis) == pytest.approx(12)
    same = np.outer([1, -2, 3], random(12))
    assert codebooks.coherence(same) == pytest.approx(1)
    assert codebooks.effective_rank(same) == pytest.approx(1)
    two = np.diag([3.0, 1.0])
    assert codebooks.effective_rank(two) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_coherence_is_that_of_the_worst_pair_in_whatever_block_it_is(monkeypatch):
    codes = random(30, 6)
    codes[29] = -2 * codes[3] + 0.05 * codes[4]
    unit = codes / np.sqrt((codes**2).sum(1, keepdims=True))
    cosines = [abs(unit[i] @ unit[j]) for i in range(30) for j in range(i)]
    for rows in (7, 1024):
        monkeypatch.setattr(codebooks, "ROWS", rows)
        assert codebooks.coherence(codes) == pytest.approx(max(cosines))
        assert codebooks.mean_coherence(codes) == pytest.approx(np.mean(cosines))
    assert codebooks.coherence(random(30, 6)) > codebooks.welch_bound(30, 6)
    three = [[1, 0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]]  # corners of a triangle reach it
    assert codebooks.coherence(np.array(three)) == pytest.approx(codebooks.welch_bound(3, 2)) == 0.5
    assert codebooks.welch_bound(4, 4) == 0


def test_bits_are_entropies_of_tables():
    codes = np.array([[0, 5, 1], [0, 5, 2], [1, 5, 3], [1, 5, 4]])
    assert codebooks.entropy(codes[:, 0]) == 1
    assert codebooks.coding_bits(codes, np.arange(3)) == 1 + 0 + 2
    assert codebooks.coding_bits(codes[:, 2:]) == 2
    pair = np.array([0, 0, 1, 1, 1, 2, 3, 4]) / 1  # first and last column in one table
    share = np.unique(pair, return_counts=True)[1] / 8
    wanted = 2 * -(share * np.log2(share)).sum()
    assert codebooks.coding_bits(codes, np.array([0, 1, 0])) == pytest.approx(wanted)


@pytest.mark.parametrize("basis", [fourier.FFT, fourier.DCT])
def test_fine_steps_cost_what_the_formulas_say(basis):
    """Of Gaussian noise: the error of a step is its square / 12, the entropy that of the density less log2 of it."""
    c, deviation = TokenizerConfig.tiny(basis=basis), 40.0
    images = np.clip(np.rint(128 + deviation * random(300, 8, 8, 3)), 0, 255).astype(np.uint8)
    statistics = frequency_tokenizer.fit(c, images)
    coarse, fine = (codebooks.rate(c, statistics, images, step) for step in (0.2, 0.1))
    assert fine.error == pytest.approx(0.1**2 / 12, rel=0.01)
    assert fine.psnr == pytest.approx(10 * math.log10(4 / (0.1**2 / 12)), abs=0.1)
    wanted = 3 * math.log2(deviation / 127.5 * math.sqrt(2 * math.pi * math.e) / 0.1)
    assert fine.bits_per_pixel == pytest.approx(wanted, rel=0.01)
    assert fine.bits_per_pixel - coarse.bits_per_pixel == pytest.approx(3, abs=0.1)  # a bit of each channel
    assert coarse.psnr < fine.psnr
    assert coarse.zeros > fine.zeros


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="1 codes of length 0"):
        codebooks.coherence(np.array([[0.0, 0.0], [1, 0]]))
    with pytest.raises(ValueError, match="has no rank"):
        codebooks.effective_rank(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"codes must be \[B N\] and groups \[N\]"):
        codebooks.coding_bits(np.zeros((2, 3), int), np.zeros(2, int))
