"""A train step of LLaVA in mmjax against transformers' LlavaForConditionalGeneration, on the CPU: both stages.

    python -m mmjax.benchmarks llava
    python -m mmjax.benchmarks llava --size tiny --pairs 2

Each row is a picture and a text behind it, of which the assistant says the last third. Stage 1 trains the projector
alone (llava.ALIGN), stage 2 the language model too (llava.INSTRUCT); the tower is a CLIP that stays as it is. Both
sides start from the same weights and make the same update: loss, gradients of what is trained, clipping, AdamW. Losses
of the second update, in which the first one counts, are asserted to be equal before anything is timed. transformers
runs its tower without gradients, as its authors do. Sides take turns as in benchmarks/clip.py.
"""

import argparse
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.benchmarks import paired

UPDATES = 2  # in one turn
WORDS = 64  # tokens of a text
SIZES = {  # rows; image size, patch size, width and depth of the tower; width and depth of the language model; ids
    "tiny": (2, 32, 16, 32, 2, 32, 2, 64),
    "small": (8, 96, 12, 192, 6, 256, 6, 4096),
}


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported; see benchmarks/clip.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # XLA's threads: one for each core
    print(paired.machine("jax", "flax", "torch", "transformers"))
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"PyTorch side not run: {error}; it needs `pip install mmjax[parity]`")
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from mmjax.models import llava

    config = _config(options.size)
    rows = SIZES[options.size][0]
    print(
        f"{rows} rows of {config.tokens_per_image} tokens of a picture and {WORDS} of text; {options.threads} threads "
        f"a side, float32; {options.pairs} pairs, order A B B A; load {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'':10} {'rows/s':>9} {'PyTorch':>9}   mmjax is ... x as fast (quartiles)")
    print(f"{'':10} {'':>9} {'':>9}   {'on the clock':22} in CPU seconds")
    for name, trainable in (("stage 1", llava.ALIGN), ("stage 2", llava.INSTRUCT)):
        _race(name, llava.Llava(config), trainable, rows, options.pairs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs, even (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    return parser.parse_args()


def _config(size: str) -> Any:
    from mmjax.models import clip, llama, llava
    from mmjax.nn.stack import Compute

    _, image, patch, seen, blocks, width, depth, ids = SIZES[size]
    compute = Compute(unroll=True)  # layers side by side, as on a CPU one would
    vision = dataclasses.replace(
        clip.vit_b32().vision, image_size=image, patch_size=patch, width=seen, depth=blocks, num_heads=seen // 32,
        hidden=4 * seen,
    )  # fmt: skip
    language = llama.LlamaConfig(
        ids, 512, width, depth, num_heads=width // 32, num_kv_heads=width // 32, head_dim=32, hidden=width * 11 // 4,
        epsilon=1e-5, compute=compute,
    )  # fmt: skip
    return llava.LlavaConfig(vision, language, image_token=ids - 1, compute=compute)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A picture and random words: what they say makes no step slower."""

    config: Any

    def batches(self, batch_size: int, seed: int, rows: slice = slice(None)) -> list[dict]:
        c, rng = self.config, np.random.default_rng(seed)
        ids = np.full((batch_size, c.tokens_per_image + WORDS), c.image_token, np.int32)
        ids[:, c.tokens_per_image :] = rng.integers(c.image_token, size=(batch_size, WORDS))
        spoken = np.broadcast_to(np.arange(ids.shape[1]) >= ids.shape[1] - WORDS // 3, ids.shape)
        side = c.vision.image_size
        images = rng.normal(size=(batch_size, side, side, 3)).astype(np.float32)
        return [{"input_ids": ids[rows], "spoken": spoken[rows], "images": images[rows]}]


def _race(name: str, model: Any, trainable: str, rows: int, pairs: int) -> None:
    import jax

    from mmjax.models import llava
    from mmjax.train import step
    from mmjax.train.experiment import Experiment
    from mmjax.train.optim import AdamW
    from mmjax.train.task import Task

    adamw = AdamW(1e-3, weight_decay=0.1, clip=1.0, mask=".*")
    experiment = Experiment(
        Task(model, llava.loss, trainable=trainable), _Rows(model.config), adamw, steps=1000, batch_size=rows
    )  # fmt: skip
    made = step.build(experiment, experiment.mesh.build(jax.devices()[:1]))
    batch = made.place(experiment.data.batches(rows, 0)[0])
    state = [made.init(batch)]
    theirs = _theirs(model, state[0].variables, trainable, adamw, batch)

    def ours() -> float:
        for _ in range(UPDATES):
            state[0], metrics = made.run(state[0], batch)
        return float(jax.block_until_ready(metrics)["loss"])

    first, second = ours(), theirs()
    if abs(first - second) > 1e-4 * second:
        raise RuntimeError(f"the sides of {name} do not compute the same: loss {first} in mmjax, {second} in PyTorch")
    result = paired.measure(ours, theirs, pairs)
    ratios = paired.times_faster(*result[:2]), paired.times_faster(*result[2:])
    shares = "    ".join(f"{median:5.2f} ({low:5.2f} - {high:5.2f})" for median, low, high in ratios)
    speeds = (UPDATES * rows / np.median(seconds) for seconds in result[:2])
    print(f"{name:10} {next(speeds):9.1f} {next(speeds):9.1f}   {shares}", flush=True)


def _theirs(model: Any, variables: dict, trainable: str, adamw: Any, batch: dict) -> Callable[[], float]:
    """The same updates in transformers."""
    import torch
    import transformers

    from mmjax import weights

    with tempfile.TemporaryDirectory() as folder:
        weights.save_hf(folder, model, variables)
        original = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    ours = {"multi_modal_projector": "projector/", "language_model": "language/", "lm_head": "language/"}
    for name, parameter in original.named_parameters():
        part = next((path for part, path in ours.items() if part in name), "vision/")
        parameter.requires_grad_(re.search(trainable, part) is not None)
    trained = [parameter for parameter in original.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, adamw.peak, (adamw.b1, adamw.b2), adamw.eps, adamw.weight_decay, fused=True
    )  # fmt: skip
    ids, spoken, images = (np.array(batch[name]) for name in ("input_ids", "spoken", "images"))
    ids = torch.tensor(ids).long()
    labels = torch.where(torch.tensor(spoken), ids, -100)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).contiguous()

    def turn() -> float:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss = original(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, adamw.clip)
            optimizer.step()
        return loss.item()

    return turn
