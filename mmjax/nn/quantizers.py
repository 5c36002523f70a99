"""Quantisers as parts of a model; all are called and read alike.

    quantizer(z [... D], train=...) -> Quantized        quantizer.embed(ids [...]) -> [... D], what a decoder reads
    quantizer.dim -> D                                  quantizer.num_codes -> K

    Codebook         codes are parameters
    MovingCodebook   codes are moving averages, the collection "codebook", which a call with train=True renews: give
                     `mutable=["codebook"]`, and random numbers "codes" where dead ones are to come back to life
    FSQ, LFQ         no codes: each number is rounded

The maths is in ops/quantize.py. D width of a code, K codes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.ops import quantize


@struct.dataclass
class Quantized:
    latents: jax.Array  # [... D] float32, what the decoder reads; sends its gradient back to z
    ids: jax.Array  # [...] int32 in [0, K)
    loss: jax.Array  # scalar over the global batch, weights included
    metrics: dict[str, jax.Array]  # scalars


def uniform(rng: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """In (-1/K, 1/K), as CompVis/taming-transformers begins."""
    return jax.random.uniform(rng, shape, dtype, -1 / shape[0], 1 / shape[0])


def as_is(x: jax.Array) -> jax.Array:
    """Codes of any length; `ops.quantize.unit` for those that are compared by angle."""
    return x.astype(jnp.float32)


class Codebook(nn.Module):
    """Codes learn by the gradient of van den Oord et al. 2017, eq. 3.

    CompVis/taming-transformers has 0.25 on the other term: commitment=1, codebook=0.25.
    """

    num_codes: int  # K
    dim: int  # D
    commitment: float = 0.25  # beta: pulls vectors to codes
    codebook: float = 1.0  # pulls codes to vectors
    measure: Callable = as_is  # of vectors and codes, before they are compared
    gradient: Callable = quantize.straight_through  # or quantize.rotated

    def setup(self):
        self.codes = self.param("codes", uniform, (self.num_codes, self.dim))

    def __call__(self, z: jax.Array, *, train: bool = False) -> Quantized:
        z, codes = self.measure(z), self.measure(self.codes)
        ids = quantize.nearest(z, codes)
        quantised = quantize.lookup(codes, ids)
        commitment = quantize.commitment_loss(z, quantised)
        loss = self.commitment * commitment + self.codebook * quantize.codebook_loss(z, quantised)
        metrics = {"commitment": commitment, **quantize.usage(ids, self.num_codes)}
        return Quantized(self.gradient(z, quantised), ids, loss, metrics)

    def embed(self, ids: jax.Array) -> jax.Array:
        return quantize.lookup(self.measure(self.codes), ids)


class MovingCodebook(nn.Module):
    """Codes follow the mean of what chose them: appendix A.1. Quantised is with the codes from before the step."""

    num_codes: int  # K
    dim: int  # D
    commitment: float = 0.25  # beta
    decay: float = 0.99  # gamma
    threshold: float = 0.0  # codes that fewer vectors of the global batch choose in a step start anew; 0: none
    measure: Callable = as_is
    gradient: Callable = quantize.straight_through

    def setup(self):
        self.state = self.variable("codebook", "state", self._begin)

    def _begin(self) -> quantize.State:
        return quantize.begin(self.measure(uniform(self.make_rng("params"), (self.num_codes, self.dim))))

    def __call__(self, z: jax.Array, *, train: bool = False) -> Quantized:
        z, state = self.measure(z), self.state.value
        ids = quantize.nearest(z, state["codes"])
        quantised = quantize.lookup(state["codes"], ids)
        commitment = quantize.commitment_loss(z, quantised)
        if train and not self.is_initializing():
            self.state.value = self._renewed(state, z, ids)
        metrics = {"commitment": commitment, **quantize.usage(ids, self.num_codes)}
        return Quantized(self.gradient(z, quantised), ids, self.commitment * commitment, metrics)

    def _renewed(self, state: quantize.State, z: jax.Array, ids: jax.Array) -> quantize.State:
        state = quantize.moved(state, z, ids, self.decay)
        state = {**state, "codes": self.measure(state["codes"])}
        return quantize.revived(state, z, self.make_rng("codes"), self.threshold) if self.threshold > 0 else state

    def embed(self, ids: jax.Array) -> jax.Array:
        return quantize.lookup(self.state.value["codes"], ids)


class FSQ(nn.Module):
    """Mentzer et al. 2023, arXiv:2309.15505. Published levels: (8, 6, 5) for 2^8 codes, (8, 5, 5, 5) for 2^10,
    (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16."""

    levels: tuple[int, ...] = (8, 5, 5, 5)

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def __call__(self, z: jax.Array, *, train: bool = False) -> Quantized:
        quantised = quantize.fsq(z, self.levels)
        ids = quantize.fsq_ids(quantised, self.levels)
        return Quantized(quantised, ids, jnp.zeros(()), quantize.usage(ids, self.num_codes))

    def embed(self, ids: jax.Array) -> jax.Array:
        return quantize.fsq_codes(ids, self.levels)


class LFQ(nn.Module):
    """Yu et al. 2023, arXiv:2310.05737, section 3.1: codes are signs, and their entropies are part of the loss."""

    dim: int  # D; K is 2^D
    entropy: float = 0.1  # weight of both entropies
    diversity: float = 1.0  # of that of the mean, within
    sharpness: float = 100.0
    commitment: float = 0.0

    @property
    def num_codes(self) -> int:
        return 2**self.dim

    def __call__(self, z: jax.Array, *, train: bool = False) -> Quantized:
        if z.shape[-1] != self.dim:
            raise ValueError(f"z must be [... {self.dim}], got {list(z.shape)}")
        quantised, ids = quantize.signs(z), quantize.sign_ids(z)
        each, together = quantize.sign_entropies(z, sharpness=self.sharpness)
        commitment = quantize.commitment_loss(z, quantised)
        loss = self.entropy * (each - self.diversity * together) + self.commitment * commitment
        metrics = {"entropy_each": each, "entropy_mean": together, **quantize.usage(ids, self.num_codes)}
        return Quantized(quantised, ids, loss, metrics)

    def embed(self, ids: jax.Array) -> jax.Array:
        return quantize.sign_codes(ids, self.dim)
