"""LoRA: a large model is adapted by a small product beside each chosen kernel; the kernel itself stands still.

Source: Hu et al. 2021, arXiv:2106.09685, equation 3. r rank, L layers (stacked kernels have that leading axis).

    kernel [L in out] + alpha / r * lora_a [L in r] @ lora_b [L r out]

    adapted = LoRA(model, paths=r"attention/(query|value)/kernel$", rank=8)
    Task(adapted, loss, trainable=TRAINABLE, init=adapted.started(init_model))      # only the products are trained
    model.apply({"params": adapted.merge(variables["params"])}, ...)                # the plain model again

A LoRA is called as its model is: `apply`, `head`, `config`. Each call adds the product to the kernel first, so that any
module works unchanged and what is trained is, bit for bit, what `merge` gives; for a batch of more than r tokens that
costs less than the products with activations would. Merge before decoding token by token.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

A, B = "lora_a", "lora_b"  # they stand beside the kernel
MATRICES = ("kernel", "embedding")  # what can be adapted, by the last part of its path
TRAINABLE = rf"({A}|{B})$"  # for Task.trainable


@dataclasses.dataclass(frozen=True)
class LoRA:
    model: nn.Module
    paths: str = r"attention/(query|value)/kernel$"  # which arrays of the parameters: the paper's choice
    rank: int = 8
    alpha: float = 16.0

    def apply(self, variables: Mapping, *args: Any, **options: Any) -> Any:
        return self.model.apply({**variables, "params": self.merge(variables["params"])}, *args, **options)

    def head(self, params: Mapping) -> jax.Array:
        return self.model.head(self.merge(params))

    def init_cache(self, batch_size: int, length: int) -> Any:
        return self.model.init_cache(batch_size, length)

    @property
    def config(self) -> Any:
        return self.model.config

    def started(self, init: Callable) -> Callable:
        """A Task.init: the variables that `init` makes for the model itself, with products that change nothing yet."""

        def run(adapted: LoRA, rng: jax.Array, batch: dict, loaded: dict) -> dict:
            variables = init(self.model, rng, batch, loaded)
            return {**variables, "params": self.add(variables["params"], rng)}

        return run

    def add(self, params: Mapping, rng: jax.Array) -> dict:
        """`params` with fresh products: lora_a uniform as in the authors' code, lora_b zero."""
        found = []

        def beside(path: str, name: str, array: jax.Array, siblings: Mapping) -> dict:
            # By name and not by rank: the biases of stacked layers are [L out].
            if name not in MATRICES or A in siblings:
                reason = "already has an update beside it" if A in siblings else f"is none of {', '.join(MATRICES)}"
                raise ValueError(f"LoRA paths={self.paths!r} match {path} {list(array.shape)}, which {reason}")
            found.append(path)
            *layers, fan_in, fan_out = array.shape
            key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
            start = jax.random.uniform(key, (*layers, fan_in, self.rank), minval=-1, maxval=1) * fan_in**-0.5
            return {name: array, A: start, B: jnp.zeros((*layers, self.rank, fan_out))}

        result = self._visit(params, beside)
        if not found:
            raise ValueError(f"LoRA paths={self.paths!r} match no parameter")
        return result

    def merge(self, params: Mapping) -> dict:
        """`params` with the products added to their kernels and gone: the plain model's."""

        def into(path: str, name: str, array: jax.Array, siblings: Mapping) -> dict:
            product = jnp.matmul(siblings[A], siblings[B], precision="highest")
            return {name: array + (self.alpha / self.rank) * product.astype(array.dtype)}

        return self._visit(params, into)

    def _visit(self, tree: Mapping, change: Callable, prefix: str = "") -> dict:
        """A copy of the tree in which each matching array is replaced by the entries that `change` returns for it."""
        result = {}
        for name, one in tree.items():
            path = f"{prefix}{name}"
            if isinstance(one, Mapping):
                result[name] = self._visit(one, change, f"{path}/")
            elif name not in (A, B):
                result |= change(path, name, one, tree) if re.search(self.paths, path) else {name: one}
        return result
