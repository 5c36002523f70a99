"""The published Mamba-2 2.7B on a pod that is not here: minutes of compiling, so marked `aot`."""

import pytest

from mmjax.parallel import plan
from mmjax.train import overrides, step

pytestmark = pytest.mark.aot


def test_pretraining_mamba2_2_7b_with_a_million_tokens_a_step_fits_a_pod_of_256():
    pytest.importorskip("libtpu", reason="libtpu is not installed: [plan]")
    experiment = overrides.load_experiment("experiments/mamba2_text.py", "paper")
    assert experiment.batch_size * experiment.data.length == 2**20
    machine = plan.topology("v5e:16x16")
    mesh = experiment.mesh.build(machine.devices)
    made = plan.make(step.build(experiment, mesh).trace(), machine, mesh)
    print(made)  # shown with -s
    assert made.fits, made.reason
    # Its share of the weights and of Adam's two moments, 3 x 4 bytes a parameter, and the small arrays (scales, biases
    # of the convolutions) that every chip holds in full.
    assert made.memory.arguments == pytest.approx(3 * 4 * 2_702_599_680 / 256, rel=0.15)
    assert made.memory.needed < 5 * 2**30  # a lost constraint, or remat, shows as GiB
    # 6 FLOPs a parameter and token, 2 more for remat; the table of embeddings multiplies once, as the head.
    assert made.flops == pytest.approx(8 * 2.70e9 * 2**20 / 256, rel=0.05)
