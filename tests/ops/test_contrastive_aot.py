"""Memory of the contrastive losses on a pod of 256 chips, from the compiler (libtpu, extra [plan])."""

import importlib.util

import jax.numpy as jnp
import pytest

from mmjax.benchmarks import contrastive_memory
from mmjax.ops import contrastive


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]")
@pytest.mark.parametrize(("implementation", "limit"), [("ring", 60), ("gather", 100)])
def test_a_chip_never_holds_the_matrix_of_all_pairs(implementation, limit):
    # 32,768 rows of width 1,152 on 256 chips. One copy of all rows in bfloat16 is 76 MB, and `gather` holds one at a
    # time; the ring holds none. Differentiating through gather and ring takes 89 and 145 MB, the plain matrix 227 MB.
    mesh = contrastive_memory.pod()
    peak = contrastive_memory.peak_megabytes(mesh, contrastive.clip_loss, implementation, jnp.bfloat16, 3)
    assert peak <= limit
