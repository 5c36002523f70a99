"""The published DINOv2 ViT-g/14 on a pod that is not here: minutes of compiling, so marked `aot`."""

import pytest

from mmjax.parallel import plan
from mmjax.train import overrides, step

pytestmark = pytest.mark.aot


def test_training_vit_g14_in_batches_of_3072_fits_128_chips():
    pytest.importorskip("libtpu", reason="libtpu is not installed: [plan]")
    experiment = overrides.load_experiment("experiments/dinov2_emoji.py", "paper")
    assert experiment.batch_size == 3_072
    machine = plan.topology("v5p:4x4x8")
    mesh = experiment.mesh.build(machine.devices)
    made = plan.make(step.build(experiment, mesh).trace(), machine, mesh)
    print(made)  # shown with -s
    assert made.fits, made.reason
    # Its 16th of the parameters, the teacher and Adam's two moments, 4 bytes each, and its 24 images.
    assert made.memory.arguments == pytest.approx(4 * 4 * 1_234_919_040 / 16, rel=0.15)
    # The logits of a chip's hidden patches, 2 groups x 967 x 131,072, are 1 GB in float32 for each copy; those of the
    # whole batch, were the balanced assignment not split, 130 GB.
    assert made.memory.needed < 10 * 2**30
