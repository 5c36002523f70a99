"""Ferret's spatial-aware sampler, forwards and backwards: mmjax against two plain ways, on the CPU.

    git clone https://github.com/apple/ml-ferret
    python -m mmjax.benchmarks ferret --checkout ml-ferret
    python -m mmjax.benchmarks ferret --checkout ml-ferret --width 64 --out 96 --pairs 2

The plain ways apply each layer to every pair of an anchor and a neighbour, as the equations say: once in JAX, and once
the authors' GeoRegionSampler from a checkout. mmjax applies what is linear to points, before pairs are made of them.
All start from the same weights and take the same points, moved a little so that no two are equally far. That they give
the same regions and the same gradients is asserted before anything is timed. Sides take turns in one process, A B B A.
Memory is that of a process of its own, as in benchmarks/platonic.py.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.benchmarks import paired, platonic

FILE = "ferret/model/ferret_arch.py"  # read from the checkout
Way = Callable[[], tuple[np.ndarray, np.ndarray]]  # -> regions [M W], gradient of the map [n D]


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported; see benchmarks/clip.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.memory_of:
        print(f"{platonic._peak(lambda: WAYS[options.memory_of](options)() and 0.0):.0f}")
        return
    print(paired.machine("jax", "torch"))
    print(f"{options.regions} regions of a map {SIDE} x {SIDE} x {options.width}, language model {options.out} wide")
    print(f"{options.threads} threads; {options.pairs} pairs, order A B B A; load {os.getloadavg()[0]:.1f}, float32\n")
    print(f"{'':24} {'seconds':>9} {'peak MB':>9}   mmjax is ... x as fast (quartiles)")
    ours = WAYS["mmjax"](options)
    wanted, shown = ours(), False
    for name in (name for name in WAYS if name != "mmjax"):
        try:
            theirs = WAYS[name](options)
        except (ImportError, FileNotFoundError) as error:
            print(f"{name} not run: {error}")
            continue
        for what, a, b in zip(("regions", "gradients"), theirs(), wanted, strict=True):
            if np.abs(a - b).max() > 1e-3 * np.abs(b).max():
                raise RuntimeError(f"the sides do not compute the same {what}: {name} is off by {np.abs(a - b).max()}")
        result = paired.measure(lambda: ours() and None, lambda theirs=theirs: theirs() and None, options.pairs)
        if not shown:
            print(_line("mmjax", np.median(result.first), options))
            shown = True
        median, low, high = paired.times_faster(*result[:2])
        print(f"{_line(name, np.median(result.second), options)}   {median:5.2f} ({low:5.2f} - {high:5.2f})")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="a clone of https://github.com/apple/ml-ferret")
    parser.add_argument("--regions", type=int, default=4, help="M (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="of the map (default: %(default)s)")
    parser.add_argument("--out", type=int, default=4096, help="of the language model (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs, even (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    parser.add_argument("--memory-of", choices=tuple(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _line(name: str, seconds: float, options: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "mmjax.benchmarks", "ferret", f"--memory-of={name}"]
    command += [f"--{field}={getattr(options, field)}" for field in ("regions", "width", "out", "threads")]
    command += [] if options.checkout is None else [f"--checkout={options.checkout}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    return f"{name:24} {seconds:9.3f} {found:>9}"


# What all ways are given

SIDE = 24
STARTS = (5, 3)


def _given(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, dict]:
    """A map [n D], points [M 512 2] and the sampler's parameters, by the names of models/ferret.py."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: (rng.normal(size=shape) * shape[0] ** -0.5).astype(np.float32)  # noqa: E731
    d = options.width
    dense = lambda fan_in, out: {"kernel": normal(fan_in, out), "bias": normal(out)}  # noqa: E731
    params = {"flatten": dense(32 * d, d), "out": dense(d, options.out)}
    for i in range(2):
        norm = {"scale": 1 + normal(d), "bias": normal(d)}
        params[f"block{i}"] = {"difference": dense(d + 2, d + 2), "aggregate": dense(2 * (d + 2), d), "norm": norm}
    maps = rng.normal(size=(SIDE**2, d)).astype(np.float32)
    return maps, rng.random((options.regions, 512, 2)).astype(np.float32), params


# The ways


def _mmjax(options: argparse.Namespace) -> Way:
    from mmjax.models import ferret

    maps, points, params = _given(options)
    module = ferret.Sampler(ferret.SamplerConfig(transposed=True), options.out)
    starts = np.broadcast_to(np.array(STARTS), (1, options.regions, 2))
    return _in_jax(
        lambda params, maps: module.apply({"params": params}, maps[None], points[None], starts)[0], maps, params
    )


def _plain(options: argparse.Namespace) -> Way:
    """The equations, pair by pair."""
    import jax
    import jax.numpy as jnp

    from mmjax.ops import points as point_ops

    maps, points, params = _given(options)

    def dense(x: jax.Array, layer: dict) -> jax.Array:
        return x @ layer["kernel"] + layer["bias"]

    def regions(params: dict, maps: jax.Array) -> jax.Array:
        x, grid = jnp.asarray(points), maps.reshape(1, SIDE, SIDE, -1)
        z = point_ops.by_gather(grid, x[..., ::-1].reshape(1, -1, 2)).reshape(*x.shape[:2], -1)
        for i, (count, k) in enumerate(((128, 24), (32, 24))):
            layer, u = params[f"block{i}"], jnp.concatenate([z, x], -1)
            anchors = point_ops.farthest_points(x, count, jnp.full(len(x), STARTS[i]))
            x = point_ops.take(x, anchors)
            near = point_ops.take(u, point_ops.nearest_points(jnp.asarray(u[..., -2:]), x, k))  # [M S k D+2]
            anchor = jnp.broadcast_to(point_ops.take(u, anchors)[:, :, None], near.shape)
            pairs = jnp.concatenate([dense(near - anchor, layer["difference"]), anchor], -1)
            pairs = jax.nn.relu(dense(pairs, layer["aggregate"]))
            pairs = pairs - pairs.mean(-1, keepdims=True)
            pairs = pairs * jax.lax.rsqrt((pairs**2).mean(-1, keepdims=True) + 1e-5)
            z = (pairs * layer["norm"]["scale"] + layer["norm"]["bias"]).max(2)
        return dense(dense(z.reshape(len(z), -1), params["flatten"]), params["out"])

    return _in_jax(regions, maps, params)


def _in_jax(regions: Callable, maps: np.ndarray, params: dict) -> Way:
    import jax
    import jax.numpy as jnp

    def inner(params: dict, maps: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = regions(params, maps)
        return jnp.sum(jnp.sin(out)), out

    run = jax.jit(jax.value_and_grad(inner, (0, 1), has_aux=True))

    def call() -> tuple[np.ndarray, np.ndarray]:
        (_, out), (by_params, by_maps) = jax.block_until_ready(run(params, maps))
        return np.asarray(out), np.asarray(by_maps)

    return call


def _authors(options: argparse.Namespace) -> Way:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{error}; it needs `pip install mmjax[parity]`") from error
    if options.checkout is None or not (options.checkout / FILE).exists():
        raise FileNotFoundError(
            f"no {FILE} in {options.checkout or 'the checkout'}; it needs `git clone "
            "https://github.com/apple/ml-ferret` and --checkout with that folder"
        )
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    maps, points, params = _given(options)
    arch = _original(options.checkout / FILE)
    network = arch["GeoRegionSampler"](options.width, options.out, 512, [128, 32], [24, 24], "max")
    network.load_state_dict({name: torch.from_numpy(x) for name, x in original_names(params).items()})
    masks = [torch.ones(2, 2) for _ in points]

    def call() -> tuple[np.ndarray, np.ndarray]:
        again, starts = iter(points), iter(STARTS)
        arch["rand_sample_repeat"] = lambda x, count: torch.from_numpy(next(again))
        given = torch.from_numpy(maps).requires_grad_()
        network.zero_grad()
        randint, torch.randint = torch.randint, lambda low, high, shape, **_: torch.full(shape, next(starts))
        try:
            (out,) = network([given], [masks], torch.float32, torch.float32)
        finally:
            torch.randint = randint
        out.sin().sum().backward()
        return out.detach().numpy(), given.grad.numpy()

    return call


def _original(path: Path) -> dict[str, Any]:
    """The names of the authors' file, without the two imports of their package, which nothing here needs."""
    lines = [line for line in path.read_text().splitlines() if not re.match(r"from (\.|ferret)|import pdb", line)]
    space: dict[str, Any] = {}
    exec(compile("\n".join(lines), str(path), "exec"), space)
    return space


def original_names(params: dict) -> dict[str, np.ndarray]:
    """The sampler's parameters as the authors' class names and shapes them."""

    def pair(name: str, part: dict) -> dict:
        return {f"{name}.weight": part["kernel"].T.copy(), f"{name}.bias": part["bias"]}

    flat = {**pair("flatten_projector", params["flatten"]), **pair("dim_projector", params["out"])}
    for i in range(2):
        block, theirs = params[f"block{i}"], f"agg_projector_list.{i}"
        flat |= pair(f"diff_projector_list.{i}", block["difference"])
        flat |= {f"{theirs}.norm.weight": block["norm"]["scale"], f"{theirs}.norm.bias": block["norm"]["bias"]}
        for name, x in pair(f"{theirs}.net.0", block["aggregate"]).items():
            flat[name] = x[..., None] if x.ndim == 2 else x
    return flat


WAYS = {"mmjax": _mmjax, "pair by pair in JAX": _plain, "the authors' in PyTorch": _authors}
