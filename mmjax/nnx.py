"""For users of NNX: any of our Linen modules, with its variables, as an nnx.Module.

    clip = mmjax.nnx.wrap(model, variables)
    clip(images, input_ids)  ==  model.apply(variables, images, input_ids)

nnx.jit, nnx.grad, nnx.Optimizer, nnx.split and nnx.merge work on it as on any NNX module.
"""

from typing import Any

import jax
from flax import linen as nn
from flax import nnx


class Collection(nnx.Variable):
    """A leaf of a collection other than "params": a codebook, a teacher, batch statistics."""


class Wrapped(nnx.Module):
    """Holds the variables of a Linen module; leaves of "params" are nnx.Param."""

    def __init__(self, model: nn.Module, variables: dict[str, Any]):
        self.model = model
        kinds = {name: nnx.Param if name == "params" else Collection for name in variables}
        self.collections = nnx.data({name: jax.tree.map(kinds[name], tree) for name, tree in variables.items()})

    @property
    def variables(self) -> dict[str, Any]:
        """Plain nested dicts again, for `model.apply` and `mmjax.weights.save_hf`."""
        return jax.tree.map(lambda x: x[...], self.collections, is_leaf=lambda x: isinstance(x, nnx.Variable))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `model.apply(variables, ...)`: `method`, `rngs` and `mutable` mean the same."""
        return self.model.apply(self.variables, *args, **kwargs)


def wrap(model: nn.Module, variables: dict[str, Any]) -> Wrapped:
    """variables: collection -> nested dict of arrays, with "params" among them."""
    if "params" not in variables:
        raise ValueError(
            f'variables must hold the collection "params", got {sorted(variables)}; pass what init returned'
        )
    return Wrapped(model, variables)
