"""Floating point operations of a traced function: what matrix products and convolutions cost.

XLA's own count takes the body of a loop once, so a scanned stack of 24 layers would count as one. Here loops count as
often as they run, and recomputation (remat) counts, as the hardware does it. Element-wise work is left out.
"""

import math
from collections.abc import Iterator
from typing import Any


def count(jaxpr: Any) -> float:
    """Of `jax.jit(f).trace(...).jaxpr`, over all devices. The body of a while loop counts once."""
    return sum(_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = shapes[1]
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
    if name == "cond":
        return max(count(branch) for branch in params["branches"])
    if name == "pallas_call" and params.get("cost_estimate") is not None:
        return float(params["cost_estimate"].flops)
    inside = sum(count(jaxpr) for jaxpr in _jaxprs(params.values()))
    if name == "scan":
        return inside * params["length"]
    if name == "shard_map":  # the body is one device's share
        return inside * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return inside * math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    return inside


def _jaxprs(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield value
