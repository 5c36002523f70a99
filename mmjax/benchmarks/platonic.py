"""Mutual k-NN of two sides of N rows: blocks of products, against all N x N of them as platonic-rep does it.

    python -m mmjax.benchmarks platonic
    python -m mmjax.benchmarks platonic --rows 50000 --pairs 2 --only-ours

The other way: products of all rows, sorted wholly to find the first k, and a mask [N N] of neighbours for each side;
once in PyTorch, as the official code does it, and once in JAX. The same score is asserted before anything is timed.
Sides take turns in one process, A B B A. Memory is that of a process of its own: the highest resident set during the
call, less what was resident before it (Linux only).
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmjax.benchmarks import paired

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported; see benchmarks/clip.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # XLA's threads: one for each core
    if options.memory_of:
        print(f"{_peak(WAYS[options.memory_of](*_features(options), options.k)):.0f}")
        return
    print(paired.machine("jax", "torch"))
    print(f"{options.rows:,} rows, widths {options.width} and {options.width // 2}, k = {options.k}, float32")
    print(f"{options.threads} threads; {options.pairs} pairs, order A B B A; load {os.getloadavg()[0]:.1f}\n")
    print(f"{'':24} {'seconds':>9} {'peak MB':>9}   blocks are ... x as fast (quartiles)")
    ours = WAYS["blocks"](*_features(options), options.k)
    score, shown = ours(), False
    for name in [] if options.only_ours else [name for name in WAYS if name != "blocks"]:
        try:
            theirs = WAYS[name](*_features(options), options.k)
        except ImportError as error:
            print(f"{name} not run: {error}; it needs `pip install mmjax[parity]`")
            continue
        if abs(theirs() - score) > 1e-4:
            raise RuntimeError(f"the sides do not compute the same: {score} in blocks, {theirs()} by {name}")
        result = paired.measure(ours, theirs, options.pairs)
        if not shown:
            print(_line("blocks", np.median(result.first), options))
            shown = True
        median, low, high = paired.times_faster(*result[:2])
        print(f"{_line(name, np.median(result.second), options)}   {median:5.2f} ({low:5.2f} - {high:5.2f})")
    if not shown:
        print(_line("blocks", min(paired.seconds(ours)[0] for _ in range(options.pairs)), options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="N (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="of one side; half on the other (default: %(default)s)")
    parser.add_argument("--k", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=4, help="timed pairs, even (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    parser.add_argument("--only-ours", action="store_true", help="leave the ways out that hold N x N")
    parser.add_argument("--memory-of", choices=tuple(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _features(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy views of one latent, rows of length 1."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(options.rows, 32)).astype(np.float32)
    sides = []
    for width in (options.width, options.width // 2):
        noise = rng.normal(size=(options.rows, width)).astype(np.float32)
        x = latent @ rng.normal(size=(32, width)).astype(np.float32) + 4 * noise
        sides.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return sides[0], sides[1]


def _line(name: str, seconds: float, options: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "mmjax.benchmarks", "platonic", f"--memory-of={name}", f"--rows={options.rows}"]
    command += [f"--width={options.width}", f"--k={options.k}", f"--threads={options.threads}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    return f"{name:24} {seconds:9.2f} {found:>9}"


# The ways: x [N D], y [N E], k -> a call that gives the score


def _blocks(x: np.ndarray, y: np.ndarray, k: int) -> Callable[[], float]:
    from mmjax.evals import platonic

    return lambda: float(platonic.mutual_knn(x, y, k))


def _all_in_jax(x: np.ndarray, y: np.ndarray, k: int) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def score(x: jax.Array, y: jax.Array) -> jax.Array:
        def mask(z: jax.Array) -> jax.Array:
            products = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, jnp.matmul(z, z.T, precision="highest"))
            near = jnp.argsort(products, axis=1, descending=True)[:, :k]
            return jnp.zeros_like(products).at[jnp.arange(len(z))[:, None], near].set(1)

        return (mask(x) * mask(y)).sum(1).mean() / k

    return lambda: float(score(x, y))


def _all_in_torch(x: np.ndarray, y: np.ndarray, k: int) -> Callable[[], float]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def mask(z: torch.Tensor) -> torch.Tensor:
        products = z @ z.T
        products.fill_diagonal_(float("-inf"))
        near = products.argsort(dim=1, descending=True)[:, :k]
        return torch.zeros_like(products).scatter_(1, near, 1.0)

    def score() -> float:
        with torch.inference_mode():
            both = mask(torch.from_numpy(x)) * mask(torch.from_numpy(y))
            return float(both.sum(1).mean() / k)

    return score


WAYS = {"blocks": _blocks, "N x N in PyTorch": _all_in_torch, "N x N in JAX": _all_in_jax}


def _peak(run: Callable[[], float]) -> float:
    """MB that a call adds to the resident set at its highest, compilation included."""
    before = _resident("VmRSS")
    CLEAR.write_text("5")  # the highest mark starts again from here
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1e3
