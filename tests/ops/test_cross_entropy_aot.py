"""Memory of the cross entropy of next tokens on TPU chips, from the compiler (libtpu, extra [plan])."""

import importlib.util

import pytest

from mmjax.benchmarks import cross_entropy_memory


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]")
@pytest.mark.parametrize("machine", cross_entropy_memory.MACHINES)
def test_a_chip_never_holds_the_logits_of_all_tokens(machine):
    peaks = [cross_entropy_memory.peak_megabytes(machine, 128_256, one) for one in ("reference", "chunked")]
    assert peaks[1] < 0.7 * peaks[0]
