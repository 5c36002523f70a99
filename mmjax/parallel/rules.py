"""Which axis of which parameter lies on which mesh axis: (path regex, PartitionSpec on the trailing axes).

Paths are the keys from the root joined by "/". Optimizer slots and EMA copies carry their parameter's path inside
their own ("opt_state/0/mu/vision/layers/mlp/up/kernel"), so the same rules shard them. The spec counts from the last
axis: the leading axis of stacked layers stays whole. The first rule that matches decides.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.ops.sharding import FSDP, TENSOR

Rule = tuple[str, PartitionSpec]

LARGE = 1_000_000  # elements; below, a copy on each device costs less than the collectives that avoid it

# Kernels are (in, out). The wide side of a pair of projections goes to tensor: heads and hidden units are computed
# apart and meet in one sum after `out` and `down` (Shoeybi et al. 2019, section 3). fsdp takes the other side.
DEFAULT: tuple[Rule, ...] = (
    (r"(^|/)(query|key|value|up|gate)/kernel$", PartitionSpec(FSDP, TENSOR)),
    (r"(^|/)(out|down)/kernel$", PartitionSpec(TENSOR, FSDP)),
    (r"(^|/)(class_embed|condition)/embedding$", PartitionSpec(FSDP)),  # [classes and none, D]
    (r"(^|/)(embed|embedding)$", PartitionSpec(TENSOR, FSDP)),  # [V D]
    (r"(^|/)pos_embed$", PartitionSpec(FSDP)),  # [T D]
    (r"(^|/)lora_a$", PartitionSpec(FSDP, None)),  # [in r]
    (r"(^|/)lora_b$", PartitionSpec(None, TENSOR)),  # [r out]
    (
        r"(^|/)(head|pooler|transform|prototypes|projector|\w*projection|\w*modulation(/linear)?)/kernel$",
        PartitionSpec(FSDP, TENSOR),
    ),
    # Mamba: channels last, as in the activations; and from the channels to what a token selects, a few numbers.
    (r"(^|/)mixer/(conv\w*/kernel|delta/kernel|A_log)$", PartitionSpec((TENSOR, FSDP))),
    (r"(^|/)mixer/select/kernel$", PartitionSpec((TENSOR, FSDP), None)),
    (r"(^|/)(patch_embed|conv\w*)/kernel$", PartitionSpec(FSDP)),  # [h w in out]: `in` may be 3 colours
    (r"(^|/)quantizer/(\w+/)*(codes|total)$", PartitionSpec()),  # [K D]: each device looks through all codes
)


def shardings(mesh: Mesh, rules: tuple[Rule, ...], tree: Any) -> Any:
    """`tree` with a NamedSharding in place of each array (or jax.ShapeDtypeStruct).

    An array of more than LARGE elements that no rule matches, or that its rule cannot divide, is an error with its
    name; a small one is kept whole along the axes that do not divide.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(
            mesh, _spec(mesh, rules, jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)
        )

    return jax.tree_util.tree_map_with_path(place, tree)


def _spec(mesh: Mesh, rules: tuple[Rule, ...], name: str, shape: tuple[int, ...]) -> PartitionSpec:
    large = math.prod(shape) > LARGE
    rule = next((rule for rule in rules if re.search(rule[0], name)), None)
    if rule is None:
        if large:
            raise ValueError(
                f"no sharding rule matches {name} {list(shape)}, which has more than {LARGE:,} elements; add a rule to "
                "the experiment's rules=(...), PartitionSpec() if every device shall hold all of it"
            )
        return PartitionSpec()
    trailing = tuple(rule[1])[-len(shape) :] if shape else ()
    axes = []
    for size, axis in zip(shape[len(shape) - len(trailing) :], trailing, strict=True):
        parts = math.prod(mesh.shape[one] for one in ((axis,) if isinstance(axis, str) else axis or ()))
        if size % parts and large:
            raise ValueError(
                f"sharding rule {rule[0]!r} splits an axis of {size} of {name} {list(shape)} over {axis}={parts}, "
                "which does not divide it; change the mesh, or put a rule for this path before it"
            )
        axes.append(axis if size % parts == 0 else None)
    return PartitionSpec(*[None] * (len(shape) - len(axes)), *axes)
