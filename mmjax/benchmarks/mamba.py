"""Mamba and Mamba-2 on the CPU: forward passes against PyTorch, then time and memory by length beside attention.

    python -m mmjax.benchmarks mamba
    python -m mmjax.benchmarks mamba --only lengths --longest 4096 --plot lengths.png

The first table races the forward pass of one text against the classes of transformers and mambapy, which run in plain
PyTorch here; the same logits are asserted before anything is timed, and sides take turns, A B B A. The second grows the
text under Mamba, Mamba-2 and LLaMA of equal size: seconds of a forward pass, and what XLA says a training step needs
for its activations. Both count a batch of one. Attention is plain here, with [L L] weights; on TPU and GPU it is fused,
which saves the memory and not the time.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.benchmarks import paired

VOCABULARY, WIDTH, DEPTH = 512, 256, 4
LENGTH = 512  # of the text in the race
SHORTEST = 512


def models(longest: int) -> dict[str, Any]:
    """2.0, 1.9 and 2.2 million parameters."""
    from mmjax.models import llama, mamba, mamba2
    from mmjax.nn.stack import Compute

    compute = Compute(unroll=True)  # layers side by side, as on a CPU one would
    return {
        "mamba": mamba.Mamba(mamba.MambaConfig(VOCABULARY, WIDTH, DEPTH, rank=16, compute=compute)),
        "mamba2": mamba2.Mamba2(mamba2.Mamba2Config(VOCABULARY, WIDTH, DEPTH, heads=8, compute=compute)),
        "llama": llama.Llama(
            llama.LlamaConfig(VOCABULARY, longest, WIDTH, DEPTH, 2, 2, 128, 256, tied=True, compute=compute)
        ),
    }


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported; see benchmarks/clip.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # XLA's threads: one for each core
    print(paired.machine("jax", "flax", "torch", "transformers", "mambapy"))
    print(f"{options.threads} threads, float32, one row; load {os.getloadavg()[0]:.1f}\n")
    if options.only in (None, "race"):
        _race(options.pairs)
    if options.only in (None, "lengths"):
        _lengths(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("race", "lengths"), help="one table (default: both)")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs, even (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=16_384, help="tokens (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draws the second table")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    return parser.parse_args()


def _race(pairs: int) -> None:
    try:
        import torch
        import transformers  # noqa: F401, used by _originals
    except ImportError as error:
        print(f"PyTorch side not run: {error}; it needs `pip install mmjax[parity]`")
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    import jax

    print(f"forward pass of {LENGTH} tokens; {pairs} pairs, order A B B A; mmjax is ... x as fast (quartiles)")
    print(f"{'':30} {'mmjax ms':>9} {'theirs ms':>9}   {'on the clock':22} in CPU seconds")
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, LENGTH), np.int32)
    for kind in ("mamba", "mamba2"):
        model = models(LENGTH)[kind]
        variables = jax.jit(model.init)(jax.random.key(0), ids)
        forward = jax.jit(model.apply)
        ours = lambda forward=forward, variables=variables: jax.block_until_ready(forward(variables, ids).logits)  # noqa: E731
        for name, theirs in _originals(kind, model, variables, ids).items():
            found, wanted = np.asarray(ours()), theirs()
            if np.abs(found - wanted).max() > 1e-3 * np.abs(wanted).max():
                raise RuntimeError(f"the sides do not compute the same: {name}'s logits are not mmjax's")
            result = paired.measure(ours, theirs, pairs)
            ratios = (paired.times_faster(*result[:2]), paired.times_faster(*result[2:]))
            shares = "    ".join(f"{median:5.2f} ({low:5.2f} - {high:5.2f})" for median, low, high in ratios)
            ms = [1000 * np.median(one) for one in result[:2]]
            print(f"{kind + ' against ' + name:30} {ms[0]:9.1f} {ms[1]:9.1f}   {shares}")


def _originals(kind: str, model: Any, variables: dict, ids: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Rivals with the same weights, by name."""
    import torch
    import transformers

    from mmjax import weights

    transformers.logging.set_verbosity_error()  # else it says at length that no CUDA kernels are there
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        weights.save_hf(folder, model, variables)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.from_numpy(ids).long()

    def plain() -> np.ndarray:
        with torch.inference_mode():
            return theirs(tokens, use_cache=False).logits.numpy()

    rivals = {"transformers": plain}
    if kind == "mamba":
        try:
            from mambapy.mamba import Mamba, MambaConfig
        except ImportError as error:
            print(f"mambapy not run: {error}; it needs `pip install mmjax[parity]`")
            return rivals
        c = model.config
        config = MambaConfig(c.width, c.depth, c.rank, c.state, c.expand, c.taps, rms_norm_eps=c.epsilon)
        inner = Mamba(config).eval()
        inner.load_state_dict(
            {n.removeprefix("backbone."): x for n, x in theirs.state_dict().items() if n.startswith("backbone.layers")}
        )
        table, norm = theirs.backbone.embeddings, theirs.backbone.norm_f

        def parallel() -> np.ndarray:
            with torch.inference_mode():
                return torch.nn.functional.linear(norm(inner(table(tokens))), table.weight).numpy()

        rivals["mambapy, parallel scan"] = parallel
    return rivals


def _lengths(options: argparse.Namespace) -> None:
    import jax

    from mmjax.objectives import pretrain

    lengths = [SHORTEST * 2**i for i in range(20) if SHORTEST * 2**i <= options.longest]
    made = models(options.longest)
    print("\nseconds of a forward pass, and MB that a training step's activations take")
    print(f"{'tokens':>7} " + " ".join(f"{name:>17}" for name in made))
    seconds, megabytes = ({name: [] for name in made} for _ in range(2))
    for length in lengths:
        ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, length), np.int32)
        for name, model in made.items():
            variables = jax.jit(model.init)(jax.random.key(0), ids[:, :8])
            step = jax.grad(lambda v, ids, model=model: pretrain.loss(model, v, {"input_ids": ids}, None, 0)[0])
            stats = jax.jit(step).lower(variables, ids).compile().memory_analysis()
            megabytes[name].append(stats.temp_size_in_bytes / 1e6)
            seconds[name].append(
                _fastest(jax.jit(lambda v, i, model=model: model.apply(v, i).last_hidden_state), variables, ids)
            )
        print(f"{length:7,} " + " ".join(f"{seconds[n][-1]:8.3f} {megabytes[n][-1]:8,.0f}" for n in made), flush=True)
    print("\nx as much for twice the tokens, at the end of each column")
    ratios = [f"{one[name][-1] / one[name][-2]:8.2f}" for name in made for one in (seconds, megabytes)]
    print(f"{'':7} " + " ".join(ratios))
    if options.plot:
        _plot(options.plot, lengths, seconds, megabytes)


def _fastest(run: Callable, *args: Any, tries: int = 3) -> float:
    """Seconds, after a warm-up: other programs only ever add time."""
    import jax

    times = []
    for _ in range(tries + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _plot(path: Path, lengths: list[int], seconds: dict, megabytes: dict) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 3.4), 140, layout="constrained")
    panels = {"seconds of a forward pass": seconds, "MB of a training step": megabytes}
    for axes, (title, columns) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name, values in columns.items():
            axes.loglog(lengths, values, marker="o", label=name, base=2)
        axes.set_title(title, loc="left")
        axes.set_xlabel("tokens")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path)
