"""Perplexity by position in texts that are longer than those a model was trained on: does it extrapolate?

For each kind of model, over held-out texts of `longest` tokens, where `trained` is the longest it has seen:

    rotary/perplexity@64, @128 ...  of the tokens up to that position (from the previous such), given all before them
    rotary/moved@128 ...            of the same tokens, given at most `trained` before them: what one can always do

Where perplexity rises above `moved`, more context makes the model worse.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmjax.data import docs
from mmjax.nn.outputs import Result
from mmjax.ops.cross_entropy import softmax_cross_entropy
from mmjax.report import plots


@functools.cache
def texts(split: str, corpora: tuple[str, ...], length: int) -> np.ndarray:
    """int32 [N length]: the documents of a split that are long enough, cut into rows; no row holds two documents."""
    held = [
        text
        for corpus in corpora
        for name, text in docs.documents(corpus).items()
        if docs.is_held_out(name) == (split == "held_out")
    ]
    ids = [one.ids for one in docs.tokenizer().encode_batch(held)]
    rows = [row[at : at + length] for row in ids for at in range(0, len(row) - length + 1, length)]
    if not rows:
        raise ValueError(f"no document of {', '.join(corpora)} in split {split!r} has {length} tokens")
    return np.asarray(rows, np.int32)


@functools.partial(jax.jit, static_argnames=("model", "kind"))
def nll(model: Any, variables: dict, kind: str, ids: jax.Array) -> jax.Array:
    """[B T] -> [B T-1]: of each token but the first, given those before it in the row."""
    out = model.apply(variables, kind, ids, method="read")
    return softmax_cross_entropy(out.logits[:, :-1], ids[:, 1:])


@dataclasses.dataclass(frozen=True)
class Lengths:
    """`kinds` are what the model's method `read(kind, input_ids)` knows."""

    kinds: Sequence[str]
    trained: int = 64
    longest: int = 512
    corpora: tuple[str, ...] = ("python", "numpy")
    split: str = "held_out"
    rows: int = 8  # at a time

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`data` and `rng` are unused: the texts are those of `data.docs`."""
        ids, half = texts(self.split, self.corpora, self.longest), self.trained // 2
        # Windows of `trained` tokens, each moved on by half: their second halves tile the text.
        moved = np.concatenate([ids[:, at : at + self.trained] for at in range(0, self.longest - half, half)])
        ends, metrics, series = self._ends(), {}, []
        for kind in self.kinds:
            whole = self._nll(model, variables, kind, ids)
            parts = self._nll(model, variables, kind, moved).reshape(-1, len(ids), self.trained - 1)[:, :, half - 1 :]
            parts = np.concatenate([whole[:, : half - 1], *parts], axis=1)  # [N longest-1], as whole
            curve = []
            for start, end in zip([0, *ends], ends, strict=False):
                of = slice(max(start - 1, 0), end - 1)  # the loss of token i lies at i - 1
                metrics[f"{kind}/perplexity@{end}"] = float(np.exp(whole[:, of].mean()))
                if start:
                    metrics[f"{kind}/moved@{end}"] = float(np.exp(parts[:, of].mean()))
                curve.append(metrics[f"{kind}/perplexity@{end}"])
            series.append(plots.Series(kind, ends, curve))
        title = f"perplexity up to a position, trained on {self.trained} tokens"
        return Result(metrics, {title: plots.curves({title: series}, x="position")})

    def _ends(self) -> list[int]:
        """trained, twice that, four times ... longest."""
        ends = [self.trained]
        while ends[-1] < self.longest:
            ends.append(min(2 * ends[-1], self.longest))
        return ends

    def _nll(self, model: Any, variables: dict, kind: str, ids: np.ndarray) -> np.ndarray:
        padded = np.pad(ids, ((0, -len(ids) % self.rows), (0, 0)))  # so that one program serves all
        found = [nll(model, variables, kind, padded[i : i + self.rows]) for i in range(0, len(padded), self.rows)]
        return np.concatenate(jax.device_get(found))[: len(ids)]
