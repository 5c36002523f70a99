"""Memory of the cross entropy of next tokens on TPU chips, from the compiler (libtpu, extra [plan])."""

import importlib.util

import pytest

from mmjax.benchmarks import cross_entropy_memory
from mmjax.ops import cross_entropy
from mmjax.parallel.mesh import MeshShape

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]"),
]
VOCAB = 128_256


def most_megabytes(shape: MeshShape) -> float:
    """What a chip needs that makes a chunk of logits at a time, as if all of it lived at once.

    In bfloat16 but for logits and sums. On one chip of data 4 that is 3,689 MB, and with the logits of all tokens in
    place of a chunk 7,623; at fsdp 4 x tensor 4 it is 1,194 MB and 1,976.
    """
    hidden = 2 * cross_entropy_memory.TOKENS * cross_entropy_memory.WIDTH
    head = 2 * cross_entropy_memory.WIDTH * VOCAB // shape.tensor  # the columns that a chip works with
    kept = hidden + head // shape.fsdp  # what the chip holds of both
    gathered = head if shape.fsdp > 1 else 0
    gradients = head + 2 * hidden  # of all those columns, before the sum over chips; hidden's are summed in float32
    return (kept + kept + gathered + gradients + 4 * cross_entropy.CHUNK) / 1e6  # arguments, results, and in between


@pytest.mark.parametrize("machine", cross_entropy_memory.MACHINES)
def test_a_chip_never_holds_the_logits_of_all_tokens(machine):
    most = most_megabytes(cross_entropy_memory.MACHINES[machine][1])
    all_logits, chunked = (cross_entropy_memory.peak_megabytes(machine, VOCAB, one) for one in ("reference", "chunked"))
    print(f"{machine}: {chunked:,.0f} MB of at most {most:,.0f}, with all logits {all_logits:,.0f}")
    assert chunked <= most < all_logits


def test_nor_does_a_chip_of_v6e(monkeypatch):
    shape = MeshShape(data=4)
    monkeypatch.setitem(cross_entropy_memory.MACHINES, "one v6e chip", ("v6e:2x2", shape))
    assert cross_entropy_memory.peak_megabytes("one v6e chip", VOCAB, "chunked") <= most_megabytes(shape)
