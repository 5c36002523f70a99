"""Forward and backward pass of stage 1's Q-Former in mmjax against transformers' Blip2QFormerModel, on the CPU.

    python -m mmjax.benchmarks qformer
    python -m mmjax.benchmarks qformer --size tiny --pairs 2

Both sides take the same states of pictures and the same embedded words, start from the same weights, and compute the
same weighted sum of what the passes of stage 1 give: texts alone; pictures with texts, three pairs for each row; and
captions. transformers keeps no keys and values in this class, so its queries alone are one more pass there; mmjax reads
them off the captions' pass, in which queries see queries only. The second row gives mmjax that pass too. Equal sums
are asserted before anything is timed. Losses, tower and optimizer are left out: they are not in the class. Sides take
turns as in benchmarks/clip.py.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mmjax.benchmarks import paired

SIZES = {  # width, depth, heads, hidden, image width; queries, tokens of a text and of a picture; rows
    "tiny": (32, 2, 2, 64, 24, 5, 6, 7, 2),
    "small": (192, 4, 3, 768, 384, 16, 16, 65, 4),
    "base": (768, 12, 12, 3072, 1408, 32, 32, 257, 2),
}


class Inputs(NamedTuple):
    queries: np.ndarray  # [B Q D]
    words: np.ndarray  # [B T D]
    states: np.ndarray  # [B S C]
    valid: np.ndarray  # [B T] bool
    weights: np.ndarray  # [Q+T D] of the sum


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported; see benchmarks/clip.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    print(paired.machine("jax", "flax", "torch", "transformers"))
    width, depth, heads, hidden, image, queries, words, states, rows = SIZES[options.size]
    print(f"width {width}, depth {depth}, heads {heads}, hidden {hidden}; {rows} rows of {states} x {image}, {queries}")
    print(f"queries and {words} words; {options.pairs} pairs, order A B B A; load {os.getloadavg()[0]:.1f}\n")
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"PyTorch side not run: {error}; it needs `pip install mmjax[parity]`")
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    inputs, rng = _inputs(options.size), np.random.default_rng(1)
    config = transformers.Blip2QFormerConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=hidden,
        encoder_hidden_size=image, use_qformer_text_input=True, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = transformers.Blip2QFormerModel(config)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            scales = "norm" in name.lower() and name.endswith("weight")
            p.copy_(float(scales) + 0.05 * torch.tensor(rng.normal(size=p.shape), dtype=torch.float32))
    rival = _theirs(theirs, inputs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        sides = {"as stage 1 does": _ours(folder, inputs, 1), "pass for pass": _ours(folder, inputs, 2)}
    print(f"{'':16} mmjax is ... x as fast (quartiles)\n{'':16} {'on the clock':22} in CPU seconds")
    for name, ours in sides.items():
        first, second = ours(), rival()
        if abs(first - second) > 1e-4 * abs(second):
            raise RuntimeError(f"the sides do not compute the same: {first} in mmjax, {second} in PyTorch")
        result = paired.measure(ours, rival, options.pairs)
        ratios = paired.times_faster(*result[:2]), paired.times_faster(*result[2:])
        print(f"{name:16} " + "    ".join(f"{median:5.2f} ({low:5.2f} - {high:5.2f})" for median, low, high in ratios))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs, even (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    return parser.parse_args()


def _inputs(size: str) -> Inputs:
    width, _, _, _, image, queries, words, states, rows = SIZES[size]
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    valid = np.arange(words) < rng.integers(words // 2, words + 1, (rows, 1))
    weights = draw(queries + words, width) + 1
    return Inputs(draw(rows, queries, width), draw(rows, words, width), draw(rows, states, image), valid, weights)


def _ours(folder: str, inputs: Inputs, passes: int) -> Callable[[], float]:
    """passes: how many are made for queries and captions."""
    import jax

    from mmjax.models import qformer
    from mmjax.nn.stack import Compute
    from mmjax.ops import masks
    from mmjax.weights import load_hf

    model, variables = load_hf(folder)
    model = qformer.QFormer(dataclasses.replace(model.config, compute=Compute(unroll=True)))
    count = inputs.queries.shape[1]

    def value(params: Any, x: Inputs) -> jax.Array:
        call = partial(model.apply, {"params": params})
        three = lambda y: np.concatenate([y] * 3)  # noqa: E731
        texts = call(text_embeds=x.words, mask=masks.Padding(x.valid)).text
        pairs = call(three(x.queries), three(x.states), None, three(x.words), qformer.matching(three(x.valid), count))
        captions = call(x.queries, x.states, None, x.words, qformer.captioning(x.valid, count))
        alone = captions.queries if passes == 1 else call(x.queries, x.states).queries
        first, last = x.weights[:count], x.weights[count:]
        shown = x.valid[..., None]
        parts = (texts[:, 0] * last[0]).sum(), (pairs.queries * first).sum(), (alone * first).sum()
        return sum(parts) + (captions.text * last * shown).sum()

    step = jax.jit(lambda params: jax.value_and_grad(value)(params, inputs))

    def turn() -> float:
        return float(jax.block_until_ready(step(variables["params"]))[0])

    return turn


def _theirs(model: Any, inputs: Inputs) -> Callable[[], float]:
    import torch

    queries, words, states, valid, weights = (torch.from_numpy(np.array(x)) for x in inputs)
    rows, count, length = len(queries), queries.shape[1], words.shape[1]
    ones = torch.ones(rows, count, dtype=bool)
    allowed = torch.ones(count + length, count + length, dtype=bool).tril()
    allowed[:count, :count] = True
    caption_mask = allowed[None, None] & torch.cat([ones, valid], 1)[:, None, None]
    both, three = torch.cat([queries, words], 1), lambda x: torch.cat([x] * 3)
    first, last = weights[:count], weights[count:]

    def turn() -> float:
        model.zero_grad(set_to_none=True)
        texts = model(query_embeds=words, query_length=0, attention_mask=valid).last_hidden_state
        mask = three(torch.cat([ones, valid], 1))
        pairs = model(
            query_embeds=three(both), query_length=count, attention_mask=mask, encoder_hidden_states=three(states)
        ).last_hidden_state[:, :count]
        alone = model(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        captions = model(
            query_embeds=both, query_length=count, attention_mask=caption_mask, encoder_hidden_states=states
        ).last_hidden_state[:, count:]
        parts = (texts[:, 0] * last[0]).sum(), (pairs * first).sum(), (alone * first).sum()
        loss = sum(parts) + (captions * last * valid[..., None]).sum()
        loss.backward()
        return loss.item()

    return turn
