"""Makes platonic.npz: what the official code says of small features, and what null calibration makes of its scores.

    git clone https://github.com/minyoungg/platonic-rep && git -C platonic-rep checkout dcd76ba
    python tests/goldens/make_platonic.py platonic-rep

Needs torch, scikit-learn, tqdm and calibrated-similarity 0.1.1. Official: metrics.py and measure_alignment.py, imported
from the clone and called as they are, on the CPU. Of torchaudio they need a Levenshtein distance only, and get it from
here.
"""

import importlib.metadata
import sys
import types
from pathlib import Path

import numpy as np
import torch
from calibrated_similarity import calibrate, calibrate_layers

OUT = Path(__file__).with_name("platonic.npz")
K = 10


def levenshtein(a: list, b: list) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def official(clone: str):
    """The modules metrics and measure_alignment of the clone."""
    functional = types.ModuleType("torchaudio.functional")
    functional.edit_distance = levenshtein
    audio = types.ModuleType("torchaudio")
    audio.functional = functional
    sys.modules |= {"torchaudio": audio, "torchaudio.functional": functional}
    sys.path.insert(0, clone)
    torch.Tensor.cuda = lambda self, *_, **__: self  # prepare_features wants a GPU
    import measure_alignment
    import metrics

    return metrics, measure_alignment


def waves() -> tuple[np.ndarray, np.ndarray]:
    """Features that a formula gives: 64 rows, widths 16 and 24."""
    i, j = np.arange(64)[:, None], np.arange(24)
    a = np.sin(0.7 * i + 1.3 * j + 0.11 * i * j)[:, :16]
    b = 0.5 * np.sin(0.7 * i + 0.9 * j + 0.11 * i * j) + 0.5 * np.sin(0.31 * i + 2.1 * j + 0.053 * i * j)
    return a, b


def related(rng: np.random.Generator, rows: int, widths: tuple[int, ...], noise: float) -> list[np.ndarray]:
    """Views of one latent with a common mean and a few huge entries, as layers of models have them."""
    latent = rng.normal(size=(rows, 6))
    views = [latent @ rng.normal(size=(6, width)) + noise * rng.normal(size=(rows, width)) + 0.5 for width in widths]
    for view in views:
        view[:, rng.integers(view.shape[1])] *= 30
    return [np.tanh(view / 40) for view in views]


def unit(x: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(x), dim=-1)


def measure(metrics, a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """All of a pair's metrics; svcca of nine seeds, as it draws, and with its singular vectors exact."""
    m, found = metrics.AlignmentMetrics, {}
    for name in ("mutual_knn", "cycle_knn", "lcs_knn", "edit_distance_knn", "cknna"):
        for k in (3, K):
            found[f"{name}/{k}"] = float(getattr(m, name)(a, b, topk=k))
    found[f"cycle_knn/{K}/reversed"] = float(m.cycle_knn(b, a, topk=K))
    found["cknna/all"] = float(m.cknna(a, b, topk=len(a) - 1))
    for name in ("cka", "unbiased_cka"):
        found[name] = float(getattr(m, name)(a, b))
        found[f"{name}/rbf"] = float(getattr(m, name)(a, b, kernel_metric="rbf"))
        found[f"{name}/rbf/0.5"] = float(getattr(m, name)(a, b, kernel_metric="rbf", rbf_sigma=0.5))
    found["svcca"] = np.array([_svcca(m, a, b, seed) for seed in range(9)])
    randomised, torch.svd_lowrank = torch.svd_lowrank, _first_vectors
    found["svcca/exact"] = _svcca(m, a.double(), b.double(), 0)
    torch.svd_lowrank = randomised
    return found


def _svcca(m, a: torch.Tensor, b: torch.Tensor, seed: int) -> float:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  what the official code draws from
    return float(m.svcca(a, b, cca_dim=5))


def _first_vectors(x: torch.Tensor, q: int) -> tuple:
    """What torch.svd_lowrank approximates."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u[:, :q], s[:q], vh[:q].T


def pairs(metrics) -> dict[str, np.ndarray]:
    rng, out = np.random.default_rng(0), {}
    cases = {"waves": waves(), "narrow": related(rng, 64, (33, 21), 0.3), "wide": related(rng, 64, (300, 500), 0.1)}
    for case, (a, b) in cases.items():
        out |= {f"{case}/a": a.astype(np.float32), f"{case}/b": b.astype(np.float32)}
        for name, value in measure(metrics, unit(a.astype(np.float32)), unit(b.astype(np.float32))).items():
            out[f"{case}/{name}"] = value
    return out


def layers(metrics, alignment) -> dict[str, np.ndarray]:
    """Clamping, and the search over pairs of layers: a tensor [N L D], and a list of layers of different widths."""
    rng = np.random.default_rng(1)
    x = np.stack(related(rng, 48, (12, 12, 12), 0.5), axis=1).astype(np.float32)
    y = [one.astype(np.float32) for one in related(rng, 48, (20, 8), 0.5)]
    y[0] += 0.2 * np.pad(x[:, 1], ((0, 0), (0, 8)))
    out = {"layers/x": x, "layers/y/0": y[0], "layers/y/1": y[1]}
    for way, exact in (("exact", True), ("approximate", False)):
        mine = alignment.prepare_features(torch.from_numpy(x), exact=exact)
        theirs = [alignment.prepare_features(torch.from_numpy(one), exact=exact) for one in y]
        out |= {f"layers/{way}/x": mine.numpy(), f"layers/{way}/y/0": theirs[0].numpy()}
        for name in ("mutual_knn", "cycle_knn", "lcs_knn", "edit_distance_knn", "cka", "unbiased_cka", "cknna"):
            score, pair = alignment.compute_score(mine, theirs, metric=name, topk=K)
            out |= {f"layers/{way}/{name}": float(score), f"layers/{way}/{name}/pair": np.array(pair)}
    half = [alignment.prepare_features(torch.from_numpy(one), exact=True).to(torch.bfloat16) for one in (x, *y)]
    score, _ = alignment.compute_score(half[0], half[1:], metric="mutual_knn", topk=K)
    out |= {"layers/bfloat16/mutual_knn": float(score)}
    out |= {"layers/bfloat16/rows": torch.nn.functional.normalize(half[1], dim=-1).float().numpy()}
    apart = [torch.from_numpy(rng.normal(size=(8, 1, 2)).astype(np.float32)) for _ in range(40)]
    apart = next(z for z in zip(apart[::2], apart[1::2], strict=True) if _score(alignment, *z)[1] is None)
    return out | {"apart/x": apart[0].numpy(), "apart/y": apart[1].numpy(), "apart/score": _score(alignment, *apart)[0]}


def _score(alignment, x: torch.Tensor, y: torch.Tensor) -> tuple:
    return alignment.compute_score(x, y, metric="unbiased_cka")


def calibration(metrics) -> dict[str, np.ndarray]:
    """Of given orders; scores by the official code. Two alphas, and layers by their maximum and mean."""
    rng = np.random.default_rng(2)
    a, b, c, d = (one.astype(np.float32) for one in related(rng, 40, (9, 14, 11, 10), 2.0))
    orders = np.stack([rng.permutation(40) for _ in range(60)])
    out = {"null/a": a, "null/b": b, "null/c": c, "null/d": d, "null/orders": orders}
    m = metrics.AlignmentMetrics
    sims = {"mutual_knn": lambda x, y: m.mutual_knn(x, y, topk=5), "unbiased_cka": m.unbiased_cka}
    for name, sim in sims.items():
        for alpha in (0.05, 0.1):
            found = calibrate(unit(a), unit(b), sim, K=60, alpha=alpha, perm_fn=_in_turn(orders))
            out[f"null/{name}/{alpha}"] = np.array([float(one) for one in found])
        for how in ("max", "mean"):
            sides = [unit(a), unit(c)], [unit(b), unit(d)]
            found = calibrate_layers(*sides, sim, agg=how, K=60, perm_fn=_in_turn(orders))
            out[f"null/{name}/{how}"] = np.array([float(one) for one in found])
    return out


def _in_turn(orders: np.ndarray):
    left = iter(orders)
    return lambda count, device: torch.from_numpy(next(left))


if __name__ == "__main__":
    if importlib.metadata.version("calibrated-similarity") != "0.1.1":
        raise SystemExit("install calibrated-similarity==0.1.1")
    metrics, alignment = official(sys.argv[1])
    np.savez_compressed(OUT, **pairs(metrics), **layers(metrics, alignment), **calibration(metrics))
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB")
