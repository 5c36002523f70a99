"""Equal layers as one subtree with a leading layer axis: compiled once, whatever the depth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.nn.cache import Layer

LAYERS = "layers"  # the name of every stack, and how `per_layer` finds it

REMAT = {  # what the backward pass finds in memory; the rest it computes again
    "full": jax.checkpoint_policies.nothing_saveable,  # each layer's input only
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # also the projections; attention again
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is run; never changes what it computes, but for rounding."""

    dtype: Any = jnp.float32  # of activations and products: bfloat16 on accelerators
    remat: str | None = None  # a key of REMAT; None keeps all
    # Layers side by side in the program: as fast as a Python loop on CPU (the loop over stacked layers is 2 x slower
    # there), but slower to compile, and the compiler then undoes remat.
    unroll: bool = False

    def __post_init__(self):
        if self.remat is not None and self.remat not in REMAT:
            raise ValueError(f"remat must be None or one of {', '.join(REMAT)}, got {self.remat!r}")


class Stack(nn.Module):
    """`depth` layers made by `block`, one after another. Name it LAYERS.

    collect=True also returns what each layer gave, [L B T D]: `hidden[-2]` is the layer before the last.
    """

    block: Callable[[], nn.Module]
    depth: int
    compute: Compute = Compute()

    def setup(self):
        self.layer = self.block()
        nn.share_scope(self, self.layer)  # layers/norm1/..., not layers/layer/norm1/...

    def __call__(
        self, x: jax.Array, *args: Any, each: Any = None, cache: Any = None, collect: bool = False
    ) -> tuple[jax.Array, jax.Array | Any | None]:
        """[B T D], what each block is given besides -> [B T D], None or [L B T D].

        each: a tree of arrays [L ...] of which each block is given its own layer's part, after `args`.
        cache: what all layers remember (nn/cache.py). Each block is then called with `cache=Layer(cache, index)` and
        returns its output and the cache, renewed; the last one comes back in place of [L B T D].
        """

        def body(layer: nn.Module, carry: tuple, own: tuple, *args: Any) -> tuple[tuple, jax.Array | None]:
            (x, cache), (index, part) = carry, own
            args = args if part is None else (*args, part)
            if cache is None:
                x = layer(x, *args)
            else:
                x, cache = layer(x, *args, cache=Layer(cache, index))
            return (x, cache), x if collect else None

        if self.compute.remat is not None:
            # The scan already keeps the compiler from merging the two passes.
            body = nn.remat(body, policy=REMAT[self.compute.remat], prevent_cse=False)
        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *[nn.broadcast] * len(args)),
            length=self.depth,
            unroll=self.depth if self.compute.unroll else 1,
        )
        (x, cache), hidden = scan(self.layer, (x, cache), (jnp.arange(self.depth), each), *args)
        return x, hidden if cache is None else cache


def per_layer(fn: Callable[[str, jax.Array, Any], jax.Array]) -> Callable[[Any], Any]:
    """Makes a map over a tree of parameters, gradients or updates in which stacked layers are seen one by one.

    fn(path, leaf, layer) gets one layer's array and its index (traced), or a leaf outside of a stack and None, and
    returns an array of the leaf's shape. Clipping each array by its own norm, scaling the learning rate by depth or
    freezing the first k layers must all go through here: on the stacked leaf they would mix the layers.
    """

    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if LAYERS not in name.split("/"):
            return fn(name, leaf, None)
        return jax.vmap(lambda leaf, layer: fn(name, leaf, layer))(leaf, jnp.arange(leaf.shape[0]))

    return lambda tree: jax.tree_util.tree_map_with_path(one, tree)
