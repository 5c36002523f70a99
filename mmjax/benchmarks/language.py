"""Language models in mmjax against the same classes of transformers, on the CPU: a train step, and decoding.

    python -m mmjax.benchmarks language
    python -m mmjax.benchmarks language --only llama --pairs 4
    python -m mmjax.benchmarks language --weights SmolLM2-135M-Instruct.Q4_1.gguf     decoding with these weights

Both sides have the same weights and do the same work, which is asserted before anything is timed: a train step (loss,
gradients, clipping, AdamW) has the same loss, greedy decoding with a cache writes the same tokens. They live in one
process with the same threads and take turns, A B B A. transformers decodes with its `generate`, and without CUDA has
the slow path only for Mamba: a loop over tokens.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.benchmarks import paired

VOCABULARY, WIDTH, DEPTH, LENGTH = 4096, 256, 6, 256
ROWS, TOKENS = 8, 128  # of a batch to train on
UPDATES = 2  # in one turn
PROMPT, ANSWER = 32, 64  # tokens that decoding reads and writes, in one row


def models() -> dict[str, Callable[[], Any]]:
    from mmjax.models import gpt, llama, mamba, mamba2
    from mmjax.nn.stack import Compute

    compute = Compute(unroll=True)  # layers side by side, as on a CPU one would
    small = {"width": WIDTH, "depth": DEPTH, "compute": compute}
    return {
        "gpt": lambda: gpt.GPT(gpt.GPTConfig(VOCABULARY, LENGTH, num_heads=4, hidden=4 * WIDTH, **small)),
        "llama": lambda: llama.Llama(
            llama.LlamaConfig(
                VOCABULARY, LENGTH, num_heads=4, num_kv_heads=2, head_dim=64, hidden=704, tied=True, **small
            )
        ),
        "mamba": lambda: mamba.Mamba(mamba.MambaConfig(VOCABULARY, rank=WIDTH // 16, **small)),
        "mamba2": lambda: mamba2.Mamba2(mamba2.Mamba2Config(VOCABULARY, heads=8, head_dim=64, state=64, **small)),
    }


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported; see benchmarks/clip.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # XLA's threads: one for each core
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(paired.machine("jax", "flax", "torch", "transformers"))
    print(
        f"{options.threads} threads a side, float32; {options.pairs} pairs, order A B B A; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"train: {ROWS} x {TOKENS} tokens; decode: {PROMPT} tokens read, {ANSWER} written, one row\n")
    print(f"{'':22} {'tokens/s':>9} {'PyTorch':>9}   mmjax is ... x as fast (quartiles)")
    print(f"{'':22} {'':>9} {'':>9}   {'on the clock':22} in CPU seconds")
    if options.weights:
        from mmjax import weights

        model, variables = weights.load_gguf(options.weights)
        _decoding(options.weights.name[:14], model, variables, options.pairs)
        return
    for name, make in models().items():
        if options.only in (None, name):
            if (
                name != "mamba"
            ):  # transformers loops over tokens, for minutes; benchmarks/mamba.py races the forward pass
                _training(name, make(), options.pairs)
            _decoding(name, make(), _random(make()), options.pairs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(models()), help="one model (default: all)")
    parser.add_argument("--weights", type=Path, metavar="FILE.gguf", help="decode with these instead")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs, even (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    return parser.parse_args()


def _random(model: Any) -> dict:
    import jax

    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1), np.int32))


def _original(model: Any, variables: dict) -> Any:
    """The same model in transformers."""
    import transformers

    from mmjax import weights

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        weights.save_hf(folder, model, variables)
        return transformers.AutoModelForCausalLM.from_pretrained(folder)


def _report(name: str, tokens: int, ours: Callable[[], None], theirs: Callable[[], None], pairs: int) -> None:
    ours(), theirs()  # warm
    result = paired.measure(ours, theirs, pairs)
    ratios = (paired.times_faster(*result[:2]), paired.times_faster(*result[2:]))
    shares = "    ".join(f"{median:5.2f} ({low:5.2f} - {high:5.2f})" for median, low, high in ratios)
    print(
        f"{name:22} {tokens / np.median(result.first):9.1f} {tokens / np.median(result.second):9.1f}   {shares}",
        flush=True,
    )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Random tokens: what they say makes no step slower."""

    def batches(self, batch_size: int, seed: int, rows: slice = slice(None)) -> list[dict]:
        rng = np.random.default_rng(seed)
        return [{"input_ids": rng.integers(0, VOCABULARY, (batch_size, TOKENS)).astype(np.int32)[rows]}]


def _training(name: str, model: Any, pairs: int) -> None:
    import jax
    import torch

    from mmjax.objectives import pretrain
    from mmjax.train import step
    from mmjax.train.experiment import Experiment
    from mmjax.train.optim import AdamW
    from mmjax.train.task import Task

    adamw = AdamW(1e-3, b2=0.95, weight_decay=0.1, clip=1.0)
    experiment = Experiment(Task(model, pretrain.loss), _Rows(), adamw, steps=1000, batch_size=ROWS)
    made = step.build(experiment, experiment.mesh.build(jax.devices()[:1]))
    batch = made.place(_Rows().batches(ROWS, 0)[0])
    state = [made.init(batch)]
    original = _original(model, state[0].variables).eval()  # GPT-2's would drop out, which ours has not
    ids = torch.tensor(np.asarray(batch["input_ids"])).long()
    optimizer = torch.optim.AdamW(original.parameters(), adamw.peak, (0.9, 0.95), weight_decay=0.1, fused=True)

    def ours() -> float:
        for _ in range(UPDATES):
            state[0], metrics = made.run(state[0], batch)
        return float(jax.block_until_ready(metrics)["loss"])

    def theirs() -> float:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss = original(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(original.parameters(), adamw.clip)
            optimizer.step()
        return loss.item()

    first, second = ours(), theirs()  # losses of the second update: what the first one did counts too
    if abs(first - second) > 1e-3 * second:
        raise RuntimeError(f"the sides of {name} do not compute the same: loss {first} in mmjax, {second} in PyTorch")
    _report(f"{name}, train", UPDATES * ROWS * TOKENS, ours, theirs, pairs)


def _decoding(name: str, model: Any, variables: dict, pairs: int) -> None:
    import jax
    import torch

    from mmjax.nn import sampling

    original = _original(model, variables).eval()
    variables = jax.device_put(variables)
    prompt = np.random.default_rng(0).integers(3, model.config.vocab_size, (1, PROMPT)).astype(np.int32)
    ids = torch.tensor(prompt).long()

    def ours() -> np.ndarray:
        return np.asarray(sampling.generate(model, variables, prompt, max_new_tokens=ANSWER).tokens)

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            out = original.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        return out.numpy()[:, PROMPT:]

    same = (ours() == theirs()).mean()
    if same < 1:
        raise RuntimeError(f"the sides of {name} do not write the same: {same:.0%} of the tokens are equal")
    _report(f"{name}, decode", ANSWER, ours, theirs, pairs)
