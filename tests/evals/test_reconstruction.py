"""PSNR and SSIM against scikit-image, by stored numbers; what the eval of tokenizers reports."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import pipeline
from mmjax.evals import generation, judges, reconstruction

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "generation.npz")


def test_psnr_and_ssim_are_scikit_images(monkeypatch):
    images, others = GOLDEN["images"], GOLDEN["others"]
    np.testing.assert_allclose(reconstruction.psnr(images, others), GOLDEN["psnr"], rtol=1e-12)
    np.testing.assert_allclose(reconstruction.ssim(images, others), GOLDEN["ssim"], atol=1e-6)
    monkeypatch.setattr(reconstruction, "CHUNK", 3)
    np.testing.assert_allclose(reconstruction.ssim(images, others), GOLDEN["ssim"], atol=1e-6)


def test_the_same_pictures_and_a_known_error():
    images = GOLDEN["images"]
    assert np.isinf(reconstruction.psnr(images, images)).all()
    np.testing.assert_allclose(reconstruction.ssim(images, images), 1)
    grey = np.full((2, 16, 16, 3), 100, np.uint8)
    np.testing.assert_allclose(reconstruction.psnr(grey, grey + 5), 20 * np.log10(255 / 5))


@pytest.mark.parametrize(
    ("images", "others", "message"),
    [
        (np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 16, 3)), "uint8"),
        (np.zeros((1, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8), r"got uint8 \[1, 16, 16, 3\]"),
        (np.zeros((1, 8, 16, 3), np.uint8), np.zeros((1, 8, 16, 3), np.uint8), "windows of 11 pixels"),
    ],
)
def test_what_cannot_be_scored_is_refused(images, others, message):
    with pytest.raises(ValueError, match=message):
        reconstruction.ssim(images, others)


def test_bits_of_uniform_tokens():
    assert reconstruction.bits(np.log(1024), 64, 64) == pytest.approx(10)
    assert reconstruction.bits(np.log(1024), 64, 3 * 32 * 32) == pytest.approx(640 / 3072)


@dataclasses.dataclass(frozen=True)
class Pictures:
    def pairs(self, split):
        images = np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), np.uint8)
        return pipeline.Pairs(images, [""] * 23, np.zeros(23, np.int32), ("",))


def tiny():
    model = judges.TwinJudge(judges.JudgeConfig.tiny())
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
    return judges.Judge(model, variables), judges.Judge(model, variables)


def halved(model, variables, images):  # the lowest bit lost; codes of the upper left pixel
    return images // 2 * 2, images[:, 0, 0] // 64


@pytest.mark.slow
def test_rebuilt_counts_codes_over_the_whole_split_and_not_what_fills_the_last_batch():
    rebuilt = reconstruction.Rebuilt(halved, "test", num_codes=8, judges=tiny, batch=10)
    result = rebuilt(None, {}, Pictures(), jax.random.key(0))
    images = Pictures().pairs("test").images
    wanted = reconstruction.psnr(images, images // 2 * 2).mean()
    assert result.metrics["test/psnr"] == pytest.approx(wanted)
    assert result.metrics["test/ssim"] == pytest.approx(reconstruction.ssim(images, images // 2 * 2).mean())
    share = np.bincount((images[:, 0, 0] // 64).ravel(), minlength=8) / (23 * 3)
    entropy = -sum(p * np.log(p) for p in share if p)
    assert result.metrics["test/perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)
    assert result.metrics["test/codes_used"] == 0.5
    x, y = (judges.look(tiny()[0], one) for one in (images, images // 2 * 2))
    assert result.metrics["test/frechet_a"] == pytest.approx(generation.frechet_of(x, y), rel=1e-4)
    assert result.pictures["test rebuilt"].ndim == 3


def test_rebuilt_without_codes_has_none():
    rebuilt = reconstruction.Rebuilt(lambda m, v, images: (images, jnp.zeros(len(images))), "test", judges=tiny)
    metrics = rebuilt(None, {}, Pictures(), jax.random.key(0)).metrics
    assert set(metrics) == {"test/psnr", "test/ssim", "test/frechet_a", "test/frechet_b"}
    assert metrics["test/frechet_a"] < 1e-6
