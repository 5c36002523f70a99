"""Memory of the cross entropy of next tokens with and without its logits, on chips that need not be there.

Compiles value and gradient ahead of time (needs the [plan] extra) and prints what XLA says a chip holds at its peak,
arguments included. This is memory, not speed: nothing runs.

    python -m mmjax.benchmarks cross_entropy
"""

import jax
import jax.numpy as jnp

from mmjax.ops import cross_entropy, sharding
from mmjax.parallel import plan
from mmjax.parallel.mesh import MeshShape, batch_sharding

WIDTH, TOKENS = 4_096, 8_192  # of a 7B model; tokens of one chip, 4 texts of 2,048
MACHINES = {
    "one v5e chip": ("v5e:2x2", MeshShape(data=4)),
    "v5e:4x4, fsdp 4 x tensor 4": ("v5e:4x4", MeshShape(1, 4, 4)),
}


def peak_megabytes(machine: str, vocab_size: int, implementation: str, tokens: int = TOKENS) -> float:
    """Peak of one chip. `tokens` on each batch shard, parameters in bfloat16."""
    topology, shape = MACHINES[machine]
    mesh = shape.build(plan.topology(topology).devices)
    rows = batch_sharding(mesh, mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP])
    table = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.FSDP, sharding.TENSOR))
    count = tokens * mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP]
    hidden = jax.ShapeDtypeStruct((count, WIDTH), jnp.bfloat16, sharding=rows)
    head = jax.ShapeDtypeStruct((WIDTH, vocab_size), jnp.bfloat16, sharding=table)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=rows)

    def loss(hidden: jax.Array, head: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy.linear_cross_entropy(hidden, head, labels, implementation=implementation)

    step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (rows, table)))
    with jax.set_mesh(mesh):
        return step.lower(hidden, head, labels).compile().memory_analysis().peak_memory_in_bytes / 1e6


def main() -> None:
    print(f"peak MB per chip, {TOKENS:,} tokens on each batch shard, width {WIDTH:,}, bfloat16, value and gradient")
    print(f"{'machine':28} {'vocabulary':>10} {'all logits':>11} {'chunked':>9} {'ratio':>6}")
    for machine in MACHINES:
        for vocab_size in (32_000, 128_256):
            naive, chunked = (peak_megabytes(machine, vocab_size, one) for one in ("reference", "chunked"))
            print(f"{machine:28} {vocab_size:10,} {naive:11,.0f} {chunked:9,.0f} {naive / chunked:6.1f}")
