"""Makes generation.npz: what prdc 0.2, scikit-image 0.26, torchmetrics 1.9 and scipy's sqrtm compute of seeded random
features and pictures. Needs those and torch.

    prdc         precision, recall, density, coverage of two sets of different sizes, with rows that are equal
    frechet      by scipy.linalg.sqrtm of full covariances, of diagonal ones, and of fewer rows than features
    kernel       torchmetrics' unbiased MMD^2 of the whole sets
    ssim, psnr   scikit-image's, of a picture beside itself blurred, noised, darkened, and another picture
"""

from pathlib import Path

import numpy as np
import torch
from prdc import compute_prdc
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image.kid import poly_mmd

HERE = Path(__file__).parent
SETTINGS = {
    "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": -1,
}  # fmt: skip
NAMES = ("precision", "recall", "density", "coverage")


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = (np.cov(one, rowvar=False) for one in (x, y))
    root = linalg.sqrtm(a @ b)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * np.real(root))


def sets(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two that overlap in part; of each some rows stand twice, and a few are in both."""
    real = rng.normal(size=(61, 6)) * [1, 2, 0.5, 1, 1, 3]
    made = 0.8 * rng.normal(size=(47, 6)) * [1, 1, 0.5, 2, 1, 2] + [1, 0, 0, 0, 0.5, 0]
    real[50:54], made[40:43], made[10:14] = real[:4], made[:3], real[20:24]
    return {"real": real.astype(np.float32), "made": made.astype(np.float32)}


def pictures(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """[4 17 23 3] twice."""
    smooth = np.cumsum(np.cumsum(rng.normal(size=(17, 23, 3)), 0), 1)
    one = np.clip(128 + 10 * smooth, 0, 255)
    shifted = (one + np.roll(one, 1, 0) + np.roll(one, 1, 1)) / 3
    others = [shifted, one + 25 * rng.normal(size=one.shape), 0.6 * one, 255 * rng.random(one.shape)]
    images = np.stack([one] * 4)
    return images.round().astype(np.uint8), np.clip(np.round(others), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    rng = np.random.default_rng(45)
    golden = sets(rng)
    real, made = (golden[name].astype(np.float64) for name in ("real", "made"))
    for k in (3, 5):
        found = compute_prdc(real, made, nearest_k=k)
        golden[f"prdc_{k}"] = np.array([found[name] for name in NAMES])
    golden["few"] = rng.normal(size=(9, 12)).astype(np.float32)
    golden["many"] = (rng.normal(size=(40, 12)) + 0.3).astype(np.float32)
    golden["frechet"] = np.array([frechet(real, made), frechet(golden["few"], golden["many"])])
    golden["kernel"] = poly_mmd(torch.tensor(real), torch.tensor(real[::-1].copy() * 1.1)).numpy()
    same = [torch.tensor(one[:47]) for one in (real, made)]
    golden["kernel"] = np.array([golden["kernel"], poly_mmd(*same).numpy()])
    images, others = pictures(rng)
    both = list(zip(images, others, strict=True))
    golden |= {"images": images, "others": others}
    golden["ssim"] = np.array([structural_similarity(a, b, **SETTINGS) for a, b in both])
    golden["psnr"] = np.array([peak_signal_noise_ratio(a, b, data_range=255) for a, b in both])
    np.savez_compressed(HERE / "generation.npz", **golden)
    print({name: golden[name] for name in ("prdc_3", "prdc_5", "frechet", "kernel", "ssim", "psnr")})
