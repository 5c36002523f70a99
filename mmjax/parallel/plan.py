"""Ahead-of-time proof that a step compiles and fits on a machine that is not here.

    machine = plan.topology("v5e:16x16")                  # or "v6e:4x4", "v5p:4x4x4", "h100:8"
    mesh = MeshShape(fsdp=16).build(machine.devices)
    print(plan.make(step.trace(batch), machine, mesh))

The compiler for the target runs on this CPU: libtpu (extra [plan]) for TPUs, JAX's CUDA plugin (extra [cuda]) for H100.
It proves that the step compiles and how much memory it takes; it measures no time.
"""

import dataclasses
import importlib.util
import io
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from mmjax.parallel import flops

GIB = 2**30
# What a program may use of a device's memory, in GiB, as the compilers' own out-of-memory messages say (libtpu 0.0.42);
# v3 and v4 list each of a chip's two cores as a device.
TPU_MEMORY = {"v3": 15.48, "v4": 15.25, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
H100_MEMORY = 0.75 * 84_929_347_584 / GIB  # JAX takes three quarters of the card unless told otherwise
# Data sheet and CUDA device properties of the SXM5 card.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
"""
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine that need not exist here."""

    name: str
    devices: Sequence[Any]
    memory: int  # bytes of each device that a program may use


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device; 0 where the compiler gave up before it knew."""

    arguments: int = 0  # the state and the batch
    results: int = 0  # beyond what is written over donated arguments
    temporaries: int = 0  # activations, gathered parameters, gradients; one block, gaps included
    peak: int = 0  # the most that is alive at one time, gaps left out

    @property
    def needed(self) -> int:
        return max(self.peak, self.arguments + self.results + self.temporaries)


@dataclasses.dataclass(frozen=True)
class Whole:
    """An argument that every device holds in full."""

    name: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler said. `reason` tells in one sentence why it fits or not."""

    topology: Topology
    mesh: dict[str, int]
    fits: bool
    reason: str
    memory: Memory
    flops: float  # of one step on one device
    collectives: dict[str, int]  # instructions in the program; one inside the layers' loop runs once a layer
    whole: tuple[Whole, ...]  # largest first
    lower_seconds: float
    compile_seconds: float

    def __str__(self) -> str:
        return render(self)

    def record(self) -> dict[str, Any]:
        """What a line of experiments/plans.jsonl keeps of it."""
        gib = {"gib": round(self.memory.needed / GIB, 3), "gib_limit": round(self.topology.memory / GIB, 3)}
        return {
            "topology": self.topology.name, "mesh": _axes(self.mesh), "fits": self.fits, **gib, "flops": self.flops,
            "collectives": self.collectives, "compile_seconds": round(self.compile_seconds, 1),
        }  # fmt: skip


def topology(name: str) -> Topology:
    """'v5e:16x16', 'v6e:4x4', 'v5p:4x4x4' (chips along each axis), or 'h100:8' (cards of one host)."""
    kind, _, shape = name.lower().partition(":")
    if kind == "h100" and re.fullmatch(r"[1-9]\d*", shape):
        return _h100(name, int(shape))
    if kind in TPU_MEMORY and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
        return _tpu(name, kind)
    raise ValueError(
        f"unknown topology {name!r}; write KIND:SHAPE with KIND one of {', '.join([*TPU_MEMORY, 'h100'])}, "
        "such as v5e:16x16, v5p:4x4x4 or h100:8"
    )


def _tpu(name: str, kind: str) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"a plan for {name} needs the TPU compiler: pip install 'mmjax[plan]' (libtpu, about 200 MB)")
    # libtpu looks for chips, for other users of them and for a metadata server unless it is told that there are none.
    os.environ.update(ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.update(TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_LOG_DIR="disabled")
    return Topology(name, _describe(name, name.lower(), platform="tpu"), int(TPU_MEMORY[kind] * GIB))


def _h100(name: str, count: int) -> Topology:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise ValueError(f"a plan for {name} needs JAX's CUDA plugin: pip install 'mmjax[cuda]' (no GPU is needed)")
    devices = _describe(name, "", platform="cuda", target_config=H100, topology=f"1x1x{count}")
    return Topology(name, devices, int(H100_MEMORY * GIB))


def _describe(name: str, layout: str, **options: Any) -> Sequence[Any]:
    jax.config.update("jax_platforms", "cpu")  # this process computes nothing on an accelerator
    try:
        return topologies.get_topology_desc(layout, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the compiler knows no topology {name!r}: {str(error).splitlines()[0]}") from error


def make(traced: jax.stages.Traced, machine: Topology, mesh: Mesh) -> Plan:
    """Compiles `traced` for the devices its arguments' shardings name. Too little memory is a verdict, not an error."""
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = traced.lower()
    lowered_at = time.perf_counter()
    known = {
        "topology": machine,
        "mesh": dict(mesh.shape),
        "flops": flops.count(traced.jaxpr) / mesh.size,
        "lower_seconds": lowered_at - started,
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        known["compile_seconds"] = time.perf_counter() - lowered_at
        return Plan(**known, fits=False, reason=_shortage(str(error)), memory=Memory(), collectives={}, whole=())
    known["compile_seconds"] = time.perf_counter() - lowered_at
    stats = compiled.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = Memory(stats.argument_size_in_bytes, results, stats.temp_size_in_bytes, stats.peak_memory_in_bytes)
    text = compiled.as_text()
    fits = memory.needed <= machine.memory
    verdict = "is within" if fits else "is more than"
    return Plan(
        **known,
        fits=fits,
        reason=f"{_size(memory.needed)} {verdict} the {_size(machine.memory)} of a device",
        memory=memory,
        collectives={name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES},
        whole=_whole(lowered.args_info, compiled.input_shardings),
    )


def _shortage(message: str) -> str:
    """The compiler's out-of-memory message as one sentence."""
    found = re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    found = found or re.search(r"[Uu]sed ([\d.]+\w) of ([\d.]+\w)", message)
    if found is None:
        return f"the compiler ran out of memory: {message.splitlines()[0]}"
    return f"the step needs {found[1]} of the {found[2]} of a device; use more fsdp, remat, or a smaller batch a device"


def _whole(arguments: Any, shardings: Any) -> tuple[Whole, ...]:
    """The arguments of a MiB or more that no axis of the mesh splits, largest first."""
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    found = []
    # An argument that the step never reads has no place.
    places = jax.tree.leaves(shardings, is_leaf=lambda place: place is None)
    for (path, leaf), sharding in zip(leaves, places, strict=True):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= 2**20 and sharding is not None and sharding.shard_shape(leaf.shape) == leaf.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found.append(Whole(re.sub(r"^0/\d+/", "", name), size))  # without the argument's position
    return tuple(sorted(found, key=lambda one: -one.bytes))


def _axes(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def render(plan: Plan, rows: int = 6) -> str:
    """The plan as a table for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "per device", title=f"{plan.topology.name}: {len(plan.topology.devices)} devices", min_width=72)
    table.add_row("mesh", _axes(plan.mesh))
    if plan.memory.needed:
        table.add_row("arguments", _size(plan.memory.arguments))
        table.add_row(
            "temporaries", f"{_size(plan.memory.temporaries)}; alive at once, with arguments: {_size(plan.memory.peak)}"
        )
        counts = [f"{name} {count}" for name, count in plan.collectives.items() if count]
        table.add_row("collectives in the program", ", ".join(counts) or "none")
    table.add_row("matrix FLOPs a step", f"{plan.flops:.3g}")
    table.add_row("lowering, compilation", f"{plan.lower_seconds:.1f} s, {plan.compile_seconds:.1f} s")
    for index, one in enumerate(plan.whole[:rows]):
        table.add_row("" if index else "largest that are whole", f"{_size(one.bytes)}  {one.name}")
    table.add_section()
    table.add_row("fits" if plan.fits else "DOES NOT FIT", plan.reason)
    text = io.StringIO()
    Console(width=110, file=text).print(table)
    return text.getvalue()
