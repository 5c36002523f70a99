"""Residual vector quantisation: each level gives a code to what the levels before it left over.

    r_0 = z,  k_i = the nearest code of level i to r_i,  r_{i+1} = r_i - code_i[k_i],  quantised = sum of code_i[k_i]

Source: Zeghidour et al. 2021, arXiv:2107.03312 (SoundStream), algorithm 1 and section III-C; Defossez et al. 2022,
arXiv:2210.13438 (EnCodec), section 3.2. As in facebookresearch/audiocraft, what a level gives sends no gradient: one
straight-through at the end takes the decoder's to z whole, and the losses of the levels are averaged.

Called and read as the quantisers of nn/quantizers.py, but for the last axis of ids:

    quantizer(z [... D], train=...) -> Quantized of ids [... Q]        quantizer.embed(ids [... q]) -> [... D], q <= Q

D width of a code, K codes of a level, Q levels, q the first of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.nn.quantizers import Quantized
from mmjax.ops import quantize

COLLECTION = "codebook"  # of what a level learns without a gradient


class ResidualCodebook(nn.Module):
    """Q levels of one kind, as one subtree "layers" with a leading axis. With dropout, a training step counts only the
    first few of them, a number drawn from 1 to Q for the whole batch (section III-C): the codes of any first few levels
    are then codes too. It takes random numbers "codes", as levels do whose dead codes come back to life."""

    layers: nn.Module  # any of nn/quantizers.py; each level has its own
    levels: int  # Q
    dropout: bool = False

    @property
    def dim(self) -> int:
        return self.layers.dim

    @property
    def num_codes(self) -> int:
        return self.layers.num_codes

    def __call__(self, z: jax.Array, *, train: bool = False, levels: int | None = None) -> Quantized:
        """[... D] -> ids [... q]. levels: q, the levels that count; None: all, or as many as dropout draws, and the ids
        of the others then mean nothing. Metrics are means over all Q."""
        z = z.astype(jnp.float32)
        first = self._counted(levels)
        if levels is None and train and self.dropout and not self.is_initializing():
            first = jax.random.randint(self.make_rng("codes"), (), 1, self.levels + 1)
        counts = jnp.arange(self.levels) < first  # [Q]

        def level(layer: nn.Module, carry: tuple, counted: jax.Array) -> tuple[tuple, tuple]:
            residual, total = carry
            before = jax.tree.map(jnp.asarray, layer.variables.get(COLLECTION, {}))  # a copy: the call writes into it
            out = layer(residual, train=train)
            if train and not layer.is_initializing():  # a level that does not count has seen nothing
                for name, old in before.items():
                    new = layer.get_variable(COLLECTION, name)
                    layer.put_variable(COLLECTION, name, jax.tree.map(lambda *x: jnp.where(counted, *x), new, old))
            code = jax.lax.stop_gradient(out.latents) * counted
            return (residual - code, total + code), (out.ids, out.loss, out.metrics)

        (_, total), (ids, losses, metrics) = self._scan(level, (z, jnp.zeros_like(z)), counts)
        loss = jnp.sum(losses * counts) / counts.sum()
        metrics = {name: x.mean() for name, x in metrics.items()}
        ids = jnp.moveaxis(ids, 0, -1)[..., : self.levels if levels is None else levels]
        return Quantized(quantize.straight_through(z, total), ids, loss, metrics)

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids int [... q] of the first q levels, each in [0, K) -> their sum [... D]."""
        found = self._counted(ids.shape[-1])
        ids = jnp.pad(ids, ((0, 0),) * (ids.ndim - 1) + ((0, self.levels - found),))

        def level(layer: nn.Module, total: jax.Array, own: tuple) -> tuple[jax.Array, None]:
            ids, counted = own
            return total + layer.embed(ids) * counted, None

        nothing = jnp.zeros((*ids.shape[:-1], self.dim), jnp.float32)
        return self._scan(level, nothing, (jnp.moveaxis(ids, -1, 0), jnp.arange(self.levels) < found))[0]

    def _counted(self, levels: int | None) -> int:
        levels = self.levels if levels is None else levels
        if not 1 <= levels <= self.levels:
            raise ValueError(f"this quantiser has {self.levels} levels, so 1 to {self.levels} may count, got {levels}")
        return levels

    def _scan(self, level: Any, carry: Any, each: Any) -> tuple[Any, Any]:
        scan = nn.scan(
            level,
            variable_axes={"params": 0, COLLECTION: 0},
            split_rngs={"params": True, "codes": True},
            length=self.levels,
        )
        return scan(self.layers, carry, each)


def started(z: jax.Array, levels: int, num_codes: int, rng: jax.Array, *, steps: int = 20) -> quantize.State:
    """z [... D], at least num_codes vectors -> the state [Q ...] of moving codebooks that start where k-means, level by
    level, finds what these vectors and their residuals gather around (SoundStream, section III-C)."""

    def level(residual: jax.Array, rng: jax.Array) -> tuple[jax.Array, quantize.State]:
        codes = quantize.kmeans(residual, num_codes, rng, steps=steps)
        return residual - quantize.lookup(codes, quantize.nearest(residual, codes)), quantize.begin(codes)

    z = jax.lax.stop_gradient(jnp.asarray(z, jnp.float32)).reshape(-1, z.shape[-1])
    return jax.lax.scan(level, z, jax.random.split(rng, levels))[1]
