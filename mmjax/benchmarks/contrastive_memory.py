"""Memory of the contrastive losses on 256 TPU chips that are not there.

Compiles value and gradient ahead of time (needs the [plan] extra) and prints what XLA says a chip holds at its peak,
arguments included. This is memory, not speed: nothing runs.

    python -m mmjax.benchmarks contrastive
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import contrastive, sharding
from mmjax.parallel import plan

TOPOLOGY = "v5e:16x16"
BATCH, WIDTH = 32_768, 1_152  # the batch of CLIP and SigLIP, the width of SigLIP so400m


def pod() -> Mesh:
    """All chips along the data axis."""
    return Mesh(np.asarray(plan.topology(TOPOLOGY).devices), (sharding.DATA,), axis_types=(AxisType.Auto,))


def peak_megabytes(mesh: Mesh, loss: Callable, implementation: str, dtype: jnp.dtype, arguments: int) -> float:
    """Peak of one chip for loss(images, texts, *scalars) and its gradient by the first `arguments` of these."""
    rows = jax.ShapeDtypeStruct((BATCH, WIDTH), dtype, sharding=NamedSharding(mesh, PartitionSpec(sharding.DATA)))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    inputs = (rows, rows, scalar, scalar)[:arguments]
    step = jax.value_and_grad(functools.partial(loss, implementation=implementation), argnums=tuple(range(arguments)))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step).lower(*inputs).compile()
    return compiled.memory_analysis().peak_memory_in_bytes / 1e6


def main() -> None:
    mesh = pod()
    print(f"peak MB per chip, {TOPOLOGY}, N = {BATCH}, E = {WIDTH}, value and gradient")
    print(f"{'loss':12} {'dtype':10} {'reference':>10} {'gather':>10} {'ring':>10}")
    for loss, arguments in ((contrastive.clip_loss, 3), (contrastive.siglip_loss, 4)):
        for dtype in (jnp.bfloat16, jnp.float32):
            peaks = [peak_megabytes(mesh, loss, name, dtype, arguments) for name in ("reference", "gather", "ring")]
            print(f"{loss.__name__:12} {jnp.dtype(dtype).name:10} {' '.join(f'{peak:10.1f}' for peak in peaks)}")
