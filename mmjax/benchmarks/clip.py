"""One update of CLIP in mmjax against transformers.CLIPModel and torch.optim.AdamW, on the CPU.

    python -m mmjax.benchmarks clip
    python -m mmjax.benchmarks clip --size tiny --pairs 2

Both sides take the same uint8 batch, start from the same weights and compute the same loss (asserted before anything
is timed), gradients, global-norm clipping and AdamW. transformers has no convolutional stem, so both sides run without
it. They live in one process with the same number of threads and take turns: A B B A. OpenMP's threads sleep while they
wait (OMP_WAIT_POLICY): spinning, they slow mmjax's turns, and on a busy machine PyTorch's own by 10 x and more.
"""

import argparse
import dataclasses
import os
import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.benchmarks import paired
from mmjax.benchmarks.updates import BATCHES, STEPS, Updates


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # XLA's threads: one for each core
    experiment = _experiment(options)
    batches = experiment.data.batches(experiment.batch_size, seed=0)
    pipeline = _pipeline_seconds(batches)
    fixed = [{name: x for name, x in batches[i].items() if name != "label"} for i in range(BATCHES)]
    whole = Updates(experiment, fixed)
    whole.turn()
    step = min(paired.seconds(whole.turn)[0] for _ in range(3)) / STEPS

    _print_header(experiment, options)
    size = experiment.batch_size
    print(f"\n{'':34} {'examples/s':>10}   mmjax is ... x as fast (quartiles)")
    print(f"{'':34} {'':>10}   {'on the clock':22} in CPU seconds")
    print(f"{'mmjax, with its stem':34} {size / step:10.0f}")
    _compare(dataclasses.replace(experiment, task=_without_stem(experiment.task)), fixed, options)
    print(f"{'pipeline alone':34} {size / pipeline:10.0f}")
    share = pipeline / step
    print(f"\nThe pipeline takes {share:.1%} of a step's time; it runs beside the step, on other threads.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path("experiments/clip_emoji.py"))
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch-size", type=int, help="(default: the experiment's)")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs for each rival, even (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also race torch.compile (compiles for minutes)",
    )
    return parser.parse_args()


def _experiment(options: argparse.Namespace) -> Any:
    if not options.experiment.exists():
        raise SystemExit(f"{options.experiment} does not exist; run from the repository's root, or give --experiment")
    experiment = runpy.run_path(str(options.experiment))["experiment"](options.size)
    return dataclasses.replace(experiment, batch_size=options.batch_size or experiment.batch_size)


def _without_stem(task: Any) -> Any:
    config = task.model.config
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, stem=()))
    return dataclasses.replace(task, model=type(task.model)(config))


def _pipeline_seconds(batches: Any, count: int = 20) -> float:
    """Of one batch, on one thread."""
    batches[0]  # decodes the atlases
    start = time.perf_counter()
    for i in range(1, count + 1):
        batches[i]
    return (time.perf_counter() - start) / count


class _Theirs:
    """A training loop as PyTorch's users write it."""

    def __init__(self, ours: Updates, experiment: Any, batches: list[dict], wrap: Callable):
        import torch
        import transformers

        from mmjax import weights

        self.torch, self.batches = torch, batches
        self.config, self.optimizer_config = experiment.task.model.config, experiment.optimizer
        with tempfile.TemporaryDirectory() as folder:
            weights.save_hf(folder, experiment.task.model, ours.state.variables)
            self.model = transformers.CLIPModel.from_pretrained(folder).train()
        o = self.optimizer_config
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), o.peak, (o.b1, o.b2), o.eps, o.weight_decay, fused=True
        )
        self.loss = wrap(self._loss)

    def _loss(self, images: Any, input_ids: Any, attention_mask: Any) -> Any:
        torch, c = self.torch, self.config
        mean, std = torch.tensor(c.image_mean), torch.tensor(c.image_std)
        pixels = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        return self.model(
            input_ids=input_ids, pixel_values=pixels, attention_mask=attention_mask, return_loss=True
        ).loss

    def update(self, batch: dict) -> float:
        torch, o = self.torch, self.optimizer_config
        loss = self.loss(
            torch.from_numpy(batch["images"]), torch.from_numpy(batch["input_ids"]).long(),
            torch.from_numpy(batch["attention_mask"]).long(),
        )  # fmt: skip
        self.optimizer.zero_grad()
        loss.backward()
        if o.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), o.clip)
        self.optimizer.step()
        return float(loss.detach())

    def turn(self) -> None:
        for i in range(STEPS):
            self.update(self.batches[i % BATCHES])


def _compare(experiment: Any, batches: list[dict], options: argparse.Namespace) -> None:
    try:
        import torch
        import transformers  # noqa: F401, used by _Theirs
    except ImportError as error:
        print(f"PyTorch side not run: {error}; it needs `pip install mmjax[parity]`")
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ours, shown = Updates(experiment, batches), False
    size = experiment.batch_size * STEPS
    rivals = {"PyTorch eager": lambda f: f} | ({"PyTorch torch.compile": torch.compile} if options.compile else {})
    for name, wrap in rivals.items():
        fresh = Updates(experiment, batches)
        theirs = _Theirs(fresh, experiment, batches, wrap)
        try:
            losses = fresh.update(batches[0]), theirs.update(batches[0])
        except Exception as error:  # what torch.compile raises where it has no compiler is not documented
            if wrap is not torch.compile:
                raise
            print(f"{name:34} {'not run':>10} {type(error).__name__}: {str(error).splitlines()[0][:60]}")
            continue
        if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[1]):
            raise RuntimeError(f"the sides do not compute the same: loss {losses[0]} in mmjax, {losses[1]} in {name}")
        ours.turn(), theirs.turn()
        result = paired.measure(ours.turn, theirs.turn, options.pairs)
        if not shown:
            print(f"{'mmjax, without':34} {size / np.median(result.first):10.0f}")
            shown = True
        ratios = (paired.times_faster(*result[:2]), paired.times_faster(*result[2:]))
        shares = "    ".join(f"{median:5.2f} ({low:5.2f} - {high:5.2f})" for median, low, high in ratios)
        print(f"{name + ', without':34} {size / np.median(result.second):10.0f}   {shares}")


def _print_header(experiment: Any, options: argparse.Namespace) -> None:
    config = experiment.task.model.config
    print(paired.machine("jax", "flax", "torch", "transformers"))
    print(
        f"{options.experiment} {options.size}: batch {experiment.batch_size}, {options.threads} threads a side, float32"
    )
    print(f"vision {config.vision}\ntext {config.text}")
    print(f"{options.pairs} pairs a rival, {STEPS} updates a turn, order A B B A; load {os.getloadavg()[0]:.1f}")
